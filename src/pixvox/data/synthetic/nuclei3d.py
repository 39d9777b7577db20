"""Light-sheet volumes of touching nuclei, with the faults of the microscope, whose truth is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample, intensity_range
from pixvox.structures import Size


@dataclass(frozen=True)
class Volume:
    """One rendered volume: ``image`` (depth, height, width) uint16 and ``label_map`` with ids 1..n."""

    image: np.ndarray
    label_map: np.ndarray


class Nuclei3d(Dataset):
    """Ellipsoidal nuclei rendered on demand: volume ``i`` depends on ``(seed, i)`` and the options alone.

    The light goes the way of a light-sheet microscope: nuclei with chromatin texture, a blur that is wider
    along z than across, attenuation with depth, stripes along the illumination (x), photon (Poisson) noise,
    camera offset and read noise.

    Args:
        num_images: Length of the dataset.
        seed: Seed of all volumes; give train and val different ones.
        image_size: Depth, height and width in voxels, or one length for all.
        count: Fewest and most nuclei that are tried per volume; crowded volumes end up with fewer.
        radius: Smallest and largest mean radius of a nucleus, in micrometres.
        spacing: Size of a voxel (z, y, x), in micrometres.
        clustered: Share of the nuclei that are placed against an earlier one.
        touching: How far nuclei may approach: 1 lets surfaces touch, below 1 they press into each other and
            share a border, above 1 they stay apart.
        blur: Standard deviation of the blur (z, y, x), in micrometres.
        photons: Brightness of a nucleus in photons; less means more noise.
        attenuation: Depth in micrometres at which the light has fallen to 1/e; 0 for none.
        stripes: Relative depth of the stripes, 0..1.
        offset: Offset of the camera in counts.
        read_noise: Standard deviation of the camera's noise in counts.
        percentiles: Those of ``Sample.intensity_range``.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> nuclei = Nuclei3d(num_images=1, image_size=(8, 24, 24), count=(3, 3))
        >>> nuclei[0].image.shape, nuclei.metadata.spacing
        (torch.Size([1, 8, 24, 24]), (2.0, 1.0, 1.0))
    """

    def __init__(
        self,
        num_images: int = 64,
        seed: int = 0,
        image_size: int | Sequence[int] = (32, 96, 96),
        count: Sequence[int] = (10, 30),
        radius: Sequence[float] = (5.0, 9.0),
        spacing: Sequence[float] = (2.0, 1.0, 1.0),
        clustered: float = 0.6,
        touching: float = 0.85,
        blur: Sequence[float] = (2.0, 0.8, 0.8),
        photons: float = 60.0,
        attenuation: float = 150.0,
        stripes: float = 0.15,
        offset: float = 100.0,
        read_noise: float = 3.0,
        percentiles: Sequence[float] = (1.0, 99.8),
    ) -> None:
        if not 0 <= count[0] <= count[1] or not 0 < radius[0] <= radius[1]:
            raise ValueError(f"count {list(count)} and radius {list(radius)} must be ascending and positive")
        if len(spacing) != 3 or min(spacing) <= 0 or len(blur) != 3:
            raise ValueError(f"spacing {list(spacing)} and blur {list(blur)} need three values (z, y, x)")
        if not 0 <= stripes < 1:
            raise ValueError(f"stripes is a relative depth, 0..1, got {stripes}")
        self.num_images, self.seed = num_images, seed
        size = (image_size,) * 3 if isinstance(image_size, int) else tuple(image_size)
        self.size: Size = tuple(int(length) for length in size)
        self.count, self.radius = tuple(count), tuple(radius)
        self.clustered, self.touching = clustered, touching
        self.spacing, self.blur = np.array(spacing, float), np.array(blur, float)
        self.photons, self.attenuation, self.stripes = photons, attenuation, stripes
        self.offset, self.read_noise = offset, read_noise
        self.percentiles = (float(percentiles[0]), float(percentiles[1]))
        steps = tuple(float(step) for step in spacing)
        self.metadata = Metadata("instance", 3, ("nucleus",), 1, spacing=steps, name="nuclei3d")

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} of a dataset of {self.num_images} volumes")
        volume = self.render(index)
        number = int(volume.label_map.max())
        image = volume.image[None].astype(np.float32)
        return Sample(
            image=torch.from_numpy(image),
            layers=torch.from_numpy(volume.label_map)[None],
            labels=torch.zeros(number, dtype=torch.int64),
            ignore=torch.zeros(number, dtype=torch.bool),
            spacing=self.metadata.spacing,
            source=self.source(index),
            index=index,
            intensity_range=intensity_range(image, self.percentiles),
        )

    def render(self, index: int) -> Volume:
        """Render volume ``index`` as uint16 with its truth."""
        random = np.random.default_rng((self.seed, index))
        label_map = self._nuclei(random)
        brightness = np.concatenate([[0.03], random.uniform(0.5, 1.0, int(label_map.max()))])
        signal = brightness[label_map] * self._chromatin(random)
        return Volume(self._microscope(signal, random), label_map)

    def _nuclei(self, random: np.random.Generator) -> np.ndarray:
        """Place ellipsoids; where two press into each other, a voxel goes to the one it is deeper in."""
        extent = np.array(self.size) * self.spacing
        depth = np.ones(self.size)  # squared distance from the centre, 1 at the surface
        label_map = np.zeros(self.size, np.int32)
        placed: list[tuple[np.ndarray, float]] = []
        for _ in range(int(random.integers(self.count[0], self.count[1] + 1))):
            for _attempt in range(20):
                radius = random.uniform(self.radius[0], self.radius[1])
                centre = self._centre(radius, placed, random)
                near = (np.linalg.norm(centre - other) < self.touching * (radius + r) for other, r in placed)
                inside = bool((centre >= 0).all() and (centre < extent).all())
                if inside and not any(near):
                    break
            else:
                continue
            placed.append((centre, radius))
            semi_axes = radius * random.uniform(0.8, 1.2, 3)
            rotation = _random_rotation(random)
            region, distance = self._distance(centre, semi_axes, rotation)
            closer = distance < depth[region]
            depth[region][closer] = distance[closer]
            label_map[region][closer] = len(placed)
        present = np.unique(label_map)
        table = np.zeros(len(placed) + 1, np.int32)
        table[present[present > 0]] = np.arange(1, (present > 0).sum() + 1)
        return table[label_map]

    def _centre(
        self, radius: float, placed: Sequence[tuple[np.ndarray, float]], random: np.random.Generator
    ) -> np.ndarray:
        """Draw a centre anywhere, or at the surface of an earlier nucleus."""
        anywhere = random.uniform(0, 1, 3) * np.array(self.size) * self.spacing
        if not placed or random.uniform() >= self.clustered:
            return np.asarray(anywhere)
        neighbour, its_radius = placed[int(random.integers(len(placed)))]
        direction = random.standard_normal(3)
        # A hair beyond the limit, so that rounding does not refuse it.
        reach = self.touching * (radius + its_radius) * 1.001
        return np.asarray(neighbour + reach * direction / np.linalg.norm(direction))

    def _distance(
        self, centre: np.ndarray, semi_axes: np.ndarray, rotation: np.ndarray
    ) -> tuple[tuple[slice, ...], np.ndarray]:
        """Return the region around an ellipsoid, and there the squared distance in units of its surface."""
        reach = semi_axes.max()
        first = np.maximum(np.floor((centre - reach) / self.spacing), 0).astype(int)
        last = np.minimum(np.ceil((centre + reach) / self.spacing) + 1, self.size).astype(int)
        region = tuple(slice(a, max(a, b)) for a, b in zip(first.tolist(), last.tolist(), strict=True))
        axes = [
            (np.arange(part.start, part.stop) + 0.5) * step - at
            for part, step, at in zip(region, self.spacing, centre, strict=True)
        ]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return region, np.asarray((((offsets @ rotation) / semi_axes) ** 2).sum(axis=-1))

    def _chromatin(self, random: np.random.Generator) -> np.ndarray:
        """Return a smooth field around 1 with the grain of chromatin."""
        from scipy.ndimage import gaussian_filter

        field = gaussian_filter(random.standard_normal(self.size), 1.5 / self.spacing)
        return np.asarray(np.clip(1 + 0.25 * field / (field.std() + 1e-12), 0.2, 2.0))

    def _microscope(self, signal: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return counts: blur, attenuation, stripes, photons, camera."""
        from scipy.ndimage import gaussian_filter, gaussian_filter1d

        light = gaussian_filter(signal, self.blur / self.spacing)
        if self.attenuation > 0:
            below = np.arange(self.size[0]) * self.spacing[0]
            light = light * np.exp(-below / self.attenuation)[:, None, None]
        # Absorbers in the sheet shade the whole row behind them.
        rows = gaussian_filter1d(random.standard_normal(self.size[:2]), 0.7, axis=1)
        light = light * (1 - self.stripes * np.clip(rows / (rows.std() + 1e-12), 0, 2) / 2)[:, :, None]
        counts = random.poisson(self.photons * light).astype(float)
        counts = counts + self.offset + self.read_noise * random.standard_normal(self.size)
        return np.asarray(np.clip(np.rint(counts), 0, 65535), dtype=np.uint16)


def _random_rotation(random: np.random.Generator) -> np.ndarray:
    """Return an orthogonal 3 x 3 matrix."""
    q, _ = np.linalg.qr(random.standard_normal((3, 3)))
    return np.asarray(q)

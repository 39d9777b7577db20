"""Circles, rectangles and triangles on a textured ground: 2-D instances whose truth is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.synthetic.scene import Scene, may_cover

CLASSES = ("circle", "rectangle", "triangle")


class Shapes(Dataset):
    """Shapes drawn on demand: image ``i`` depends on ``(seed, i)`` and the options alone.

    Args:
        num_images: Length of the dataset.
        seed: Seed of all images; give train and val different ones.
        image_size: Height and width in pixels, or one length for both.
        count: Fewest and most shapes that are tried per image; crowded images end up with fewer.
        radius: Smallest and largest radius of a shape's outer circle, in pixels.
        overlap: Largest share of a shape that later ones may cover; 0 keeps all apart. The truth is what is
            seen.
        noise: Standard deviation of the noise in grey levels of 255.
        texture: Amplitude of the smooth ground and of the grain within shapes, in grey levels of 255.
        contrast: Least difference of a shape's colour from the middle grey of the ground, in grey levels of
            255.
        min_area: Shapes of which fewer pixels are seen do not exist.
        aspect: Smallest and largest ratio of the short to the long side of a rectangle, in (0, 1].
        distractors: Fewest and most crosses per image that lie under the shapes and are part of the ground.
        light: Darkest and brightest exposure: the factor of all intensities of an image.
        classes: Which of circle, rectangle and triangle.
        class_shares: Share of each class among the shapes; all alike when None.
        channels: 3 for colour, 1 for grey.
        task: ``"instance"``; ``"semantic"`` with a background class in front; ``"panoptic"`` with the ground as
            a stuff class at the end.
        percentiles: Those of ``Sample.intensity_range``.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> shapes = Shapes(num_images=4, seed=0, image_size=32, radius=(4, 8))
        >>> shapes[1].image.shape, bool((shapes[1].image == shapes[1].image).all())
        (torch.Size([3, 32, 32]), True)
    """

    def __init__(
        self,
        num_images: int = 512,
        seed: int = 0,
        image_size: int | Sequence[int] = 128,
        count: Sequence[int] = (1, 8),
        radius: Sequence[float] = (8.0, 24.0),
        overlap: float = 0.2,
        noise: float = 8.0,
        texture: float = 20.0,
        contrast: float = 40.0,
        min_area: int = 20,
        aspect: Sequence[float] = (0.5, 1.0),
        distractors: Sequence[int] = (0, 0),
        light: Sequence[float] = (1.0, 1.0),
        classes: Sequence[str] = CLASSES,
        class_shares: Sequence[float] | None = None,
        channels: int = 3,
        task: Literal["instance", "semantic", "panoptic"] = "instance",
        percentiles: Sequence[float] = (1.0, 99.8),
    ) -> None:
        unknown = sorted(set(classes) - set(CLASSES))
        if unknown or not classes:
            raise ValueError(f"classes must be some of {list(CLASSES)}, got {list(classes)}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        if not 0 <= count[0] <= count[1] or not 0 < radius[0] <= radius[1]:
            raise ValueError(f"count {list(count)} and radius {list(radius)} must be ascending and positive")
        if not 0 <= overlap <= 1:
            raise ValueError(f"overlap is a share, 0..1, got {overlap}")
        _check_range("aspect", aspect, 1.0)
        _check_range("light", light)
        if not 0 <= distractors[0] <= distractors[1]:
            raise ValueError(f"distractors are fewest and most, ascending, got {list(distractors)}")
        self.num_images, self.seed = num_images, seed
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.height, self.width = (int(length) for length in size)
        self.count, self.radius, self.overlap = tuple(count), tuple(radius), overlap
        self.noise, self.texture, self.contrast, self.min_area = noise, texture, contrast, min_area
        self.aspect, self.distractors, self.light = tuple(aspect), tuple(distractors), tuple(light)
        self.class_shares = None if class_shares is None else _normalised(class_shares, len(classes))
        self.classes, self.channels = tuple(classes), channels
        self.percentiles = (float(percentiles[0]), float(percentiles[1]))
        names = {
            "instance": self.classes, "semantic": ("background", *self.classes), "panoptic": (*self.classes, "ground"),
        }[task]  # fmt: skip
        is_thing = tuple(name != "ground" for name in names) if task == "panoptic" else None
        self.metadata = Metadata(task, 2, names, channels, name="shapes", is_thing=is_thing)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} of a dataset of {self.num_images} images")
        semantic = self.metadata.task == "semantic"
        scene = self.render(index)
        if self.metadata.task == "panoptic":
            scene = scene.with_ground(len(self.classes))
        return scene.sample(self.source(index), index, semantic, self.percentiles)

    def render(self, index: int) -> Scene:
        """Draw image ``index`` as uint8 with its truth."""
        random = np.random.default_rng((self.seed, index))
        canvas = self._with_crosses(127.5 + self._ground(random), index)
        label_map = np.zeros((self.height, self.width), np.int32)
        labels: list[int] = []
        full: list[int] = []  # areas as drawn, before later shapes covered a part
        for _ in range(int(random.integers(self.count[0], self.count[1] + 1))):
            kind = self._kind(random)
            mask = self._outline(self.classes[kind], random)
            colour = self._colour(random)
            grain = 0.25 * self.texture * random.standard_normal(mask.shape)
            if not may_cover(mask, label_map, full, self.overlap, self.min_area):
                continue
            labels.append(kind)
            full.append(int(mask.sum()))
            label_map[mask] = len(labels)
            canvas = np.where(mask, colour[:, None, None] + grain, canvas)
        canvas = canvas + self.noise * random.standard_normal(canvas.shape)
        canvas = random.uniform(self.light[0], self.light[1]) * canvas
        image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
        return Scene(image, label_map, np.array(labels, np.int64))

    def _kind(self, random: np.random.Generator) -> int:
        """Draw a class."""
        if self.class_shares is None:
            return int(random.integers(len(self.classes)))
        return int(random.choice(len(self.classes), p=self.class_shares))

    def _with_crosses(self, canvas: np.ndarray, index: int) -> np.ndarray:
        """Return the ground with crosses on it; the shapes of the image are the same without them."""
        random = np.random.default_rng((self.seed, index, 1))
        for _ in range(int(random.integers(self.distractors[0], self.distractors[1] + 1))):
            mask = self._outline("cross", random)
            grain = 0.25 * self.texture * random.standard_normal(mask.shape)
            canvas = np.where(mask, self._colour(random)[:, None, None] + grain, canvas)
        return canvas

    def _ground(self, random: np.random.Generator) -> np.ndarray:
        """Return a smooth random field per channel: a few plane waves."""
        rows, columns = np.mgrid[: self.height, : self.width] / max(self.height, self.width)
        waves = np.zeros((self.channels, self.height, self.width))
        for _ in range(4):
            frequency = random.uniform(-3, 3, 2)
            phase = random.uniform(0, 2 * math.pi, (self.channels, 1, 1))
            waves += np.sin(2 * math.pi * (frequency[0] * rows + frequency[1] * columns) + phase)
        return self.texture * 0.5 * waves

    def _colour(self, random: np.random.Generator) -> np.ndarray:
        """Draw a colour that at least one channel tells from the ground."""
        colour = random.uniform(0, 255, self.channels)
        strongest = int(np.abs(colour - 127.5).argmax())
        away = colour[strongest] - 127.5
        if abs(away) < self.contrast:
            colour[strongest] = 127.5 + math.copysign(self.contrast, away)
        return colour

    def _outline(self, kind: str, random: np.random.Generator) -> np.ndarray:
        """Draw place, size and turn of a shape; return its mask. All kinds draw the same numbers."""
        radius = random.uniform(self.radius[0], self.radius[1])
        centre = random.uniform(0, 1, 2) * (self.height - 1, self.width - 1)
        angle = random.uniform(0, 2 * math.pi)
        aspect = random.uniform(self.aspect[0], self.aspect[1])
        rows, columns = np.mgrid[: self.height, : self.width]
        down, right = rows - centre[0], columns - centre[1]
        along = math.cos(angle) * right + math.sin(angle) * down
        across = math.cos(angle) * down - math.sin(angle) * right
        if kind == "circle":
            inside = along**2 + across**2 <= radius**2
        elif kind == "rectangle":
            half_length = radius / math.hypot(1, aspect)
            inside = (np.abs(along) <= half_length) & (np.abs(across) <= aspect * half_length)
        elif kind == "cross":
            arms = np.minimum(np.abs(along), np.abs(across)) <= radius / 4
            inside = arms & (np.maximum(np.abs(along), np.abs(across)) <= radius)
        else:  # an equilateral triangle: three half-planes at half the radius of its outer circle
            third = math.sqrt(3) / 2
            inside = (-along <= radius / 2) & (np.abs(across) * third + along / 2 <= radius / 2)
        return np.asarray(inside)


def _check_range(name: str, values: Sequence[float], most: float = math.inf) -> None:
    if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
        limit = "" if math.isinf(most) else f", {most:g} at most"
        raise ValueError(f"{name} must be an ascending pair of positive numbers{limit}, got {list(values)}")


def _normalised(shares: Sequence[float], count: int) -> np.ndarray:
    values = np.array(shares, dtype=np.float64)
    if values.shape != (count,) or not (values >= 0).all() or not values.sum() > 0:
        raise ValueError(f"class_shares are {count} numbers of 0 or above, not all 0, got {list(shares)}")
    return np.asarray(values / values.sum())

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
        classes: Which of circle, rectangle and triangle.
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
        classes: Sequence[str] = CLASSES,
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
        self.num_images, self.seed = num_images, seed
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.height, self.width = (int(length) for length in size)
        self.count, self.radius, self.overlap = tuple(count), tuple(radius), overlap
        self.noise, self.texture, self.contrast, self.min_area = noise, texture, contrast, min_area
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
        canvas = 127.5 + self._ground(random)
        label_map = np.zeros((self.height, self.width), np.int32)
        labels: list[int] = []
        full: list[int] = []  # areas as drawn, before later shapes covered a part
        for _ in range(int(random.integers(self.count[0], self.count[1] + 1))):
            kind = int(random.integers(len(self.classes)))
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
        image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
        return Scene(image, label_map, np.array(labels, np.int64))

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
        aspect = random.uniform(0.5, 1.0)
        rows, columns = np.mgrid[: self.height, : self.width]
        down, right = rows - centre[0], columns - centre[1]
        along = math.cos(angle) * right + math.sin(angle) * down
        across = math.cos(angle) * down - math.sin(angle) * right
        if kind == "circle":
            inside = along**2 + across**2 <= radius**2
        elif kind == "rectangle":
            half_length = radius / math.hypot(1, aspect)
            inside = (np.abs(along) <= half_length) & (np.abs(across) <= aspect * half_length)
        else:  # an equilateral triangle: three half-planes at half the radius of its outer circle
            third = math.sqrt(3) / 2
            inside = (-along <= radius / 2) & (np.abs(across) * third + along / 2 <= radius / 2)
        return np.asarray(inside)

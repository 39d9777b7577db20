"""Several digits on one picture: ten classes that differ in form alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata, Task
from pixvox.data.sample import Sample
from pixvox.data.synthetic.glyphs import FontGlyphs, Glyphs, MnistGlyphs
from pixvox.data.synthetic.scene import Scene, may_cover

CLASSES = tuple("0123456789")

_TRIES = 20


class Digits(Dataset):
    """Digits composed on demand: image ``i`` depends on ``(seed, i)`` and the options alone.

    Args:
        num_images: Length of the dataset.
        seed: Seed of all images; give train and val different ones.
        image_size: Height and width in pixels, or one length for both.
        count: Fewest and most digits per image; where an image is full there are fewer.
        digit_size: Smallest and largest height of a digit in pixels.
        overlap: Largest share of a digit that later ones may cover; 0 keeps all apart.
        noise: Standard deviation of the noise in grey levels of 255.
        mnist: Folder of MNIST, for handwritten digits; None for those of a font, which need no file.
        mnist_train: Take MNIST's training digits, otherwise its test digits.
        download: Fetch MNIST when the folder lacks it.
        min_area: Digits of which fewer pixels are seen do not exist.
        task: ``"instance"``, or ``"semantic"`` with a background class in front.
        percentiles: Those of ``Sample.intensity_range``.

    Raises:
        DataError: If MNIST is asked for and cannot be read.
        ValueError: If an option is out of range.

    Example:
        >>> digits = Digits(num_images=4, seed=0)
        >>> digits[1].image.shape, 2 <= len(digits[1].labels) <= 5
        (torch.Size([1, 64, 64]), True)
    """

    def __init__(
        self,
        num_images: int = 2000,
        seed: int = 0,
        image_size: int | Sequence[int] = 64,
        count: Sequence[int] = (2, 5),
        digit_size: Sequence[int] = (14, 24),
        overlap: float = 0.1,
        noise: float = 4.0,
        mnist: str | Path | None = None,
        mnist_train: bool = True,
        download: bool = False,
        min_area: int = 12,
        task: Task = "instance",
        percentiles: Sequence[float] = (1.0, 99.8),
    ) -> None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.height, self.width = (int(length) for length in size)
        if not 0 <= count[0] <= count[1]:
            raise ValueError(f"count {list(count)} must be ascending, from 0 up")
        if not 4 <= digit_size[0] <= digit_size[1] <= min(self.height, self.width):
            raise ValueError(
                f"digit_size {list(digit_size)} must be ascending, from 4 to the image's {self.height} x {self.width}"
            )
        if not 0 <= overlap <= 1:
            raise ValueError(f"overlap is a share, 0..1, got {overlap}")
        self.num_images, self.seed = num_images, seed
        self.count, self.digit_size, self.overlap = tuple(count), tuple(digit_size), overlap
        self.noise, self.min_area = noise, min_area
        self.glyphs: Glyphs = FontGlyphs() if mnist is None else MnistGlyphs(mnist, mnist_train, download)
        self.classes, self.channels = CLASSES, 1
        self.percentiles = (float(percentiles[0]), float(percentiles[1]))
        names = CLASSES if task == "instance" else ("background", *CLASSES)
        self.metadata = Metadata(task, 2, names, 1, name="digits")

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} of a dataset of {self.num_images} images")
        semantic = self.metadata.task == "semantic"
        return self.render(index).sample(self.source(index), index, semantic, self.percentiles)

    def render(self, index: int) -> Scene:
        """Compose image ``index`` as uint8 with its truth: what is seen of each digit."""
        random = np.random.default_rng((self.seed, index))
        canvas = np.zeros((self.height, self.width))
        label_map = np.zeros((self.height, self.width), np.int32)
        labels: list[int] = []
        full: list[int] = []
        wanted = int(random.integers(self.count[0], self.count[1] + 1))
        for _ in range(_TRIES * wanted):
            if len(labels) == wanted:
                break
            digit = int(random.integers(10))
            height = int(random.integers(self.digit_size[0], self.digit_size[1] + 1))
            ink = self.glyphs.draw(digit, height, random)[:, : self.width]
            top = int(random.integers(self.height - ink.shape[0] + 1))
            left = int(random.integers(self.width - ink.shape[1] + 1))
            place = (slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
            brightness = random.uniform(0.6, 1.0)
            mask = np.zeros(label_map.shape, bool)
            mask[place] = ink > 0.5
            if not may_cover(mask, label_map, full, self.overlap, self.min_area):
                continue
            labels.append(digit)
            full.append(int(mask.sum()))
            label_map[mask] = len(labels)
            # Ink is opaque: a later digit hides an earlier one where it is written.
            canvas[place] = ink * brightness + (1 - ink) * canvas[place]
        grey = 255 * canvas + self.noise * random.standard_normal(canvas.shape)
        image = np.clip(np.rint(grey), 0, 255).astype(np.uint8)[None]
        return Scene(image, label_map, np.array(labels, np.int64))

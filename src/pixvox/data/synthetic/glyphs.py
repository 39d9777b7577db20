"""Single digits: printed by a font, or written by hand (MNIST)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pixvox.errors import DataError

_RENDERED = 48
"""Height in pixels at which a font is drawn before it is warped and made smaller."""


class Glyphs(Protocol):
    """A source of pictures of digits."""

    def draw(self, digit: int, height: int, random: np.random.Generator) -> np.ndarray:
        """Return one picture of ``digit``: ink in 0..1, cut to its box, ``height`` pixels high."""


class FontGlyphs:
    """Digits of Pillow's own font, each turned, slanted, stretched and thickened at random; needs no file.

    Args:
        rotation: Largest turn to either side in degrees.
        slant: Largest shear to either side, in columns per row.
        stretch: Narrowest and widest factor of the width.
        thickness: Most pixels added to either side of a stroke, at 48 pixels of height.
    """

    def __init__(
        self,
        rotation: float = 20.0,
        slant: float = 0.3,
        stretch: tuple[float, float] = (0.8, 1.3),
        thickness: int = 3,
    ) -> None:
        from PIL import ImageFont

        self.font = ImageFont.load_default(size=_RENDERED)
        self.rotation, self.slant, self.stretch, self.thickness = rotation, slant, stretch, thickness

    def draw(self, digit: int, height: int, random: np.random.Generator) -> np.ndarray:
        """Return one picture of ``digit``: ink in 0..1, cut to its box, ``height`` pixels high."""
        from PIL import Image, ImageDraw

        side = 3 * _RENDERED
        page = Image.new("L", (side, side))
        stroke = int(random.integers(self.thickness + 1))
        ImageDraw.Draw(page).text(
            (side / 2, side / 2), str(digit), fill=255, font=self.font, anchor="mm", stroke_width=stroke
        )
        angle = math.radians(random.uniform(-self.rotation, self.rotation))
        slant, width = random.uniform(-self.slant, self.slant), random.uniform(*self.stretch)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = np.linalg.inv(turn @ np.array([[width, slant], [0.0, 1.0]]))  # from the result to the page
        shift = side / 2 - matrix @ np.full(2, side / 2)
        warped = page.transform(
            (side, side),
            Image.Transform.AFFINE,
            (*matrix[0], shift[0], *matrix[1], shift[1]),
            Image.Resampling.BILINEAR,
        )
        return _at_height(np.asarray(warped), height)


class MnistGlyphs:
    """Handwritten digits.

    "Gradient-based learning applied to document recognition" (LeCun et al., 1998,
    http://yann.lecun.com/exdb/mnist).

    Args:
        root: Folder that holds, or is to hold, ``MNIST/raw/train-images-idx3-ubyte`` and the other three files.
        train: The 60,000 digits for training, otherwise the 10,000 for testing.
        download: Fetch them when they are missing (11 MB, sums checked); otherwise that is an error.

    Raises:
        DataError: If the files are missing or damaged.
    """

    def __init__(self, root: str | Path, train: bool = True, download: bool = False) -> None:
        from torchvision.datasets import MNIST

        from pixvox.data.download import locked

        root = Path(root)
        if download:
            root.mkdir(parents=True, exist_ok=True)
            with locked(root / "MNIST"):
                mnist = self._open(MNIST, root, train, download)
        else:
            mnist = self._open(MNIST, root, train, download)
        self.pictures = mnist.data.numpy()
        targets = mnist.targets.numpy()
        self.of_digit = [np.flatnonzero(targets == digit) for digit in range(10)]
        lacking = [digit for digit, places in enumerate(self.of_digit) if not len(places)]
        if len(targets) != len(self.pictures) or lacking:
            raise DataError(
                f"{root}: MNIST is incomplete: no picture of {lacking}; remove MNIST/ and fetch it again"
            )

    @staticmethod
    def _open(kind: Any, root: Path, train: bool, download: bool) -> Any:
        try:
            return kind(root, train=train, download=download)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            repair = (
                "remove MNIST/ there and try again"
                if download
                else "give download=true, or put the files there"
            )
            raise DataError(f"{root} holds no MNIST that can be read: {error}; {repair}") from error

    def draw(self, digit: int, height: int, random: np.random.Generator) -> np.ndarray:
        """Return one picture of ``digit``: ink in 0..1, cut to its box, ``height`` pixels high."""
        places = self.of_digit[digit]
        return _at_height(self.pictures[places[int(random.integers(len(places)))]], height)


def _at_height(picture: np.ndarray, height: int) -> np.ndarray:
    """Cut uint8 ink to its box and resize it; the aspect stays."""
    from PIL import Image

    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    if not len(rows):
        return np.zeros((height, 1))
    cut = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    width = max(1, round(height * cut.shape[1] / cut.shape[0]))
    resized = Image.fromarray(cut).resize(
        (width, height), Image.Resampling.BOX if height < cut.shape[0] else 2
    )
    return np.asarray(resized) / 255.0

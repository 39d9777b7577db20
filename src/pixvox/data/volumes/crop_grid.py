"""Where crops of one size lie in a volume or slide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from pixvox.data.readers.regions import Index
from pixvox.errors import ConfigError


class CropGrid(Sequence[Index]):
    """Crops on a grid from the middle out, numbered in array order.

    What crops do not fill is left over at both ends of y and x alike, because optics are best on their axis, and at
    the far end of z, because light falls off with depth. An axis that is shorter than a crop is taken whole.

    Args:
        size: Lengths of the volume in array order.
        crop_size: Lengths of a crop in array order, in pixels or voxels.
        overlap: Share of a crop that the next one along an axis has, too, in [0, 1).
        cover: Take one crop more along an axis where something would be left over, spread evenly: every voxel is then
            in a crop.

    Raises:
        ConfigError: If the lengths do not fit the volume, or the overlap is out of range.

    Example:
        >>> grid = CropGrid((5, 11, 8), (2, 4, 8))
        >>> grid.counts, len(grid), [part.start for part in grid[1]]
        ((2, 2, 1), 4, [0, 5, 0])
        >>> CropGrid((5, 11, 8), (2, 4, 8), cover=True).starts
        ((0, 1, 3), (0, 3, 7), (0,))
    """

    def __init__(
        self, size: Sequence[int], crop_size: Sequence[int], overlap: float = 0.0, cover: bool = False
    ) -> None:
        if len(crop_size) != len(size) or min(crop_size) < 1:
            raise ConfigError(
                f"crops of {list(crop_size)} do not fit a volume of {list(size)}; give a length above 0 for each of "
                f"its {len(size)} axes, in array order"
            )
        if not 0 <= overlap < 1:
            raise ConfigError(
                f"the overlap of crops is the share of a crop that the next one has, too, in [0, 1); got {overlap}"
            )
        self.size = tuple(size)
        self.crop_size = tuple(min(crop, length) for crop, length in zip(crop_size, self.size, strict=True))
        in_plane = len(self.size) - 2
        self.starts = tuple(
            _starts(length, crop, max(1, crop - round(crop * overlap)), cover, centred=axis >= in_plane)
            for axis, (length, crop) in enumerate(zip(self.size, self.crop_size, strict=True))
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of crops along each axis."""
        return tuple(len(starts) for starts in self.starts)

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __getitem__(self, number: int) -> Index:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.at(tuple(int(place) for place in np.unravel_index(number, self.counts)))

    def at(self, place: Sequence[int]) -> Index:
        """Return the region of the crop at a place of the grid."""
        starts = (axis[position] for axis, position in zip(self.starts, place, strict=True))
        return tuple(slice(start, start + crop) for start, crop in zip(starts, self.crop_size, strict=True))

    def blocks(self, max_voxels: int) -> list[Index]:
        """Return blocks of places, each to be read at once, that hold all crops.

        Args:
            max_voxels: What the region of a block may hold, unless one crop holds more.

        Example:
            >>> CropGrid((4, 12), (4, 4)).blocks(max_voxels=40)
            [(slice(0, 1, None), slice(0, 2, None)), (slice(0, 1, None), slice(2, 3, None))]
        """
        together = [1] * len(self.size)
        for axis in reversed(range(len(self.size))):  # values of a row lie together
            rest = math.prod(self._reach(other, n) for other, n in enumerate(together) if other != axis)
            while (
                together[axis] < self.counts[axis]
                and self._reach(axis, together[axis] + 1) * rest <= max_voxels
            ):
                together[axis] += 1
        parts = [
            [slice(first, min(first + step, count)) for first in range(0, count, step)]
            for step, count in zip(together, self.counts, strict=True)
        ]
        return list(product(*parts))

    def region_of(self, block: Index) -> Index:
        """Return the region that holds the crops of a block."""
        return tuple(
            slice(first.start, last.stop)
            for first, last in zip(
                self.at([part.start for part in block]),
                self.at([part.stop - 1 for part in block]),
                strict=True,
            )
        )

    def crops_of(self, block: Index) -> Iterator[tuple[int, Index]]:
        """Yield number and region of each crop of a block."""
        for place in product(*(range(part.start, part.stop) for part in block)):
            yield int(np.ravel_multi_index(place, self.counts)), self.at(place)

    def _reach(self, axis: int, count: int) -> int:
        """Return the length of the first so many crops along an axis."""
        return self.starts[axis][count - 1] + self.crop_size[axis] - self.starts[axis][0]


def _starts(length: int, crop: int, step: int, cover: bool, centred: bool) -> tuple[int, ...]:
    """Return where the crops along an axis begin."""
    count = (length - crop) // step + 1
    filled = crop + (count - 1) * step
    if cover and filled < length:
        return tuple((length - crop) * place // count for place in range(count + 1))
    first = (length - filled) // 2 if centred else 0
    return tuple(first + place * step for place in range(count))

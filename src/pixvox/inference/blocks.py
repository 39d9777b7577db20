"""How a volume or slide is cut for prediction: blocks that fill it, the margins they share, the windows a network sees.

Blocks do not overlap: each voxel of the result belongs to one. A block keeps what its network says within a margin
around it, too, so that neighbours can be compared where both have seen the same place. The network itself sees the
whole window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from pixvox.errors import ConfigError
from pixvox.structures import Size

Region = tuple[slice, ...]


@dataclass(frozen=True)
class Block:
    """One block.

    Args:
        number: Its place in the order of all blocks.
        place: Its place on the grid of blocks, in array order.
        core: What it alone decides on.
        kept: The core and the margin around it, as far as the volume reaches.
        window: What its network sees.
    """

    number: int
    place: tuple[int, ...]
    core: Region
    kept: Region
    window: Region

    @property
    def size(self) -> Size:
        """Lengths of ``kept``."""
        return tuple(part.stop - part.start for part in self.kept)


class Blocks(Sequence[Block]):
    """Blocks on a grid, in the order of their places.

    Args:
        size: Of the volume or image, in array order.
        tile_size: Lengths of a window; along an axis on which the volume is shorter, it is the volume's.
        overlap: Share of a window that lies in margins, in [0, 0.5]; half of it on either side.
        divisor: Windows begin at its multiples where they are long enough for that, per axis in array order; as
            ``Segmenter.size_divisor``.

    Raises:
        ConfigError: If the overlap is out of range, or a window is too short for it.

    Example:
        >>> blocks = Blocks((10, 36), tile_size=(16, 16), overlap=0.25)
        >>> [(block.core[1], block.kept[1], block.window[1]) for block in blocks]  # doctest: +NORMALIZE_WHITESPACE
        [(slice(0, 12, None), slice(0, 14, None), slice(0, 16, None)),
         (slice(12, 24, None), slice(10, 26, None), slice(10, 26, None)),
         (slice(24, 36, None), slice(22, 36, None), slice(20, 36, None))]
    """

    def __init__(
        self,
        size: Sequence[int],
        tile_size: Sequence[int],
        overlap: float = 0.25,
        divisor: Sequence[int] | None = None,
    ) -> None:
        if not 0 <= overlap <= 0.5:
            raise ConfigError(
                f"the overlap of blocks is the share of a tile that lies in its margins, in [0, 0.5]; got {overlap}"
            )
        self.size = tuple(size)
        self.axes = [
            _Axis.of(length, tile, overlap, align)
            for length, tile, align in zip(size, tile_size, divisor or (1,) * len(self.size), strict=True)
        ]
        self.grid = tuple(axis.count for axis in self.axes)

    @property
    def length(self) -> Size:
        """Lengths of a block; the last along an axis may be shorter."""
        return tuple(axis.length for axis in self.axes)

    @property
    def margin(self) -> Size:
        """Lengths of the margins."""
        return tuple(axis.margin for axis in self.axes)

    def __len__(self) -> int:
        return math.prod(self.grid)

    def __getitem__(self, number: int) -> Block:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        place, rest = [], number
        for count in reversed(self.grid):
            place.append(rest % count)
            rest //= count
        return self.at(tuple(reversed(place)))

    def at(self, place: tuple[int, ...]) -> Block:
        """Return the block at a place of the grid."""
        number = 0
        for position, count in zip(place, self.grid, strict=True):
            number = number * count + position
        parts = list(zip(self.axes, place, strict=True))
        return Block(
            number=number,
            place=place,
            core=tuple(axis.core(position) for axis, position in parts),
            kept=tuple(axis.kept(position) for axis, position in parts),
            window=tuple(axis.window(position) for axis, position in parts),
        )

    def neighbours(self, block: Block) -> Iterator[Block]:
        """Yield the blocks around one, those at its corners, too, in their order."""
        for step in product((-1, 0, 1), repeat=len(self.grid)):
            place = tuple(position + move for position, move in zip(block.place, step, strict=True))
            inside = all(0 <= position < count for position, count in zip(place, self.grid, strict=True))
            if any(step) and inside:
                yield self.at(place)

    def next_along(self, block: Block, axis: int) -> Block | None:
        """Return the block behind one along an axis; None at the end."""
        if block.place[axis] + 1 == self.grid[axis]:
            return None
        return self.at(tuple(position + (i == axis) for i, position in enumerate(block.place)))

    def shares(self, block: Block) -> list[Float[np.ndarray, " kept"]]:
        """Return how much a block counts at what it keeps, along each axis; all blocks together count 1.

        A weight falls along the margins on both sides of a border, where a network knows least, and the weight of the
        neighbour rises. The weight of a voxel is the product of its weights along the axes.
        """
        return [axis.share(position) for axis, position in zip(self.axes, block.place, strict=True)]

    def shared(self, first: Block, second: Block) -> Region:
        """Return what two blocks next to each other both keep."""
        return tuple(
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(first.kept, second.kept, strict=True)
        )


@dataclass(frozen=True)
class _Axis:
    """Blocks along one axis: ``count`` of ``length``, the last one shorter."""

    size: int
    tile: int
    length: int
    margin: int
    align: int

    @classmethod
    def of(cls, size: int, tile: int, overlap: float, align: int) -> _Axis:
        if tile < 1:
            raise ConfigError(f"a tile must be at least 1 long along every axis, got {tile}")
        if size <= tile:
            return cls(size, size, size, 0, 1)
        least = max(math.floor(tile * overlap / 2), 1 if overlap and tile >= 4 else 0)
        margin = _up(least, align)
        if tile - 2 * margin < max(align, 2 * margin):  # too short for aligned margins
            align, margin = 1, least
        longest = (tile - 2 * margin) // align * align
        at_ends = (tile - margin) // align * align  # a block at an end of the volume has one margin
        count = 2 if size <= 2 * at_ends else math.ceil(size / longest)
        return cls(size, tile, _up(math.ceil(size / count), align), margin, align)

    @property
    def count(self) -> int:
        return math.ceil(self.size / self.length)

    def core(self, position: int) -> slice:
        start = position * self.length
        return slice(start, min(start + self.length, self.size))

    def kept(self, position: int) -> slice:
        core = self.core(position)
        return slice(max(0, core.start - self.margin), min(core.stop + self.margin, self.size))

    def share(self, position: int) -> npt.NDArray[np.float32]:
        kept = self.kept(position)
        total = np.zeros(kept.stop - kept.start)
        for other in range(max(0, position - 1), min(self.count, position + 2)):
            near = self.kept(other)
            both = slice(max(kept.start, near.start), min(kept.stop, near.stop))
            if both.start < both.stop:
                total[both.start - kept.start : both.stop - kept.start] += self._ramp(other, both)
        return (self._ramp(position, kept) / total).astype(np.float32)

    def _ramp(self, position: int, part: slice) -> npt.NDArray[np.float64]:
        """Return weights that rise from the beginning of the low margin and fall to the end of the high one."""
        core, places = self.core(position), np.arange(part.start, part.stop) + 0.5
        ramp = np.ones(len(places))
        if core.start > 0 and self.margin:
            ramp = np.minimum(ramp, (places - (core.start - self.margin)) / (2 * self.margin))
        if core.stop < self.size and self.margin:
            ramp = np.minimum(ramp, (core.stop + self.margin - places) / (2 * self.margin))
        return ramp

    def window(self, position: int) -> slice:
        last = _up(self.size - self.tile, self.align)
        start = min(self.kept(position).start, last)
        return slice(start, min(start + self.tile, self.size))


def within(region: Region, frame: Region) -> Region:
    """Return a region of the volume as a region of a part of it.

    Example:
        >>> within((slice(8, 12),), (slice(6, 20),))
        (slice(2, 6, None),)
    """
    return tuple(
        slice(part.start - base.start, part.stop - base.start)
        for part, base in zip(region, frame, strict=True)
    )


def intersection(first: Region, second: Region) -> Region | None:
    """Return what two regions have in common; None for nothing.

    Example:
        >>> intersection((slice(0, 4),), (slice(2, 9),)), intersection((slice(0, 4),), (slice(4, 9),))
        ((slice(2, 4, None),), None)
    """
    common = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True)
    )
    return common if all(part.start < part.stop for part in common) else None


def _up(length: int, align: int) -> int:
    return math.ceil(length / align) * align

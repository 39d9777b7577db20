"""Every few voxels of a volume that may be larger than memory: as many as a screen can show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from pixvox.data.volumes.open import open_level
from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError
from pixvox.progress import progress

BLOCK_BYTES = 64 * 2**20
"""Values that are read at once, unless one chunk is larger."""


def steps_for(size: Sequence[int], most: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest steps with which no axis has more voxels than it may.

    Args:
        size: Lengths in array order.
        most: Largest number of voxels along each axis.

    Example:
        >>> steps_for((64, 600, 800), (128, 512, 512))
        (1, 2, 2)
    """
    return tuple(-(-length // limit) for length, limit in zip(size, most, strict=True))


def thinned(volume: Volume, steps: Sequence[int]) -> Shaped[np.ndarray, "channels *fewer"]:
    """Return every few voxels of a volume: those at 0, step, 2 * step, ... of each axis.

    They are read from the coarsest level of a pyramid that has enough of them, block by block. Where a step is not a
    multiple of the level's, the voxel in front of the one that is meant stands for it.

    Args:
        volume: What is read.
        steps: Distance of the voxels that are kept, per axis in array order.

    Raises:
        DataError: If what holds the values is damaged.

    Example:
        >>> from pixvox.data.volumes.open import open_volume
        >>> thinned(open_volume(np.arange(20).reshape(4, 5), spatial_dims=2), (2, 3)).tolist()
        [[[0, 3], [10, 13]]]
    """
    level, factors, _ = sufficient_level(volume, steps)
    positions = [
        np.minimum(np.arange(0, length, step) // factor, coarse - 1)
        for length, step, factor, coarse in zip(volume.size, steps, factors, level.size, strict=True)
    ]
    values = np.empty((level.channels, *map(len, positions)), level.dtype)
    lengths = _block_lengths(level, positions)
    parts = [_parts(along, length) for along, length in zip(positions, lengths, strict=True)]
    places = itertools.product(*parts)
    for place in progress(places, math.prod(map(len, parts)), f"reading {volume.source}"):
        wanted = [along[part] for along, part in zip(positions, place, strict=True)]
        block = level.read([slice(int(along[0]), int(along[-1]) + 1) for along in wanted])
        values[(slice(None), *place)] = block[
            np.ix_(range(level.channels), *(along - along[0] for along in wanted))
        ]
    return values


class Level(NamedTuple):
    """A level of a pyramid.

    Args:
        volume: Its voxels.
        factors: How far apart they are, in voxels of the finest level.
        number: Of the level, 0 is the finest.
    """

    volume: Volume
    factors: tuple[int, ...]
    number: int


def sufficient_level(volume: Volume, steps: Sequence[int]) -> Level:
    """Return the coarsest level whose voxels are no further apart than the steps."""
    chosen = Level(volume, (1,) * len(volume.size), 0)
    for number, level in enumerate(_coarser_levels(volume), start=1):
        factors = tuple(round(fine / coarse) for fine, coarse in zip(volume.size, level.size, strict=True))
        if all(1 <= factor <= step for factor, step in zip(factors, steps, strict=True)):
            chosen = Level(level, factors, number)
    return chosen


def _coarser_levels(volume: Volume) -> Iterator[Volume]:
    """Yield the levels of the file below the finest; none of what has no levels."""
    for number in itertools.count(1):
        try:
            yield open_level(volume, number)
        except DataError:  # there are no more
            return


def _block_lengths(volume: Volume, positions: Sequence[npt.NDArray[np.int64]]) -> list[int]:
    """Return lengths of blocks: whole chunks, rows first, and planes in between only where all planes are wanted."""
    lengths = list(map(min, volume.chunks or (1,) * len(volume.size), volume.size))
    voxel = volume.channels * volume.dtype.itemsize
    for axis in reversed(range(len(lengths))):
        if axis == 0 and len(positions[0]) < volume.size[0]:
            break
        room = BLOCK_BYTES // (math.prod(lengths) * voxel)
        lengths[axis] = min(volume.size[axis], lengths[axis] * max(1, room))
    return lengths


def _parts(positions: npt.NDArray[np.int64], length: int) -> list[slice]:
    """Cut ascending positions where blocks of a length begin."""
    starts = np.flatnonzero(np.diff(positions // length, prepend=-1))
    ends = [*starts[1:], len(positions)]
    return [slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]

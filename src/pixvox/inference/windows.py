"""Regions of volumes as models take them, and the range of intensities they are normalised by."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import intensity_range, subsample_step
from pixvox.inference.blocks import Region, within
from pixvox.inference.inputs import model_channels

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume

log = logging.getLogger("pixvox")

_SEEN = 2**26
"""Values of a volume that are looked at for its range of intensities."""

_PART = 2**20
"""Values of these that are read at a time."""


def window_of(volume: Volume, region: Region, in_channels: int) -> np.ndarray:
    """Return a region of a volume as a model takes it: its channels, float32; what is no number is the lowest one."""
    return _finite_window(volume, region, in_channels)[0]


def _finite_window(volume: Volume, region: Region, in_channels: int) -> tuple[np.ndarray, int]:
    """Return what ``window_of`` does, and how many of the values are no numbers."""
    values = model_channels(volume.read(region), in_channels, volume.source).astype(np.float32)
    finite = np.isfinite(values)
    bad = values.size - int(finite.sum())
    if bad:
        values = np.where(finite, values, values[finite].min() if finite.any() else np.float32(0))
    return np.ascontiguousarray(values, dtype=np.float32), bad


def volume_range(volume: Volume, in_channels: int) -> Float[Tensor, "channels 2"]:
    """Return the low and high percentile of each channel, of a large volume from regions all over it.

    It is that of ``pixvox.data.sample.intensity_range`` of these regions together, of which memory holds a part at a
    time. A volume that holds values that are no numbers, or nearly only one value, is told.

    Args:
        volume: Read whole up to 67 million values, otherwise a region here and there.
        in_channels: Channels that the model takes.
    """
    regions = _spread_regions(volume.size, volume.chunks, max(1, _SEEN // volume.channels))
    total = sum(math.prod(part.stop - part.start for part in region) for region in regions)
    step = subsample_step(total)
    seen, passed, bad = [], 0, 0
    for region in regions:
        size = [part.stop - part.start for part in region]
        for part in _parts(region, volume.chunks, max(1, _PART // volume.channels)):
            corner = within(part, region)
            places = np.ravel_multi_index(np.ogrid[corner], size)
            values, missed = _finite_window(volume, part, in_channels)
            bad += missed
            seen.append(values[:, (passed + places) % step == 0])
        passed += math.prod(size)
    limits = intensity_range(np.concatenate(seen, axis=1), max_elements=total)
    if bad:
        log.warning(
            "%s holds values that are no numbers, %d where it was looked at; they are taken for the lowest around them",
            volume.source,
            bad,
        )
    if bool((limits[:, 0] == limits[:, 1]).all()):
        log.warning("%s has no contrast: it is %g nearly everywhere", volume.source, float(limits[0, 0]))
    return limits


def _parts(region: Region, chunks: Sequence[int] | None, most: int) -> Iterator[Region]:
    """Cut a region into parts of whole chunks and at most so many voxels, unless a chunk has more."""
    size = [part.stop - part.start for part in region]
    lengths = list(map(min, chunks or (1,) * len(size), size))
    for axis in reversed(range(len(size))):
        room = most // math.prod(lengths)
        lengths[axis] = min(size[axis], lengths[axis] * max(1, room))
    starts = [range(part.start, part.stop, step) for part, step in zip(region, lengths, strict=True)]
    for corner in product(*starts):
        ends = zip(corner, lengths, region, strict=True)
        yield tuple(slice(start, min(start + step, part.stop)) for start, step, part in ends)


def _spread_regions(size: Sequence[int], chunks: Sequence[int] | None, most: int) -> list[Region]:
    """Return regions that are spread evenly and hold at most so many voxels, or one."""
    if math.prod(size) <= most:
        return [tuple(slice(0, length) for length in size)]
    sides = [min(length, chunk) for length, chunk in zip(size, chunks or (64,) * len(size), strict=True)]
    while math.prod(sides) > most // 8:  # at least eight regions
        longest = sides.index(max(sides))
        sides[longest] = max(1, sides[longest] // 2)
    counts = [math.ceil(length / side) for length, side in zip(size, sides, strict=True)]
    number = min(math.prod(counts), most // math.prod(sides))
    chosen = np.unique(np.linspace(0, math.prod(counts) - 1, number).round().astype(np.int64))
    return [
        tuple(
            slice(int(i) * side, min((int(i) + 1) * side, length))
            for i, side, length in zip(place, sides, size, strict=True)
        )
        for place in np.stack(np.unravel_index(chosen, counts), axis=1)
    ]

"""Regions of volumes as models take them, and the range of intensities they are normalised by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import intensity_range
from pixvox.inference.blocks import Region
from pixvox.inference.inputs import model_channels

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume

_SEEN = 2**26
"""Values of a volume that are looked at for its range of intensities."""


def window_of(volume: Volume, region: Region, in_channels: int) -> np.ndarray:
    """Return a region of a volume as a model takes it: its channels, float32, finite."""
    values = model_channels(volume.read(region), in_channels, volume.source).astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, values[finite].min(initial=0.0) if finite.any() else 0.0)
    return np.ascontiguousarray(values, dtype=np.float32)


def volume_range(volume: Volume, in_channels: int) -> Float[Tensor, "channels 2"]:
    """Return the low and high percentile of each channel, of a large volume from regions all over it.

    Args:
        volume: Read whole up to 67 million values, otherwise a region here and there.
        in_channels: Channels that the model takes.
    """
    regions = _spread_regions(volume.size, volume.chunks, max(1, _SEEN // volume.channels))
    parts = [window_of(volume, region, in_channels).reshape(in_channels, -1) for region in regions]
    return intensity_range(np.concatenate(parts, axis=1))


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

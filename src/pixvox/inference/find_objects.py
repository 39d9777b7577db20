"""The work on one block: read its window, let a model look at it, keep the objects it found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import Sample, intensity_range
from pixvox.inference.blocks import Block, Blocks, Region, within
from pixvox.inference.inputs import model_channels
from pixvox.inference.tile_objects import TileObjects
from pixvox.inference.tile_store import TileStore

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor

_SEEN = 2**26
"""Values of a volume that are looked at for its range of intensities."""


@dataclass
class FindObjects:
    """Finds the objects of blocks and keeps them in a store; it can be sent to other processes.

    Args:
        volume: What is segmented.
        blocks: Of the volume.
        store: Where objects are kept.
        predictor: Segments windows.
        limits: Range of intensities of the volume, per channel.
    """

    volume: Volume
    blocks: Blocks
    store: TileStore
    predictor: Predictor
    limits: Float[Tensor, "channels 2"]

    def __call__(self, block: Block) -> None:
        """Find the objects of a block."""
        window = Sample(
            image=torch.from_numpy(window_of(self.volume, block.window, self.predictor.model.in_channels)),
            spacing=self.volume.spacing,
            unit=self.volume.unit,
            source=self.volume.source,
            intensity_range=self.limits,
        )
        tile = TileObjects.of(self.predictor.predict_samples([window])[0], block, self.blocks)
        missing = self.volume.missing(block.kept)
        if missing is not None:
            tile = tile.without(missing, block, self.blocks)
        self.store.save(block, tile.label_map, **tile.columns())


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

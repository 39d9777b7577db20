"""The work on one block: read its window, let a model look at it, keep the objects it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.inference.blocks import Block, Blocks
from pixvox.inference.tile_objects import TileObjects
from pixvox.inference.tile_store import TileStore
from pixvox.inference.windows import window_of

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor


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

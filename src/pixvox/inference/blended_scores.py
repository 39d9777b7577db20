"""Class maps of volumes and slides: the scores of blocks, blended where neighbours both keep them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.image_means import ImageMeans
from pixvox.inference.blocks import Block, Blocks, intersection, within
from pixvox.inference.tile_store import TileStore
from pixvox.inference.windows import window_of

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor


@dataclass
class FindScores:
    """Computes the class scores of blocks and keeps them in a store; it can be sent to other processes.

    Args:
        volume: What is segmented.
        blocks: Of the volume.
        store: Where scores are kept, as float16.
        predictor: Scores windows.
        limits: Range of intensities of the volume, per channel.
        means: What global pools of the network give for the volume; None for those of a window.
    """

    volume: Volume
    blocks: Blocks
    store: TileStore
    predictor: Predictor
    limits: Float[Tensor, "channels 2"]
    means: ImageMeans | None = field(default=None, repr=False)

    def __call__(self, block: Block) -> None:
        """Compute the scores of a block."""
        with contextlib.nullcontext() if self.means is None else self.means.use():
            logits = self._scores(block)
        kept = logits[(slice(None), *within(block.kept, block.window))]
        self.store.save(block, kept.cpu().numpy().astype(np.float16))

    def gather(self, blocks: Iterable[Block]) -> ImageMeans | None:
        """Return what the network's global pools give for the volume; None where it has none."""
        means = ImageMeans()
        for block in blocks:
            share = math.prod(part.stop - part.start for part in block.core)
            with means.gather(torch.tensor([float(share)])):
                self._scores(block)
            if not means.found:
                return None
        return means

    def _scores(self, block: Block) -> Tensor:
        window = torch.from_numpy(window_of(self.volume, block.window, self.predictor.model.in_channels))
        return self.predictor.class_scores(window[None], self.limits[None])[0].float()


def blended(blocks: Blocks, store: TileStore, block: Block) -> Float[np.ndarray, "classes *core"]:
    """Return the scores of a block, in which its neighbours have their share."""
    total: Any = None
    for other in (block, *blocks.neighbours(block)):
        region = intersection(block.core, other.kept)
        if region is None:
            continue
        scores = store.read(other, region).astype(np.float32)
        for axis, (share, part) in enumerate(
            zip(blocks.shares(other), within(region, other.kept), strict=True)
        ):
            scores *= share[part].reshape([-1 if i == axis + 1 else 1 for i in range(scores.ndim)])
        if total is None:  # the block itself, all of its core
            total = scores
        else:
            total[(slice(None), *within(region, block.core))] += scores
    return np.asarray(total)

"""The objects of an image in memory, found tile by tile and joined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pixvox.data.transforms.resize import nearest
from pixvox.errors import ConfigError
from pixvox.inference.blocks import Block, Blocks
from pixvox.inference.stitched_objects import StitchedObjects
from pixvox.inference.tile_objects import TileObjects
from pixvox.inference.tile_store import TileStore
from pixvox.normalizer import intensity_range
from pixvox.structures import Batch, Geometry, Instances, Masks, Segmentation

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter


class StitchedTiles:
    """Finds objects in overlapping tiles and joins those of neighbours that are one.

    Args:
        model: For instance segmentation.
        tile_size: Lengths in array order.
        overlap: Share of a tile that lies in margins, in [0, 0.5].
        join_iou: Least intersection over union, in the place that two tiles share, at which an object of one and an
            object of the other are the same, in (0, 1].

    Raises:
        ConfigError: If an option is out of range.
    """

    def __init__(
        self, model: Segmenter, tile_size: Sequence[int], overlap: float = 0.25, join_iou: float = 0.5
    ) -> None:
        Blocks((1,) * len(tile_size), tile_size, overlap)  # refuses what is out of range
        if not 0 < join_iou <= 1:
            raise ConfigError(f"join_iou must lie in (0, 1], got {join_iou}")
        self.model, self.tile_size = model, tuple(tile_size)
        self.overlap, self.join_iou = overlap, join_iou

    def __call__(self, batch: Batch, index: int) -> Segmentation:
        """Return the objects of one image of a batch of un-normalised images, on the CPU.

        Where the image was resized, tiles are pieces of it as it is now, and each pixel or voxel of the original gets
        the object of the nearest one.
        """
        geometry = batch.geometries[index]
        size = geometry.valid_size
        image = batch.images[index][(slice(None), *(slice(0, length) for length in size))]
        known = batch.intensity_ranges
        limits = intensity_range(image[None]) if known is None else known[index][None]
        blocks = Blocks(size, self.tile_size, self.overlap, self.model.size_divisor)
        with TemporaryDirectory() as folder:
            store = TileStore(Path(folder), {})
            for block in blocks:
                tile = TileObjects.of(self._segment(image, limits, block), block, blocks)
                store.save(block, tile.label_map, **tile.columns())
            found = StitchedObjects.of(blocks, store, self.join_iou)
            labels = torch.from_numpy(found.label_map())
        if geometry.original_size != size:
            labels = nearest(labels[None], geometry.original_size)[0]
        present = torch.unique(labels)  # the finest objects may lie between the pixels of a coarser original
        present = present[present > 0].long()
        instances = Instances(
            masks=Masks.from_label_map(labels, present),
            labels=torch.from_numpy(found.classes)[present - 1],
            scores=torch.from_numpy(found.scores)[present - 1],
        )
        return Segmentation(instances=instances, geometry=geometry, class_names=self.model.class_names)

    def _segment(self, image: Tensor, limits: Tensor, block: Block) -> Segmentation:
        window = image[(slice(None), *block.window)][None]
        frame = Geometry.identity(window.shape[2:])
        tile = Batch(images=window, targets=None, geometries=[frame], intensity_ranges=limits)
        return self.model.segment(tile.to(next(self.model.parameters()).device))[0]

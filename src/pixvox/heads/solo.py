"""SOLO: a mask for every cell of a grid, each in a channel of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.heads.coordinates import coordinate_channels
from pixvox.heads.location_head import LocationHead, LocationMasks, resized
from pixvox.layers import conv, resize
from pixvox.ranges import check_at_least
from pixvox.structures import Features


class ChannelMasks(LocationMasks):
    """Masks of cells as the channels of one map per level.

    Args:
        maps: Logits ``(batch, cells, *grid)`` per level.
    """

    def __init__(self, maps: Sequence[Tensor]) -> None:
        super().__init__([tuple(level.shape[2:]) for level in maps])
        self.maps = list(maps)
        # One view per image: an index into the whole would fill a gradient of all images for each of them.
        self._images = [level.unbind() for level in maps]

    def probabilities(
        self, image: int, level: int, cells: Int[Tensor, " chosen"], size: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen *size"]:
        """Return the sigmoids of some channels."""
        return resized(self._images[level][image][cells].float().sigmoid(), size)

    def tensors(self) -> list[Tensor]:
        """Return the maps."""
        return self.maps


class SOLO(LocationHead):
    """A category and a mask from every cell that holds the centre of an object.

    "SOLO: Segmenting Objects by Locations" (Wang et al., 2020, https://arxiv.org/abs/1912.04488). Equal to mmdet's
    ``SOLOHead``.

    Its channels are the product of a grid's lengths, and each is a map: in volumes only small grids will do.
    ``decoupled_solo`` needs their sum, ``solov2`` none.

    Args:
        in_channels: Channels of each level, finest first; all the same.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        memory_limit: Most GiB that the maps of a batch may take.
        options: Further arguments of ``LocationHead``.

    Raises:
        ValueError: If the maps would take more than ``memory_limit``, with the arithmetic.

    Example:
        >>> head = SOLO((8,), ((4, 4),), 3, num_grids=[5], channels=8, num_convs=1)
        >>> images, sizes = torch.zeros(1, 1, 16, 24), torch.tensor([[16, 24]])
        >>> outputs = head(Features((torch.zeros(1, 8, 4, 6),), ((4, 4),), images, (16, 24), sizes))
        >>> outputs["class_logits"].shape, outputs["masks"].maps[0].shape
        (torch.Size([1, 25, 3]), torch.Size([1, 25, 8, 12]))
    """

    most_cells = {2: 40, 3: 12}  # a map for each cell

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        channels: int = 256,
        num_convs: int = 7,
        memory_limit: float = 8.0,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels, strides, num_classes, spatial_dims, channels=channels, num_convs=num_convs, **options
        )
        check_at_least(0, memory_limit=memory_limit)
        self.memory_limit = memory_limit
        self.mask_convs = self.tower(in_channels[0] + spatial_dims, channels, num_convs)
        self.mask_layers = nn.ModuleList(
            conv(spatial_dims, channels, math.prod(grid), 1) for grid in self.rule.num_grids
        )
        self.reset_parameters(self.mask_layers.modules())

    def masks(self, features: Features, levels: Sequence[Tensor]) -> ChannelMasks:
        """Return a map per cell, at twice the size of its level."""
        self._check_memory(levels)
        maps = []
        for level, layer in zip(levels, self.mask_layers, strict=True):
            known = self.mask_convs(torch.cat([level, coordinate_channels(level)], dim=1))
            maps.append(layer(resize(known, [2 * length for length in level.shape[2:]])))
        return ChannelMasks(maps)

    def _check_memory(self, levels: Sequence[Tensor]) -> None:
        """Refuse maps that would take more than the limit, before they are made."""
        sizes = [[2 * length for length in level.shape[2:]] for level in levels]
        grids = self.rule.num_grids
        numbers = [math.prod(grid) * math.prod(size) for grid, size in zip(grids, sizes, strict=True)]
        gib = len(levels[0]) * sum(numbers) * 4 / 2**30
        if gib <= self.memory_limit:
            return
        most = numbers.index(max(numbers))
        grid, size = grids[most], sizes[most]
        raise ValueError(
            f"a grid of {_product(grid)} cells has {math.prod(grid):,} maps; for {len(levels[0])} images with masks of "
            f"{_product(size)} cells they take {len(levels[0])} x {math.prod(grid):,} x {math.prod(size):,} x 4 bytes, "
            f"and those of all levels {gib:,.2f} GiB, more than head.memory_limit={self.memory_limit:g}. Use "
            f"head=decoupled_solo ({sum(grid)} maps) or head=solov2 (none per cell), a smaller head.num_grids, or "
            "smaller images"
        )


def _product(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths))

"""Decoupled SOLO: a mask is the product of the maps of its row and its column, and in volumes of its plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.heads.coordinates import coordinate_channels
from pixvox.heads.location_head import LocationHead, LocationMasks, resized
from pixvox.layers import conv, resize
from pixvox.structures import Features


class AxisMasks(LocationMasks):
    """Masks of cells as products of one map per axis.

    Args:
        maps: Per level and axis (array order) logits ``(batch, cells along the axis, *grid)``.
    """

    def __init__(self, maps: Sequence[Sequence[Tensor]]) -> None:
        super().__init__([tuple(level[0].shape[2:]) for level in maps])
        self.maps = [list(level) for level in maps]
        # One view per image: an index into the whole would fill a gradient of all images for each of them.
        self._images = [[along.unbind() for along in level] for level in maps]

    def probabilities(
        self, image: int, level: int, cells: Int[Tensor, " chosen"], size: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen *size"]:
        """Return the products of the sigmoids of each cell's maps."""
        maps = [along[image] for along in self._images[level]]
        found = torch.ones((), device=cells.device)
        for along in reversed(maps):
            found = found * resized(along[cells % len(along)].float().sigmoid(), size)
            cells = cells // len(along)
        return found

    def tensors(self) -> list[Tensor]:
        """Return the maps."""
        return [along for level in self.maps for along in level]


class DecoupledSOLO(LocationHead):
    """SOLO whose cells share the maps of their row and column: a grid needs the sum of its lengths, not the product.

    "SOLO: Segmenting Objects by Locations" (Wang et al., 2020, https://arxiv.org/abs/1912.04488), section 3.5. Equal to
    mmdet's ``DecoupledSOLOHead``; volumes have a third branch, of planes.

    Args:
        in_channels: Channels of each level, finest first; all the same.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        options: Further arguments of ``LocationHead``.

    Example:
        >>> head = DecoupledSOLO((8,), ((4, 4),), 3, num_grids=[5], channels=8, num_convs=1)
        >>> images, sizes = torch.zeros(1, 1, 16, 24), torch.tensor([[16, 24]])
        >>> outputs = head(Features((torch.zeros(1, 8, 4, 6),), ((4, 4),), images, (16, 24), sizes))
        >>> [along.shape for along in outputs["masks"].maps[0]]
        [torch.Size([1, 5, 8, 12]), torch.Size([1, 5, 8, 12])]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        channels: int = 256,
        num_convs: int = 7,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels, strides, num_classes, spatial_dims, channels=channels, num_convs=num_convs, **options
        )
        self.mask_convs = nn.ModuleList(
            self.tower(in_channels[0] + 1, channels, num_convs) for _ in range(spatial_dims)
        )
        self.mask_layers = nn.ModuleList(
            nn.ModuleList(conv(spatial_dims, channels, cells, 3) for cells in grid)
            for grid in self.rule.num_grids
        )
        self.reset_parameters(self.mask_layers.modules())

    def masks(self, features: Features, levels: Sequence[Tensor]) -> AxisMasks:
        """Return a map per row, column and plane, at twice the size of its level."""
        maps = []
        for level, layers in zip(levels, self.mask_layers, strict=True):
            places = torch.split(coordinate_channels(level).flip(1), 1, dim=1)  # in array order
            size = [2 * length for length in level.shape[2:]]
            known = [
                resize(convs(torch.cat([level, place], dim=1)), size)
                for convs, place in zip(self.mask_convs, places, strict=True)
            ]
            maps.append([layer(each) for layer, each in zip(layers, known, strict=True)])  # type: ignore[call-overload]
        return AxisMasks(maps)

"""Feature pyramid with a second way, back to the coarse levels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from pixvox.layers import conv
from pixvox.necks.fpn import FPN


class PANet(FPN):
    """Top-down and then bottom-up: what the finest level localises reaches the coarsest in a few layers.

    "Path Aggregation Network for Instance Segmentation" (Liu et al., 2018, https://arxiv.org/abs/1803.01534), section
    3.1, for images and volumes: each level of an FPN is made smaller by a 3x3 convolution, added to the next and
    convolved. Convolutions are linear, as in mmdet's PAFPN.

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        strides: Strides of the backbone's levels, per axis in array order; each a multiple of the one before.
        spatial_dims: 2 or 3.
        out_channels: Channels of every level given out.
        extra_level: Add a coarser level, every second pixel of the coarsest one (for the largest anchors).

    Example:
        >>> import torch
        >>> neck = PANet(in_channels=(8, 16), strides=((4, 4), (8, 8)), out_channels=4)
        >>> levels = neck((torch.zeros(1, 8, 9, 13), torch.zeros(1, 16, 5, 7)))
        >>> [tuple(level.shape) for level in levels]
        [(1, 4, 9, 13), (1, 4, 5, 7), (1, 4, 3, 4)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        spatial_dims: int = 2,
        out_channels: int = 256,
        extra_level: bool = True,
    ) -> None:
        super().__init__(in_channels, strides, spatial_dims, out_channels, extra_level)
        steps = [
            tuple(coarse // fine for fine, coarse in zip(*pair, strict=True))
            for pair in itertools.pairwise(strides)
        ]
        self.down = nn.ModuleList(conv(spatial_dims, out_channels, out_channels, 3, step) for step in steps)
        self.mix = nn.ModuleList(conv(spatial_dims, out_channels, out_channels, 3) for _ in steps)

    def pyramid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return as many levels as the backbone has, finest first."""
        first, *coarser = super().pyramid(levels)
        sums = [first]
        for level, down in zip(coarser, self.down, strict=True):
            sums.append(level + down(sums[-1]))
        return [first, *(mix(level) for level, mix in zip(sums[1:], self.mix, strict=True))]

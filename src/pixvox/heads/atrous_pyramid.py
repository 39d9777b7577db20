"""Atrous spatial pyramid pooling: neighbourhoods of several sizes at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.layers import ConvNormAct, SeparableConvNormAct, adaptive_average_pool, resize

_REACHES = (96, 192, 288)
"""Pixels of the image between the taps of each kernel: rates 12, 24, 36 at a stride of 8."""


class AtrousPyramid(nn.Module):
    """Looks at each pixel by itself, at three neighbourhoods of it, and at the mean of the whole map.

    "Rethinking Atrous Convolution for Semantic Image Segmentation" (Chen et al., 2017,
    https://arxiv.org/abs/1706.05587), section 3.3.

    Args:
        in_channels: Channels of the map.
        channels: Channels of each look, and of what is given out.
        rates: Dilation of each neighbourhood, in pixels of the map, the same along all axes.
        spatial_dims: 2 or 3.
        separable: Look at each channel by itself before mixing them, which is cheaper.
        dropout: Share of the channels given out set to zero in training.
        norm: Normalisation, see ``pixvox.layers.norm``.

    Example:
        >>> pyramid = AtrousPyramid(8, 4, rates=(1, 2))
        >>> tuple(pyramid(torch.zeros(2, 8, 5, 7)).shape)
        (2, 4, 5, 7)
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        rates: Sequence[int] = (12, 24, 36),
        spatial_dims: int = 2,
        separable: bool = False,
        dropout: float = 0.5,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        block = SeparableConvNormAct if separable else ConvNormAct
        self.point = ConvNormAct(spatial_dims, in_channels, channels, 1, 1, norm)
        self.neighbourhoods = nn.ModuleList(
            block(spatial_dims, in_channels, channels, 3, norm_name=norm, dilation=rate) for rate in rates
        )
        self.whole = ConvNormAct(spatial_dims, in_channels, channels, 1, 1, norm)
        self.projection = nn.Sequential(
            ConvNormAct(spatial_dims, (len(rates) + 2) * channels, channels, 1, 1, norm), nn.Dropout(dropout)
        )

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        """Return what was seen, at the size of ``x``."""
        whole = self.whole(adaptive_average_pool(x, 1))
        looks = [self.point(x), *(look(x) for look in self.neighbourhoods), resize(whole, x.shape[2:])]
        projected: Tensor = self.projection(torch.cat(looks, dim=1))
        return projected


def rates_of(stride: Sequence[int]) -> tuple[int, ...]:
    """Return the rates of the papers for a map of this stride, per axis: the longest counts.

    Example:
        >>> rates_of((8, 8)), rates_of((2, 16, 16)), rates_of((32, 32))
        ((12, 24, 36), (6, 12, 18), (3, 6, 9))
    """
    return tuple(max(reach // max(stride), 1) for reach in _REACHES)

"""Pyramid pooling: means of the parts of a map beside the map itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.layers import ConvNormAct, PerAxis, adaptive_average_pool, resize


class PyramidPooling(nn.Module):
    """Puts the means of ever smaller parts of a map beside it, so that each pixel knows the scene, and mixes them.

    "Pyramid Scene Parsing Network" (Zhao et al., 2016, https://arxiv.org/abs/1612.01105), section 3.2.

    Args:
        in_channels: Channels of the map.
        channels: Channels of the means of each size, and of what is given out.
        bins: Parts along each axis, for each size: one number or one per axis in array order.
        spatial_dims: 2 or 3.
        norm: Normalisation, see ``pixvox.layers.norm``.

    Example:
        >>> pooling = PyramidPooling(8, 4, bins=(1, (2, 3)))
        >>> tuple(pooling(torch.zeros(2, 8, 5, 7)).shape)
        (2, 4, 5, 7)
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        bins: Sequence[PerAxis] = (1, 2, 3, 6),
        spatial_dims: int = 2,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.means = nn.ModuleList(
            ConvNormAct(spatial_dims, in_channels, channels, 1, 1, norm) for _ in self.bins
        )
        self.bottleneck = ConvNormAct(
            spatial_dims, in_channels + len(self.bins) * channels, channels, 3, 1, norm
        )

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        """Return the mixed maps, at the size of ``x``."""
        means = [
            mean(adaptive_average_pool(x, parts)) for mean, parts in zip(self.means, self.bins, strict=True)
        ]
        mixed: Tensor = self.bottleneck(torch.cat([x, *(resize(mean, x.shape[2:]) for mean in means)], dim=1))
        return mixed

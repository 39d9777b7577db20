"""Semantic flow: a coarse map is moved onto a finer one by offsets that are learned, instead of being stretched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.layers import ConvNormAct, adaptive_average_pool, conv, resize
from pixvox.structures import Size

BINS = (1, 2, 3, 6)
"""Parts along each axis whose means are context."""


class FlowAlignment(nn.Module):
    """Warps the coarser of two maps to the finer one (FAM).

    "Semantic Flow for Fast and Accurate Scene Parsing" (Li et al., 2020, https://arxiv.org/abs/2002.10120), section
    3.2.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of both maps; the flow is made of half of them.
        flows: Fields of offsets.
    """

    def __init__(self, spatial_dims: int, channels: int, flows: int = 1) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.reduce_coarse = conv(spatial_dims, channels, half, 1, bias=False)
        self.reduce_fine = conv(spatial_dims, channels, half, 1, bias=False)
        self.flow = conv(spatial_dims, 2 * half, flows * spatial_dims, 3, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return the coarse map at the size of the fine one."""
        return warp(coarse, self.flow(torch.cat(self.reduced(fine, coarse), dim=1)))

    def reduced(self, fine: Tensor, coarse: Tensor) -> list[Tensor]:
        """Return half of the channels of the coarse and the fine map, at the size of the fine one."""
        small = self.reduce_coarse(coarse)
        return [resize(small, fine.shape[2:], align_corners=True), self.reduce_fine(fine)]


class GatedDualFlowAlignment(FlowAlignment):
    """Warps two maps towards each other and lets a gate mix them.

    "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow" (Li et al., 2022,
    https://arxiv.org/abs/2207.04415), section 3.3.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of both maps.
        pool_gate: The gate sees mean and maximum over the channels of each map, instead of half of the channels.
    """

    def __init__(self, spatial_dims: int, channels: int, pool_gate: bool = True) -> None:
        super().__init__(spatial_dims, channels, flows=2)
        self.pool_gate = pool_gate
        width = 4 if pool_gate else 2 * max(1, channels // 2)
        self.gate = conv(spatial_dims, width, 1, 3, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return the mixture at the size of the fine map."""
        reduced = self.reduced(fine, coarse)
        towards_fine, towards_coarse = self.flow(torch.cat(reduced, dim=1)).chunk(2, dim=1)
        seen = reduced
        if self.pool_gate:  # as published, of the fine map all channels count
            maps = (reduced[0], fine)
            seen = [x.mean(dim=1, keepdim=True) for x in maps] + [x.amax(dim=1, keepdim=True) for x in maps]
        share = self.gate(torch.cat(seen, dim=1)).sigmoid()
        mixed: Tensor = warp(coarse, towards_fine) * share + warp(fine, towards_coarse) * (1 - share)
        return mixed


class ContextPooling(nn.Module):
    """Means of the parts of a map beside the map itself, as SFNet's authors have them.

    "Pyramid Scene Parsing Network" (Zhao et al., 2016, https://arxiv.org/abs/1612.01105); the means are not activated
    and stretched from corner to corner, and mixed by a convolution of single pixels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the map.
        channels: Channels of each mean and of what is given out.
        dropout: Share of channels set to zero in training.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.means = nn.ModuleList(
            ConvNormAct(spatial_dims, in_channels, channels, 1, 1, norm, act=False) for _ in BINS
        )
        self.mix = ConvNormAct(spatial_dims, in_channels + len(BINS) * channels, channels, 1, 1, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its context."""
        means = [mean(adaptive_average_pool(x, bins)) for mean, bins in zip(self.means, BINS, strict=True)]
        stretched = [resize(mean, x.shape[2:], align_corners=True) for mean in means]
        mixed: Tensor = self.dropout(self.mix(torch.cat([*stretched, x], dim=1)))
        return mixed


def warp(
    x: Float[Tensor, "batch channels *coarse"], flow: Float[Tensor, "batch dims *spatial"]
) -> Float[Tensor, "batch channels *spatial"]:
    """Return what is found at each place of the flow's grid, moved by the flow; zeros beyond the edge.

    Args:
        x: Maps of any size.
        flow: Offsets in half pixels of its own grid, ``(x, y[, z])``.

    Example:
        >>> maps = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
        >>> torch.allclose(warp(maps, torch.zeros(1, 2, 1, 4)), maps, atol=1e-5)
        True
    """
    size: Size = tuple(flow.shape[2:])
    scale = flow.new_tensor(size[::-1])
    grid = _corner_to_corner(size, flow) + flow.movedim(1, -1) / scale
    return F.grid_sample(x.float(), grid.float(), align_corners=True).to(x.dtype)


def _corner_to_corner(size: Sequence[int], like: Tensor) -> Tensor:
    """Return the places of a grid, ``(x, y[, z])`` last, from -1 at the first pixel to 1 at the last."""
    axes = [torch.linspace(-1, 1, length, device=like.device) for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)

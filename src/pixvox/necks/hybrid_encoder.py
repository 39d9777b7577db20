"""RT-DETR's encoder: attention within the coarsest level, convolutions between levels, down and up again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from pixvox.layers import conv, norm, resize
from pixvox.necks.neck import Neck
from pixvox.ranges import check_at_least, check_shares
from pixvox.transformer.attention import Attention
from pixvox.transformer.levels import Tokens
from pixvox.transformer.positions import grid_sines


class HybridEncoder(Neck):
    """Tokens of the coarsest level look at each other; the levels are then merged top-down and bottom-up.

    "DETRs Beat YOLOs on Real-time Object Detection" (Zhao et al., 2023, https://arxiv.org/abs/2304.08069), in the form
    of "D-FINE" (Peng et al., 2024, https://arxiv.org/abs/2410.13842), for images and volumes. Equal to transformers'
    ``DFineHybridEncoder`` behind its projections.

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        strides: Strides of the backbone's levels, per axis in array order.
        spatial_dims: 2 or 3.
        channels: Channels of every level given out, a multiple of 4 and of ``num_heads``.
        num_levels: Levels that are used, the coarsest ones; as many as there are at most.
        num_layers: Layers of attention within the coarsest level.
        num_heads: Heads of the attention.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        expansion: Width of the blocks between levels.
        num_blocks: Blocks of each stage between levels.
        norm: Normalisation of the convolutions, see ``pixvox.layers.norm``.

    Example:
        >>> neck = HybridEncoder((6, 8, 16), ((4, 4), (8, 8), (16, 16)), channels=8, num_levels=2, feedforward=8)
        >>> levels = neck((torch.zeros(1, 6, 16, 24), torch.zeros(1, 8, 8, 12), torch.zeros(1, 16, 4, 6)))
        >>> [tuple(level.shape) for level in levels], neck.strides
        ([(1, 8, 8, 12), (1, 8, 4, 6)], ((8, 8), (16, 16)))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        spatial_dims: int = 2,
        channels: int = 256,
        num_levels: int = 3,
        num_layers: int = 1,
        num_heads: int = 8,
        feedforward: int = 1024,
        dropout: float = 0.0,
        expansion: float = 1.0,
        num_blocks: int = 3,
        norm: str = "batch",
    ) -> None:
        check_at_least(1, num_levels=num_levels, feedforward=feedforward, num_blocks=num_blocks)
        check_at_least(0, num_layers=num_layers)
        check_shares(dropout=dropout)
        if channels % 4:
            raise ValueError(
                f"channels must be a multiple of 4 (sine and cosine of two axes), got {channels}"
            )
        count = min(num_levels, len(in_channels))
        used = [tuple(stride) for stride in strides[-count:]]
        super().__init__((channels,) * count, used)
        self.projections = nn.ModuleList(
            _conv(spatial_dims, width, channels, 1, norm, act=False) for width in in_channels[-count:]
        )
        self.attention = nn.ModuleList(
            EncoderLayer(channels, num_heads, feedforward, dropout) for _ in range(num_layers)
        )
        width = round(expansion * channels // 2)
        stages = range(count - 1)
        self.lateral = nn.ModuleList(
            _conv(spatial_dims, channels, channels, 1, norm, act=False) for _ in stages
        )
        self.down = nn.ModuleList(_Merge(spatial_dims, channels, width, num_blocks, norm) for _ in stages)
        self.shrink = nn.ModuleList(
            _Shrink(spatial_dims, channels, _steps(fine, coarse), norm)
            for fine, coarse in itertools.pairwise(used)
        )
        self.up = nn.ModuleList(_Merge(spatial_dims, channels, width, num_blocks, norm) for _ in stages)

    def blocks(self) -> list[nn.Module]:
        """Return the stages between levels."""
        return [*self.down, *self.up]

    def forward(
        self, levels: Sequence[Tensor], valid_sizes: Int[Tensor, "batch dims"] | None = None
    ) -> tuple[Tensor, ...]:
        """Return the merged levels, finest first."""
        used = levels[-len(self.projections) :]
        maps = [project(level) for project, level in zip(self.projections, used, strict=True)]
        maps[-1] = self._attended(maps[-1], valid_sizes)
        inner = [maps.pop()]
        for lateral, merge in zip(self.lateral, self.down, strict=True):
            inner[0], finer = lateral(inner[0]), maps.pop()
            raised = resize(inner[0], finer.shape[2:], mode="nearest")
            inner.insert(0, merge(torch.cat([raised, finer], dim=1)))
        outputs = [inner[0]]
        for shrink, merge, coarser in zip(self.shrink, self.up, inner[1:], strict=True):
            outputs.append(merge(torch.cat([shrink(outputs[-1]), coarser], dim=1)))
        return tuple(outputs)

    def _attended(self, level: Tensor, valid_sizes: Tensor | None) -> Tensor:
        """Let the tokens of a level look at each other, but for padding."""
        tokens = Tokens.of([level], [self.strides[-1]], valid_sizes)
        positions = grid_sines(level.shape[2:], level.shape[1], level.device).to(level.dtype)
        blocked = None if tokens.padding is None else tokens.padding[:, None]
        values = tokens.values
        for layer in self.attention:
            values = layer(values, positions, blocked)
        return tokens.replace(values).maps()[0]


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual and a norm after it.

    Args:
        channels: Channels of the tokens.
        num_heads: Heads of the attention.
        feedforward: Hidden channels of the feed-forward network.
        dropout: Share of values set to zero in training.
    """

    def __init__(self, channels: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(channels, num_heads, dropout)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, positions: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Return new values of the tokens."""
        placed = tokens + positions
        tokens = self.norm1(tokens + self.dropout(self.self_attention(placed, placed, tokens, blocked)))
        hidden = self.linear2(F.gelu(self.linear1(tokens)))
        output: Tensor = self.norm2(tokens + self.dropout(hidden))
        return output


class _Merge(nn.Module):
    """Two levels as one: half of the channels pass, half go through two chains of blocks whose results are kept."""

    def __init__(self, spatial_dims: int, channels: int, width: int, num_blocks: int, norm: str) -> None:
        super().__init__()
        self.enter = _conv(spatial_dims, 2 * channels, 2 * channels, 1, norm)
        self.first = nn.Sequential(
            _Chain(spatial_dims, channels, width, num_blocks, norm),
            _conv(spatial_dims, width, width, 3, norm),
        )
        self.second = nn.Sequential(
            _Chain(spatial_dims, width, width, num_blocks, norm), _conv(spatial_dims, width, width, 3, norm)
        )
        self.leave = _conv(spatial_dims, 2 * channels + 2 * width, channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged map."""
        passed, last = self.enter(x).chunk(2, dim=1)
        first = self.first(last)
        output: Tensor = self.leave(torch.cat([passed, last, first, self.second(first)], dim=1))
        return output


class _Chain(nn.Module):
    """A chain of blocks beside a shortcut ("CSPNet", Wang et al., 2019, https://arxiv.org/abs/1911.11929)."""

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, num_blocks: int, norm: str
    ) -> None:
        super().__init__()
        self.enter = _conv(spatial_dims, in_channels, channels, 1, norm)
        self.shortcut = _conv(spatial_dims, in_channels, channels, 1, norm)
        self.blocks = nn.Sequential(*(_TwoKernels(spatial_dims, channels, norm) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of chain and shortcut."""
        output: Tensor = self.blocks(self.enter(x)) + self.shortcut(x)
        return output


class _TwoKernels(nn.Module):
    """A 3x3 and a 1x1 convolution, added ("RepVGG", Ding et al., 2021, https://arxiv.org/abs/2101.03697)."""

    def __init__(self, spatial_dims: int, channels: int, norm: str) -> None:
        super().__init__()
        self.wide = _conv(spatial_dims, channels, channels, 3, norm, act=False)
        self.narrow = _conv(spatial_dims, channels, channels, 1, norm, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum."""
        return F.silu(self.wide(x) + self.narrow(x))


class _Shrink(nn.Sequential):
    """To the next coarser level: mix the channels, then halve the size channel by channel."""

    def __init__(self, spatial_dims: int, channels: int, steps: Sequence[int], norm_name: str) -> None:
        halve = conv(spatial_dims, channels, channels, 3, steps, groups=channels, bias=False)
        super().__init__(
            _conv(spatial_dims, channels, channels, 1, norm_name, act=False),
            nn.Sequential(halve, norm(norm_name, spatial_dims, channels)),
        )


def _conv(
    spatial_dims: int, in_channels: int, out_channels: int, kernel: int, norm_name: str, act: bool = True
) -> nn.Sequential:
    """Return convolution, normalisation and SiLU."""
    layers = [
        conv(spatial_dims, in_channels, out_channels, kernel, bias=norm_name == "none"),
        norm(norm_name, spatial_dims, out_channels),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if act else []))


def _steps(fine: Sequence[int], coarse: Sequence[int]) -> list[int]:
    """Return the stride from one level to the next, per axis."""
    return [b // a for a, b in zip(fine, coarse, strict=True)]

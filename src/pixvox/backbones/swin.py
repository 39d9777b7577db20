"""Swin transformer for images and volumes: attention inside windows that move by half from block to block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import Suggestion, suggest_depth_strides
from pixvox.layers import PerAxis, patch_conv, per_axis

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

VARIANTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
"""Channels of the first level, blocks per level, attention heads per level: the paper's section 3.3."""

_OTHER_REGION = -100.0
"""Added to the logit of a pair that the shift brought together from opposite borders, as the paper's code does."""


class Swin(Backbone):
    """Hierarchical transformer with shifted windows.

    "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (Liu et al., 2021,
    https://arxiv.org/abs/2103.14030); in volumes, windows have a depth as in "Video Swin Transformer" (Liu et
    al., 2021, https://arxiv.org/abs/2106.13230). Any input size: patches, windows and merges are padded inside,
    at the far end of each axis. Weights have the names of the authors' files for detection:
    ``patch_embed.proj``, ``layers.0.blocks.1.attn.qkv``, ``layers.0.downsample.reduction``, ``norm0`` to
    ``norm3``.

    Args:
        variant: ``"tiny"``, ``"small"``, ``"base"`` or ``"large"``.
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        pretrained: Load timm's ImageNet weights (fetched once by timm), or those of a file at this path; in 3-D they
            are lifted.
        window: Side of the windows in tokens, one number or one per axis in array order. Published weights
            have 7, for base and large also 12.
        out_levels: Levels given out, of 2 (stride 4) to 5 (stride 32); by default all.
        out_norms: Normalise each level that is given out, as detectors do.
        drop_path: Chance that a block of the last level is left out of a training step; earlier blocks less.
        depth_strides: In 3-D, depth of a patch and of the merges after it; ``(2, 1, 1, 1)`` is Video Swin's,
            ``(4, 2, 2, 2)``, the default, is as in the plane.
        fit_windows: Along axes no longer than the window, shrink it to the axis and do not shift it, as Video
            Swin does; otherwise pad to whole windows, as detectors in the plane do. By default in 3-D only.
        freeze: Weights that this level and finer ones are made of stay as they are: 1 those of the patch embedding, 2
            also those of level 2, ...; 0 for none, -1 for all.
        channels: Channels of the first level; each next has twice as many. By default the variant's.
        depths: Blocks per level; by default the variant's.
        num_heads: Attention heads per level; by default the variant's.

    Raises:
        ValueError: If the variant is unknown, ``depths``, ``num_heads``, ``depth_strides`` or ``out_levels`` do
            not fit each other, or ``pretrained`` is asked for sizes that no published weights have.

    Example:
        >>> import torch
        >>> backbone = Swin(channels=8, depths=(1, 2), num_heads=(1, 2), window=2, in_channels=1)
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 1, 18, 24))]
        [(1, 8, 5, 6), (1, 16, 3, 3)]
    """

    def __init__(
        self,
        variant: str = "tiny",
        spatial_dims: int = 2,
        in_channels: int = 3,
        pretrained: bool | str = False,
        window: PerAxis = 7,
        out_levels: Sequence[int] | None = None,
        out_norms: bool = True,
        drop_path: float = 0.2,
        depth_strides: Sequence[int] | None = None,
        fit_windows: bool | None = None,
        freeze: int = 0,
        channels: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
    ) -> None:
        own = [
            name
            for name, value in (("channels", channels), ("depths", depths), ("num_heads", num_heads))
            if value
        ]
        width, depths, num_heads = _sizes(variant, channels, depths, num_heads)
        widths = [width * 2**level for level in range(len(depths))]
        steps = _steps(spatial_dims, depth_strides, len(depths))
        levels = _check_levels(out_levels, freeze, len(depths))
        stages = [level - 1 for level in levels]
        strides = [tuple(map(math.prod, zip(*steps[:stage], strict=True))) for stage in stages]
        super().__init__(spatial_dims, in_channels, [widths[stage - 1] for stage in stages], strides)
        self.out_levels = tuple(levels)
        self.window = per_axis(window, spatial_dims, "window")
        self.freeze = freeze
        self.patch_embed = PatchEmbedding(spatial_dims, in_channels, width, steps[0])
        fit = spatial_dims == 3 if fit_windows is None else fit_windows
        rates = iter([drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        # What follows the last level that is given out is not built: every weight has a gradient.
        merges = [*steps[1 : max(stages)], None]
        self.layers = nn.ModuleList(
            Stage(channels, heads, self.window, [next(rates) for _ in range(depth)], merge, fit)
            for channels, heads, depth, merge in zip(widths, num_heads, depths, merges, strict=False)
        )
        for stage in stages:
            norm = nn.LayerNorm(widths[stage - 1]) if out_norms else nn.Identity()
            self.add_module(f"norm{stage - 1}", norm)
        self.apply(_initialise)
        if pretrained:
            self._load_pretrained(variant, own, pretrained)
        self.freeze_parts()

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        depths = options["depths"] or VARIANTS[options["variant"]][1]
        # A patch of 4 x 4 pixels halves the plane twice.
        return suggest_depth_strides(facts, len(depths), first=2)

    def blocks(self) -> list[nn.Module]:
        """Return the transformer blocks."""
        return [block for stage in self.layers for block in stage.get_submodule("blocks").children()]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first."""
        x = self.patch_embed(images)
        levels = {}
        for level, stage in enumerate(self.layers, start=2):
            before, x = stage(x)
            if level in self.out_levels:
                levels[level] = self.get_submodule(f"norm{level - 2}")(before).movedim(-1, 1)
        return tuple(levels[level] for level in self.out_levels)

    def frozen_parts(self) -> list[nn.Module]:
        """Return the patch embedding and the levels that stay as they are."""
        return list(self.children()) if self.freeze == -1 else [self.patch_embed, *self.layers][: self.freeze]

    def _load_pretrained(self, variant: str, own: Sequence[str], pretrained: bool | str) -> None:
        from pixvox.weights.backbones import lift_swin, swin_from_timm
        from pixvox.weights.timm_network import timm_weights

        side = self.window[-1]
        published = (7, 12) if variant in ("base", "large") else (7,)
        if own or set(self.window) != {side} or side not in published:
            raise ValueError(
                f"published weights of Swin {variant!r} have a window of {' or '.join(map(str, published))} and the "
                f"variant's sizes, got window={list(self.window)}{''.join(f' and own {name}' for name in own)}; set "
                "pretrained=false, or leave these as they are"
            )
        name = f"swin_{variant}_patch4_window{side}_{384 if side == 12 else 224}"
        state = lift_swin(swin_from_timm(timm_weights(name, pretrained, self.in_channels)), self)
        # A classifier has no norms between levels: those keep their start. Levels that are not given out are dropped.
        wanted = self.state_dict()
        self.load_state_dict({**wanted, **{key: value for key, value in state.items() if key in wanted}})


class PatchEmbedding(nn.Module):
    """One token per patch: a convolution that strides by its kernel.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the images.
        channels: Channels of the tokens.
        patch: Side of the patches in pixels, per axis in array order.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, patch: Sequence[int]) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.proj = patch_conv(spatial_dims, in_channels, channels, patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> Float[Tensor, "batch *grid width"]:
        """Return the tokens, their channels last."""
        padding = [-length % side for length, side in zip(images.shape[2:], self.patch, strict=True)]
        tokens: Tensor = self.norm(self.proj(_pad_far_end(images, padding)).movedim(1, -1))
        return tokens


class Stage(nn.Module):
    """The blocks of one level and the merge that leads to the next.

    Args:
        channels: Channels of the tokens.
        num_heads: Attention heads.
        window: Side of the windows, per axis in array order.
        drop_path: Chance to be left out, for each block.
        merge: Tokens merged along each axis; None for the last level.
        fit_windows: See ``Swin``.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: Sequence[int],
        drop_path: Sequence[float],
        merge: Sequence[int] | None,
        fit_windows: bool,
    ) -> None:
        super().__init__()
        self.window = tuple(window)
        self.fit_windows = fit_windows
        self.blocks = nn.ModuleList(
            Block(channels, num_heads, window, i % 2 == 1, rate, fit_windows)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = None if merge is None else PatchMerging(channels, merge)

    def forward(self, x: Float[Tensor, "batch *grid channels"]) -> tuple[Tensor, Tensor]:
        """Return the tokens of this level and, merged, those of the next."""
        apart = None
        if len(self.blocks) > 1:
            window, shift, padding = _layout(x.shape[1:-1], self.window, self.fit_windows)
            padded = [length + extra for length, extra in zip(x.shape[1:-1], padding, strict=True)]
            apart = _regions_apart(padded, window, shift, x) if any(shift) else None
        for block in self.blocks:
            x = block(x, apart)
        return x, x if self.downsample is None else self.downsample(x)


class Block(nn.Module):
    """Attention inside windows and a perceptron, each with its shortcut.

    Args:
        channels: Channels of the tokens.
        num_heads: Attention heads.
        window: Side of the windows, per axis in array order.
        shifts: Move the windows by half their side.
        drop_path: Chance to be left out of a training step.
        fit_windows: See ``Swin``.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: Sequence[int],
        shifts: bool,
        drop_path: float,
        fit_windows: bool,
    ) -> None:
        super().__init__()
        self.window = tuple(window)
        self.shifts = shifts
        self.fit_windows = fit_windows
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Perceptron(channels)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(
        self,
        x: Float[Tensor, "batch *grid channels"],
        apart: Float[Tensor, "windows tokens tokens"] | None,
    ) -> Float[Tensor, "batch *grid channels"]:
        """Return the tokens; ``apart`` keeps apart, in shifted windows, what was not adjacent."""
        size, axes = x.shape[1:-1], list(range(1, x.dim() - 1))
        window, shift, padding = _layout(size, self.window, self.fit_windows)
        shifts = self.shifts and any(shift)
        grid = _pad_far_end(self.norm1(x).movedim(-1, 1), padding).movedim(1, -1)
        if shifts:
            grid = grid.roll([-step for step in shift], axes)
        windows = self.attn(split_windows(grid, window), window, apart if shifts else None)
        grid = join_windows(windows, window, grid.shape[1:-1])
        if shifts:
            grid = grid.roll(shift, axes)
        for axis, length in zip(axes, size, strict=True):
            grid = grid.narrow(axis, 0, length)
        x = x + self.drop_path(grid)
        tokens: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return tokens


class Perceptron(nn.Module):
    """Two linear layers with four times the channels between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        tokens: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return tokens


class WindowAttention(nn.Module):
    """Self-attention of the tokens of each window, with a learned bias per head and relative position.

    Args:
        channels: Channels of the tokens, a multiple of ``num_heads``.
        num_heads: Attention heads.
        window: Side of the windows, per axis in array order.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window: Sequence[int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        offsets = math.prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch windows tokens channels"], window: Sequence[int], apart: Tensor | None
    ) -> Float[Tensor, "batch windows tokens channels"]:
        """Return the tokens; ``window`` may be smaller than the one that the bias is learned for."""
        batch, windows, tokens, channels = x.shape
        # (batch * windows, heads, tokens, channels of a head): the four axes that fused attention knows
        query, key, value = (
            self.qkv(x)
            .reshape(-1, tokens, 3, self.num_heads, channels // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        bias = self._bias(window)
        if apart is not None:
            bias = (
                (bias + apart[:, None])
                .expand(batch, windows, -1, -1, -1)
                .reshape(-1, self.num_heads, tokens, tokens)
            )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        mixed: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, windows, tokens, channels))
        return mixed

    def _bias(self, window: Sequence[int]) -> Float[Tensor, "1 heads tokens tokens"]:
        index = self.relative_position_index
        # Relative positions do not depend on where in the full window a smaller one lies: take its first corner.
        for axis, side in enumerate((*window, *window)):
            index = index.narrow(axis, 0, side)
        tokens = math.prod(window)
        return (
            self.relative_position_bias_table[index.reshape(-1)]
            .reshape(1, tokens, tokens, -1)
            .permute(0, 3, 1, 2)
        )


class PatchMerging(nn.Module):
    """Joins neighbouring tokens into one of twice the channels.

    Args:
        channels: Channels of the tokens.
        merge: Tokens joined along each axis in array order.
    """

    def __init__(self, channels: int, merge: Sequence[int]) -> None:
        super().__init__()
        self.merge = tuple(merge)
        joined = channels * math.prod(merge)
        self.norm = nn.LayerNorm(joined)
        self.reduction = nn.Linear(joined, 2 * channels, bias=False)

    def forward(self, x: Float[Tensor, "batch *grid channels"]) -> Float[Tensor, "batch *merged width"]:
        """Return the merged tokens."""
        padding = [-length % step for length, step in zip(x.shape[1:-1], self.merge, strict=True)]
        x = _pad_far_end(x.movedim(-1, 1), padding).movedim(1, -1)
        # The published weights order a group by columns: the first axis moves fastest.
        starts = itertools.product(*(range(step) for step in reversed(self.merge)))
        parts = [
            x[(slice(None), *(slice(s, None, m) for s, m in zip(reversed(start), self.merge, strict=True)))]
            for start in starts
        ]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


def split_windows(
    grid: Float[Tensor, "batch *grid channels"], window: Sequence[int]
) -> Float[Tensor, "batch windows tokens channels"]:
    """Return the tokens by window; the grid is a multiple of the window."""
    dims = len(window)
    sides = [n for length, side in zip(grid.shape[1:-1], window, strict=True) for n in (length // side, side)]
    split = grid.reshape(grid.shape[0], *sides, grid.shape[-1])
    split = split.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return split.reshape(grid.shape[0], -1, math.prod(window), grid.shape[-1])


def join_windows(
    windows: Float[Tensor, "batch windows tokens channels"], window: Sequence[int], size: Sequence[int]
) -> Float[Tensor, "batch *grid channels"]:
    """Return the grid of ``size`` that ``split_windows`` split."""
    dims = len(window)
    counts = [length // side for length, side in zip(size, window, strict=True)]
    joined = windows.reshape(windows.shape[0], *counts, *window, windows.shape[-1])
    order = [
        axis for pair in zip(range(1, dims + 1), range(dims + 1, 2 * dims + 1), strict=True) for axis in pair
    ]
    return joined.permute(0, *order, 2 * dims + 1).reshape(windows.shape[0], *size, windows.shape[-1])


def relative_positions(window: Sequence[int]) -> Int[Tensor, "..."]:
    """Return the row of the bias table for each pair of tokens, indexed by the place of the first and the second.

    Args:
        window: Side of the windows, per axis in array order; the result has its axes twice.
    """
    dims = len(window)
    index = torch.zeros(*window, *window, dtype=torch.int64)
    for axis, side in enumerate(window):
        place = torch.arange(side)
        offset = place[:, None] - place[None, :] + side - 1
        shape = [1] * (2 * dims)
        shape[axis] = shape[dims + axis] = side
        index = index * (2 * side - 1) + offset.reshape(shape)
    return index


def _layout(size: Sequence[int], window: Sequence[int], fit: bool) -> tuple[list[int], list[int], list[int]]:
    """Return side and shift of the windows, and the padding to whole windows, per axis of a grid of ``size``."""
    fitted = [fit and length <= side for length, side in zip(size, window, strict=True)]
    sides = [length if fits else side for length, side, fits in zip(size, window, fitted, strict=True)]
    shift = [0 if fits else side // 2 for side, fits in zip(sides, fitted, strict=True)]
    return sides, shift, [-length % side for length, side in zip(size, sides, strict=True)]


def _regions_apart(
    size: Sequence[int], window: Sequence[int], shift: Sequence[int], like: Tensor
) -> Float[Tensor, "windows tokens tokens"]:
    """Return 0 for each pair of a shifted window's tokens that are neighbours in the image too, else -100."""
    region = torch.zeros(*size, device=like.device)
    for axis, (length, side, step) in enumerate(zip(size, window, shift, strict=True)):
        place = torch.arange(length, device=like.device)
        along = (place >= length - side).float() + (place >= length - step).float()
        shape = [1] * len(size)
        shape[axis] = length
        region = region * 3 + along.reshape(shape)
    by_window = split_windows(region[None, ..., None], window)[0, ..., 0]
    apart = by_window[:, :, None] != by_window[:, None, :]
    return torch.where(apart, _OTHER_REGION, 0.0).to(like.dtype)


def _pad_far_end(x: Float[Tensor, "batch channels *spatial"], padding: Sequence[int]) -> Tensor:
    """Pad the far end of each spatial axis with zeros."""
    if not any(padding):
        return x
    return F.pad(x, [side for extra in reversed(padding) for side in (0, extra)])


def _sizes(
    variant: str, channels: int | None, depths: Sequence[int] | None, num_heads: Sequence[int] | None
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return channels, blocks and heads: those given, and the variant's for the others."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    usual = VARIANTS[variant]
    width = usual[0] if channels is None else channels
    blocks = usual[1] if depths is None else tuple(depths)
    heads = usual[2] if num_heads is None else tuple(num_heads)
    if len(blocks) != len(heads):
        raise ValueError(
            f"depths and num_heads need one entry per level each, got depths={list(blocks)} and num_heads={list(heads)}"
        )
    for level, count in enumerate(heads):
        if width * 2**level % count != 0:
            raise ValueError(
                f"num_heads[{level}]={count} must divide the {width * 2**level} channels of its level "
                f"(channels={width}, doubled at each level)"
            )
    return width, blocks, heads


def _check_levels(out_levels: Sequence[int] | None, freeze: int, stages: int) -> list[int]:
    """Return the levels to give out."""
    existing = list(range(2, stages + 2))
    levels = existing if out_levels is None else sorted(out_levels)
    if not levels or not set(levels) <= set(existing):
        raise ValueError(f"out_levels must be of 2 to {stages + 1} (level l has stride 2 ** l), got {levels}")
    if not -1 <= freeze <= max(levels):
        raise ValueError(
            f"freeze={freeze}: it is a level from 1 (the patch embedding) to {max(levels)}, 0 for none, -1 for all"
        )
    return levels


def _steps(spatial_dims: int, depth_strides: Sequence[int] | None, levels: int) -> list[tuple[int, ...]]:
    """Return the patch's side and each merge's, per axis in array order."""
    plane = [4] + [2] * (levels - 1)
    depth = tuple(plane if depth_strides is None else depth_strides)
    if len(depth) != levels:
        raise ValueError(
            f"depth_strides needs {levels} entries (the patch's depth, then one per merge), got {list(depth)}"
        )
    return [
        (step,) * 2 if spatial_dims == 2 else (along, step, step)
        for along, step in zip(depth, plane, strict=True)
    ]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

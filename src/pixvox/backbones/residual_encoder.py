"""The encoder of a residual U-Net, for images and volumes of any spacing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import NNUNET, Suggestion, by, halving
from pixvox.layers import PerAxis, average_pool, conv, norm, per_axis

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks per level of the published networks; further levels have 6."""


class ResidualEncoder(Backbone):
    """The encoder of nnU-Net's residual networks: full resolution first, then half of it level by level.

    "nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation" (Isensee et al., 2024,
    https://arxiv.org/abs/2404.09556). Instance norms, leaky ReLU, shortcuts that average before they project.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        channels: Channels of each level, finest first.
        strides: Input pixels per feature pixel of each level: one number or one per axis in array order. Each must be
            a multiple of the one before; the first is usually 1.
        kernel_sizes: Side of the kernels of each level, odd: one number or one per axis. By default 3.
        blocks: Residual blocks of each level; by default 1, 3, 4, 6, 6, ...
        out_levels: Levels given out, counted from 0; by default all.
        norm: Normalisation, see ``pixvox.layers.norm``.
        freeze: So many levels, from the finest on, stay as they are; -1 for all.

    Raises:
        ValueError: If the lists differ in length, a stride is not a multiple of the one before, or a level does not
            exist.

    Example:
        >>> import torch
        >>> encoder = ResidualEncoder(3, 1, channels=(4, 8), strides=(1, (1, 2, 2)), kernel_sizes=((1, 3, 3), 3))
        >>> [tuple(level.shape) for level in encoder(torch.zeros(1, 1, 5, 9, 12))]
        [(1, 4, 5, 9, 12), (1, 8, 5, 5, 6)]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[PerAxis] = (1, 2, 4, 8, 16, 32),
        kernel_sizes: Sequence[PerAxis] | None = None,
        blocks: Sequence[int] | None = None,
        out_levels: Sequence[int] | None = None,
        norm: str = "instance",
        freeze: int = 0,
    ) -> None:
        count = len(channels)
        kernels = list(kernel_sizes) if kernel_sizes is not None else [3] * count
        depths = list(blocks) if blocks is not None else [*BLOCKS, *[BLOCKS[-1]] * count][:count]
        _check_lengths(count, strides=strides, kernel_sizes=kernels, blocks=depths)
        levels = sorted(out_levels) if out_levels is not None else list(range(count))
        if not levels or not set(levels) <= set(range(count)):
            raise ValueError(f"out_levels must be of 0 to {count - 1}, got {levels}")
        if not -1 <= freeze <= count:
            raise ValueError(f"freeze={freeze}: it is a number of levels from 0 to {count}, or -1 for all")
        absolute = [per_axis(stride, spatial_dims, "strides") for stride in strides]
        sides = [per_axis(kernel, spatial_dims, "kernel_sizes") for kernel in kernels]
        super().__init__(
            spatial_dims, in_channels, [channels[i] for i in levels], [absolute[i] for i in levels]
        )
        self.out_levels = tuple(levels)
        self.freeze = freeze
        self.stem = ConvNormLeaky(spatial_dims, in_channels, channels[0], sides[0], 1, norm)
        self.stages = nn.ModuleList()
        reached, width = (1,) * spatial_dims, channels[0]
        for level in range(levels[-1] + 1):
            if any(s % r for s, r in zip(absolute[level], reached, strict=True)):
                raise ValueError(
                    f"stride {absolute[level]} is not a multiple of the stride before it, {reached}"
                )
            step = tuple(s // r for s, r in zip(absolute[level], reached, strict=True))
            rest = [(channels[level], (1,) * spatial_dims)] * (depths[level] - 1)
            self.stages.append(nn.Sequential(*(
                ShortcutMeanBlock(spatial_dims, before, channels[level], sides[level], stride, norm)
                for before, stride in [(width, step), *rest]
            )))  # fmt: skip
            reached, width = absolute[level], channels[level]
        self.freeze_parts()

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose strides and kernels by spacing and size."""
        strides, kernels = [[1] * facts.spatial_dims], []
        for _ in options["channels"]:
            steps = halving(facts, strides[-1])
            # An axis is seen in slices until the others have caught up with its spacing.
            kernels.append([3 if step == 2 or min(steps) == 2 or max(steps) == 1 else 1 for step in steps])
            strides.append([stride * step for stride, step in zip(strides[-1], steps, strict=True)])
        read = f"spacing {by(facts.spacing) if facts.spacing else 'unknown'}, median size {by(facts.median_size)}"
        why = "an axis is not halved, nor looked along, while its voxels are twice as long as the shortest"
        return [
            Suggestion("strides", strides[:-1], read, why, NNUNET),
            Suggestion("kernel_sizes", kernels, read, why, NNUNET),
        ]

    def frozen_parts(self) -> list[nn.Module]:
        """Return the stem and the levels that stay as they are."""
        if not self.freeze:
            return []
        return [self.stem, *self.stages][: None if self.freeze == -1 else self.freeze + 1]

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks."""
        return [block for stage in self.stages for block in stage.children()]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first."""
        x = self.stem(images)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return tuple(levels[i] for i in self.out_levels)


class ConvNormLeaky(nn.Module):
    """Convolution, normalisation and, unless it is left out, leaky ReLU."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis,
        norm_name: str,
        act: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv(spatial_dims, in_channels, out_channels, kernel_size, stride, bias=bias)
        self.norm = norm(norm_name, spatial_dims, out_channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        x = self.norm(self.conv(x))
        return F.leaky_relu(x) if self.act else x


class ShortcutMeanBlock(nn.Module):
    """Two convolutions and a shortcut that averages where they stride and projects where channels change.

    The shortcut is that of ResNet-D in "Bag of Tricks for Image Classification with Convolutional Neural Networks" (He
    et al., 2018, https://arxiv.org/abs/1812.01187).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: Sequence[int],
        norm_name: str,
    ) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.conv1 = ConvNormLeaky(
            spatial_dims, in_channels, out_channels, kernel_size, self.stride, norm_name
        )
        self.conv2 = ConvNormLeaky(
            spatial_dims, out_channels, out_channels, kernel_size, 1, norm_name, act=False
        )
        self.projection = (
            ConvNormLeaky(spatial_dims, in_channels, out_channels, 1, 1, norm_name, act=False, bias=False)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        shortcut = x
        if max(self.stride) > 1:
            shortcut = average_pool(_whole(x, self.stride), self.stride, self.stride)
        return F.leaky_relu(self.conv2(self.conv1(x)) + self.projection(shortcut))


def _whole(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Repeat the far border until every cell is whole."""
    missing = [-length % step for length, step in zip(x.shape[2:], stride, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [side for extra in reversed(missing) for side in (0, extra)], mode="replicate")


def _check_lengths(count: int, **lists: Sequence[Any]) -> None:
    for name, values in lists.items():
        if len(values) != count:
            raise ValueError(
                f"{name} needs one entry for each of the {count} entries of channels, got {list(values)}"
            )

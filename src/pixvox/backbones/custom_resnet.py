"""A residual network of any widths and depths, for images and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pixvox.backbones.resnet import ResidualBackbone
from pixvox.layers import conv, norm

_EXPANSION = 4
"""Channels of a bottleneck's output over those of its middle layer."""


class CustomResNet(ResidualBackbone):
    """Residual network whose widths and depths are given one by one.

    "Deep Residual Learning for Image Recognition" (He et al., 2015, https://arxiv.org/abs/1512.03385). With usual
    widths it has the layers and weights' names of ``ResNet``; in 3-D it is lifted as that one is.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        stem_channels: Channels of the stem.
        channels: Channels that each stage gives out, finest first.
        depths: Blocks of each stage.
        block: ``"basic"`` (two layers of 3 x 3) or ``"bottleneck"``.
        out_levels: Stages given out, counted from 1; 0 is the stem's convolution (stride 2).
        stride_in_first_stage: Halve the size in stage 1 too, so that it has stride 8.
        stride_in_1x1: Bottlenecks stride in their first layer instead of the second.
        depth_strides: In 3-D, strides along depth of stem, pool and every stage that halves the size; by default
            as in the plane.
        frozen_stages: Parts whose weights and statistics stay as they are: 0 none, 1 the stem, 2 also stage
            1, ...
        norm: ``"batch"``, or ``"frozen"``: weights and statistics of every batch norm stay as they are.

    Raises:
        ValueError: If ``channels`` and ``depths`` differ in length, ``out_levels`` names no stage, or the block is
            unknown.

    Example:
        >>> import torch
        >>> backbone = CustomResNet(3, 1, 4, (8, 16), (1, 2), block="basic", out_levels=(1, 2))
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 1, 8, 16, 24))]
        [(1, 8, 2, 4, 6), (1, 16, 1, 2, 3)]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        stem_channels: int = 64,
        channels: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        block: str = "bottleneck",
        out_levels: Sequence[int] = (1, 2, 3, 4),
        stride_in_first_stage: bool = False,
        stride_in_1x1: bool = False,
        depth_strides: Sequence[int] | None = None,
        frozen_stages: int = 0,
        norm: str = "batch",
    ) -> None:
        if len(channels) != len(depths):
            raise ValueError(
                f"channels and depths need one entry per stage each, got channels={list(channels)} and "
                f"depths={list(depths)}"
            )
        if not out_levels or not all(0 <= level <= len(depths) for level in out_levels):
            raise ValueError(
                f"out_levels must be of 0 (the stem) to {len(depths)} (the last stage), got {list(out_levels)}"
            )
        network = ResidualNetwork(
            in_channels, stem_channels, channels, depths, block, out_levels, stride_in_first_stage
        )
        first = 3 if stride_in_first_stage else 2
        super().__init__(
            network,
            [(stem_channels, *channels)[level] for level in out_levels],
            [2 ** (first + level - 1) if level else 2 for level in out_levels],
            _reductions(max(out_levels), stride_in_first_stage),
            spatial_dims,
            in_channels,
            out_levels,
            depth_strides,
            frozen_stages,
            norm,
            stride_in_1x1,
        )

    @classmethod
    def num_reductions(cls, options: Mapping[str, Any]) -> int:
        """Return how many parts halve the size, given the options of the backbone."""
        return len(_reductions(max(options["out_levels"]), options["stride_in_first_stage"]))


class ResidualNetwork(nn.Module):
    """The network for images, its parts named as torchvision's.

    Args:
        in_channels: Channels of the images.
        stem_channels: Channels of the stem.
        channels: Channels that each stage gives out.
        depths: Blocks of each stage.
        block: ``"basic"`` or ``"bottleneck"``.
        out_levels: Stages given out, counted from 1; 0 is the stem's convolution. Later stages are not built.
        stride_in_first_stage: Halve the size in stage 1 too.
    """

    def __init__(
        self,
        in_channels: int,
        stem_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        block: str,
        out_levels: Sequence[int],
        stride_in_first_stage: bool,
    ) -> None:
        super().__init__()
        self.out_levels = tuple(out_levels)
        self.conv1 = conv(2, in_channels, stem_channels, 7, 2, bias=False)
        self.bn1 = norm("batch", 2, stem_channels)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        width = stem_channels
        for stage in range(max(self.out_levels)):
            stride = 2 if stage > 0 or stride_in_first_stage else 1
            blocks = [ResidualBlock(width, channels[stage], stride, block)]
            blocks += [
                ResidualBlock(channels[stage], channels[stage], 1, block) for _ in range(depths[stage] - 1)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            width = channels[stage]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of ``out_levels``."""
        levels = [F.relu(self.bn1(self.conv1(images)))]
        for stage in range(max(self.out_levels)):
            x = levels[-1] if stage else self.maxpool(levels[0])
            levels.append(self.get_submodule(f"layer{stage + 1}")(x))
        return [levels[level] for level in self.out_levels]


class ResidualBlock(nn.Module):
    """Two layers of 3 x 3, or 1 x 1, 3 x 3 and 1 x 1 with fewer channels, and a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first layer of 3 x 3.
        kind: ``"basic"`` or ``"bottleneck"``.

    Raises:
        ValueError: If the kind is unknown.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, kind: str) -> None:
        super().__init__()
        if kind not in ("basic", "bottleneck"):
            raise ValueError(f"block must be 'basic' or 'bottleneck', got {kind!r}")
        middle = out_channels // _EXPANSION if kind == "bottleneck" else out_channels
        layers = [(middle, 3, stride), (out_channels, 3, 1)]
        if kind == "bottleneck":
            layers = [(middle, 1, 1), (middle, 3, stride), (out_channels, 1, 1)]
        width = in_channels
        self.depth = len(layers)
        for i, (channels, kernel, step) in enumerate(layers, start=1):
            self.add_module(f"conv{i}", conv(2, width, channels, kernel, step, bias=False))
            self.add_module(f"bn{i}", norm("batch", 2, channels))
            width = channels
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                conv(2, in_channels, out_channels, 1, stride, bias=False), norm("batch", 2, out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            x = F.relu(x + shortcut if i == self.depth else x)
        return x


def _reductions(stages: int, stride_in_first_stage: bool) -> list[str]:
    first = 1 if stride_in_first_stage else 2
    return [
        "conv1",
        *(["maxpool"] if stages else []),
        *(f"layer{stage}" for stage in range(first, stages + 1)),
    ]

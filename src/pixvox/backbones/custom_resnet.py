"""A residual network of any widths and depths, for images and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pixvox.backbones.network_backbone import NetworkBackbone
from pixvox.layers import conv, norm

_EXPANSION = 4
"""Channels of a bottleneck's output over those of its middle layer."""


class CustomResNet(NetworkBackbone):
    """Residual network whose widths and depths are given one by one.

    "Deep Residual Learning for Image Recognition" (He et al., 2015, https://arxiv.org/abs/1512.03385). With usual
    widths it has the layers and weights' names of timm's ``resnet*``; in 3-D it is lifted as they are.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        stem_channels: Channels of the stem.
        channels: Channels that each stage gives out, finest first.
        depths: Blocks of each stage.
        block: ``"basic"`` (two layers of 3 x 3) or ``"bottleneck"``.
        out_levels: Levels given out: 1 is the stem's convolution (stride 2), 2 the first stage (stride 4), ...; by
            default all stages.
        stride_in_first_stage: Halve the size in stage 1 too, which is then level 3; there is no level 2.
        stride_in_1x1: Bottlenecks stride in their first layer, as in the paper, instead of the second.
        depth_strides: In 3-D, stride along depth for each halving of the plane; by default as in the plane.
        depth_kernels: In 3-D, longest kernels along depth at each level from 1 on; by default as in the plane.
        freeze: Weights and statistics that this level and finer ones are made of stay as they are; 0 for none, -1 for
            all.
        freeze_norms: Weights and statistics of every batch norm stay as they are.

    Raises:
        ValueError: If ``channels`` and ``depths`` differ in length, ``out_levels`` names no stage, or the block is
            unknown.

    Example:
        >>> import torch
        >>> backbone = CustomResNet(3, 1, 4, (8, 16), (1, 2), block="basic")
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
        out_levels: Sequence[int] | None = None,
        stride_in_first_stage: bool = False,
        stride_in_1x1: bool = False,
        depth_strides: Sequence[int] | None = None,
        depth_kernels: Sequence[int] | None = None,
        freeze: int = 0,
        freeze_norms: bool = False,
    ) -> None:
        if len(channels) != len(depths):
            raise ValueError(
                f"channels and depths need one entry per stage each, got channels={list(channels)} and "
                f"depths={list(depths)}"
            )
        self.first_stage = 3 if stride_in_first_stage else 2
        widths = {1: stem_channels} | dict(enumerate(channels, start=self.first_stage))
        levels = sorted(out_levels) if out_levels is not None else list(widths)[1:]
        if not levels or not set(levels) <= set(widths):
            raise ValueError(f"out_levels must be of {list(widths)}, got {levels}; level l has stride 2 ** l")
        stages = max(levels) - self.first_stage + 1 if max(levels) > 1 else 0
        network = ResidualNetwork(
            in_channels, stem_channels, channels[:stages], depths[:stages], block, stride_in_first_stage
        )
        if stride_in_1x1:
            network.stride_first()
        super().__init__(
            network,
            [widths[level] for level in levels],
            [2**level for level in levels],
            spatial_dims,
            in_channels,
            levels,
            depth_strides,
            depth_kernels,
            freeze,
            freeze_norms,
        )

    @classmethod
    def last_level(cls, options: Mapping[str, Any]) -> int:
        """Return the coarsest level that is given out by default."""
        return len(options["depths"]) + (2 if options["stride_in_first_stage"] else 1)

    def maps(self, images: Tensor, levels: Sequence[int]) -> Sequence[Tensor]:
        """Return the maps of ``levels``."""
        stem, *stages = self.network(images)
        return [stem if level == 1 else stages[level - self.first_stage] for level in levels]

    def known_levels(self) -> list[int]:
        """Return the levels that are built."""
        return [1, *range(self.first_stage, max(self.out_levels) + 1)]


class ResidualNetwork(nn.Module):
    """The network for images, its parts named as torchvision's.

    Args:
        in_channels: Channels of the images.
        stem_channels: Channels of the stem.
        channels: Channels that each stage gives out.
        depths: Blocks of each stage.
        block: ``"basic"`` or ``"bottleneck"``.
        stride_in_first_stage: Halve the size in stage 1 too.
    """

    def __init__(
        self,
        in_channels: int,
        stem_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        block: str,
        stride_in_first_stage: bool,
    ) -> None:
        super().__init__()
        self.num_stages = len(depths)
        self.conv1 = conv(2, in_channels, stem_channels, 7, 2, bias=False)
        self.bn1 = norm("batch", 2, stem_channels)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        width = stem_channels
        for stage in range(self.num_stages):
            stride = 2 if stage > 0 or stride_in_first_stage else 1
            blocks = [ResidualBlock(width, channels[stage], stride, block)]
            blocks += [
                ResidualBlock(channels[stage], channels[stage], 1, block) for _ in range(depths[stage] - 1)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            width = channels[stage]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the stem and of every stage."""
        levels = [F.relu(self.bn1(self.conv1(images)))]
        for stage in range(self.num_stages):
            x = levels[-1] if stage else self.maxpool(levels[0])
            levels.append(self.get_submodule(f"layer{stage + 1}")(x))
        return levels

    def stride_first(self) -> None:
        """Move the stride of each bottleneck from its second layer to its first."""
        for block in self.modules():
            if isinstance(block, ResidualBlock) and block.depth == 3:
                first, second = block.get_submodule("conv1"), block.get_submodule("conv2")
                first.stride, second.stride = second.stride, first.stride


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

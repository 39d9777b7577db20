"""BiSeNet V2's two branches: a wide and shallow one for details, a narrow and deep one for meaning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.layers import ConvNormAct, adaptive_average_pool, max_pool, norm

_DETAIL = ((64, 64), (64, 64, 64), (128, 128, 128))
"""Channels of the convolutions of each stage of the detail branch."""

_SEMANTIC = (32, 64, 128)
"""Channels of stages 3, 4 and 5 of the semantic branch."""


class BiSeNetV2Branches(Backbone):
    """A detail branch down to stride 8 and a semantic branch down to stride 32, all of whose stages are given out.

    "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation" (Yu et al., 2020,
    https://arxiv.org/abs/2004.02147), Table 1, as in https://github.com/CoinCheung/BiSeNet.

    Args:
        spatial_dims: 2.
        in_channels: Channels of the images.
        width: Factor of all numbers of channels.
        norm_name: Normalisation, see ``pixvox.layers.norm``.

    Example:
        >>> backbone = BiSeNetV2Branches()
        >>> [tuple(level.shape[1:]) for level in backbone(torch.zeros(1, 3, 64, 96))]
        [(16, 16, 24), (128, 8, 12), (32, 8, 12), (64, 4, 6), (128, 2, 3), (128, 2, 3)]
    """

    supported_dims = (2,)
    branches = ("stem", "detail", "semantic_3", "semantic_4", "semantic_5", "context")

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 3, width: float = 1.0, norm_name: str = "batch"
    ) -> None:
        def scaled(channels: int) -> int:
            return max(2, round(channels * width))

        stem, detail = scaled(16), [[scaled(channels) for channels in stage] for stage in _DETAIL]
        stages = [scaled(channels) for channels in _SEMANTIC]
        super().__init__(
            spatial_dims,
            in_channels,
            (stem, detail[-1][-1], *stages, stages[-1]),
            [(stride,) * spatial_dims for stride in (4, 8, 8, 16, 32, 32)],
        )
        layers: list[nn.Module] = []
        before = in_channels
        for stage in detail:
            for i, channels in enumerate(stage):
                layers.append(ConvNormAct(spatial_dims, before, channels, 3, 1 if i else 2, norm_name))
                before = channels
        self.detail = nn.Sequential(*layers)
        self.stem = Stem(spatial_dims, in_channels, stem, norm_name)
        self.stages = nn.ModuleList()
        for channels, narrower, count in zip(stages, [stem, *stages], (1, 1, 3), strict=False):
            blocks = [GatherExpand(spatial_dims, narrower, channels, True, norm_name)]
            blocks += [GatherExpand(spatial_dims, channels, channels, False, norm_name) for _ in range(count)]
            self.stages.append(nn.Sequential(*blocks))
        self.context = ContextEmbedding(spatial_dims, stages[-1], norm_name)

    def blocks(self) -> list[nn.Module]:
        """Return the convolutions of the detail branch, and the blocks of the semantic branch."""
        return [*self.detail, *(block for stage in self.stages for block in stage.children())]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return the levels that ``branches`` names."""
        levels = [self.stem(images)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        return levels[0], self.detail(images), *levels[1:], self.context(levels[-1])


class Stem(nn.Module):
    """A strided convolution, then another one beside max pooling.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        channels: Channels that are given out.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, norm_name: str) -> None:
        super().__init__()
        self.first = ConvNormAct(spatial_dims, in_channels, channels, 3, 2, norm_name)
        self.left = nn.Sequential(
            ConvNormAct(spatial_dims, channels, channels // 2, 1, 1, norm_name),
            ConvNormAct(spatial_dims, channels // 2, channels, 3, 2, norm_name),
        )
        self.fuse = ConvNormAct(spatial_dims, 2 * channels, channels, 3, 1, norm_name)

    def forward(self, images: Tensor) -> Tensor:
        """Return maps of a quarter of the size."""
        x = self.first(images)
        fused: Tensor = self.fuse(torch.cat([self.left(x), max_pool(x, 3, 2, 1)], dim=1))
        return fused


class GatherExpand(nn.Module):
    """A convolution, one of each channel by itself on six times as many, one back, and the shortcut.

    The layer of Figure 5; its last norm begins with zero weights, so that it begins as its shortcut.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output, as many where nothing is halved.
        halve: Halve the size.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, halve: bool, norm_name: str
    ) -> None:
        super().__init__()
        wide, dims, name = 6 * in_channels, spatial_dims, norm_name
        layers = [ConvNormAct(dims, in_channels, in_channels, 3, 1, name)]
        if halve:
            layers += [
                ConvNormAct(dims, in_channels, wide, 3, 2, name, act=False, groups=in_channels),
                ConvNormAct(dims, wide, wide, 3, 1, name, groups=wide),
            ]
        else:
            layers.append(ConvNormAct(dims, in_channels, wide, 3, 1, name, groups=in_channels))
        layers.append(ConvNormAct(dims, wide, out_channels, 1, 1, name, act=False))
        self.layers = nn.Sequential(*layers)
        self.shortcut = (
            nn.Sequential(
                ConvNormAct(dims, in_channels, in_channels, 3, 2, name, act=False, groups=in_channels),
                ConvNormAct(dims, in_channels, out_channels, 1, 1, name, act=False),
            )
            if halve
            else nn.Identity()
        )
        last = getattr(layers[-1][1], "weight", None)
        if last is not None:
            nn.init.zeros_(last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        return F.relu(self.layers(x) + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """Adds the mean of the whole map to every pixel.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of input and output.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, channels: int, norm_name: str) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            norm(norm_name, spatial_dims, channels),
            ConvNormAct(spatial_dims, channels, channels, 1, 1, norm_name),
        )
        self.last = ConvNormAct(spatial_dims, channels, channels, 3, 1, norm_name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps with their context."""
        embedded: Tensor = self.last(x + self.mean(adaptive_average_pool(x, 1)))
        return embedded

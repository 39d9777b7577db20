"""PIDNet's three branches: details, context and borders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.layers import ConvNormAct, adaptive_average_pool, average_pool, conv, norm, resize

VARIANTS = {"s": (32, 2, 3, 96), "m": (64, 2, 3, 96), "l": (64, 3, 4, 112)}
"""By variant: channels of the first stage, blocks of the first two stages and of the next two, channels of a scale."""

_POOLS = ((5, 2), (9, 4), (17, 8))
"""Kernels and strides of the scales between the whole map and its pixels."""


class PIDNetBranches(Backbone):
    """A branch that keeps details (P), one that sees far (I), one that finds borders (D), and what they become.

    "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers" (Xu et al., 2022,
    https://arxiv.org/abs/2206.02066), as in https://github.com/XuJiacong/PIDNet. P and D are given out in the middle of
    their way, where they are taught, and then the fusion of all three, each at a stride of 8.

    Args:
        spatial_dims: 2.
        in_channels: Channels of the images.
        variant: ``"s"``, ``"m"`` or ``"l"``; l is deeper, and its pooling and fusion are heavier.
        channels: Channels of the first stage; by default those of the variant.
        scale_channels: Channels of each scale of pooling; by default those of the variant.
        norm_name: Normalisation, see ``pixvox.layers.norm``.

    Raises:
        ValueError: If there is no such variant.

    Example:
        >>> backbone = PIDNetBranches()
        >>> [tuple(level.shape) for level in backbone(torch.zeros(2, 3, 64, 96))]
        [(2, 64, 8, 12), (2, 64, 8, 12), (2, 128, 8, 12)]
    """

    supported_dims = (2,)
    branches = ("proportional", "derivative", "fused")

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        variant: str = "s",
        channels: int | None = None,
        scale_channels: int | None = None,
        norm_name: str = "batch",
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
        own, few, more, scales = VARIANTS[variant]
        width, dims, name, large = channels or own, spatial_dims, norm_name, variant == "l"
        strides = [(8,) * spatial_dims] * 3
        super().__init__(spatial_dims, in_channels, (2 * width, 2 * width, 4 * width), strides)
        self.stem = nn.Sequential(
            ConvNormAct(dims, in_channels, width, 3, 2, name), ConvNormAct(dims, width, width, 3, 2, name)
        )
        self.i_stages = nn.ModuleList(
            [
                basic_stage(dims, width, width, few, 1, name),
                basic_stage(dims, width, 2 * width, few, 2, name),
                basic_stage(dims, 2 * width, 4 * width, more, 2, name),
                basic_stage(dims, 4 * width, 8 * width, more, 2, name),
                nn.Sequential(
                    Bottleneck(dims, 8 * width, 8 * width, 2, name),
                    Bottleneck(dims, 16 * width, 8 * width, 1, name),
                ),
            ]
        )
        self.p_stages = nn.ModuleList(
            [
                basic_stage(dims, 2 * width, 2 * width, few, 1, name),
                basic_stage(dims, 2 * width, 2 * width, few, 1, name),
                nn.Sequential(Bottleneck(dims, 2 * width, 2 * width, 1, name)),
            ]
        )
        middle = 2 * width if large else width
        block = BasicBlock if large else Bottleneck
        self.d_stages = nn.ModuleList(
            [
                BasicBlock(dims, 2 * width, middle, 1, name),
                block(dims, middle, middle, 1, name),
                Bottleneck(dims, 2 * width, 2 * width, 1, name),
            ]
        )
        self.i_to_p = nn.ModuleList(
            PixelAttention(dims, factor * width, 2 * width, width, name) for factor in (4, 8)
        )
        self.i_to_d = nn.ModuleList(
            ConvNormAct(dims, factor * width, wide, 3, 1, name, act=False)
            for factor, wide in ((4, middle), (8, 2 * width))
        )
        pooling = DeepPooling if large else ParallelPooling
        self.pooling = pooling(dims, 16 * width, scale_channels or scales, 4 * width, name)
        self.fusion = (BoundaryFusion if large else LightBoundaryFusion)(dims, 4 * width, name)

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks."""
        stages = [*self.i_stages, *self.p_stages]
        within = (block for stage in stages for block in stage.children() if not isinstance(block, nn.ReLU))
        return [*within, *self.d_stages]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return the levels that ``branches`` names."""
        i = F.relu(self.i_stages[0](self.stem(images)))
        i = F.relu(self.i_stages[1](i))
        size = i.shape[2:]
        p, d = self.p_stages[0](i), self.d_stages[0](i)
        i = F.relu(self.i_stages[2](i))
        early_p = F.relu(self.i_to_p[0](p, i))
        d = F.relu(d + resize(self.i_to_d[0](i), size))
        i = F.relu(self.i_stages[3](i))
        p = F.relu(self.i_to_p[1](self.p_stages[1](early_p), i))
        late_d = F.relu(self.d_stages[1](d) + resize(self.i_to_d[1](i), size))
        i = resize(self.pooling(self.i_stages[4](i)), size)
        return early_p, late_d, self.fusion(self.p_stages[2](p), i, self.d_stages[2](late_d))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; what comes next activates.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Of the first convolution.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, stride: int, norm_name: str
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNormAct(spatial_dims, in_channels, channels, 3, stride, norm_name),
            ConvNormAct(spatial_dims, channels, channels, 3, 1, norm_name, act=False),
        )
        self.shortcut = _shortcut(spatial_dims, in_channels, channels, stride, norm_name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps, not activated."""
        transformed: Tensor = self.layers(x) + self.shortcut(x)
        return transformed


class Bottleneck(nn.Module):
    """Three convolutions, of which the last doubles the channels, and a shortcut; what comes next activates.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        channels: Half of the channels of the output.
        stride: Of the second convolution.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, stride: int, norm_name: str
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNormAct(spatial_dims, in_channels, channels, 1, 1, norm_name),
            ConvNormAct(spatial_dims, channels, channels, 3, stride, norm_name),
            ConvNormAct(spatial_dims, channels, 2 * channels, 1, 1, norm_name, act=False),
        )
        self.shortcut = _shortcut(spatial_dims, in_channels, 2 * channels, stride, norm_name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps, not activated."""
        transformed: Tensor = self.layers(x) + self.shortcut(x)
        return transformed


def basic_stage(
    spatial_dims: int, in_channels: int, channels: int, count: int, stride: int, norm_name: str
) -> nn.Sequential:
    """Return basic blocks, activated between each other but not at the end."""
    layers: list[nn.Module] = [BasicBlock(spatial_dims, in_channels, channels, stride, norm_name)]
    for _ in range(count - 1):
        layers += [nn.ReLU(), BasicBlock(spatial_dims, channels, channels, 1, norm_name)]
    return nn.Sequential(*layers)


def _shortcut(
    spatial_dims: int, in_channels: int, out_channels: int, stride: int, norm_name: str
) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNormAct(spatial_dims, in_channels, out_channels, 1, stride, norm_name, act=False)


class PixelAttention(nn.Module):
    """Takes from another branch as much at each pixel as both are alike there (PagFM).

    Args:
        spatial_dims: 2 or 3.
        other_channels: Channels of the other branch.
        channels: Channels of this one, and of what is given out.
        hidden_channels: Channels that are compared.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, other_channels: int, channels: int, hidden_channels: int, norm_name: str
    ) -> None:
        super().__init__()

        def layer(width: int, wide: int) -> ConvNormAct:
            return ConvNormAct(spatial_dims, width, wide, 1, 1, norm_name, act=False)

        self.compress = layer(other_channels, channels)
        self.own = layer(channels, hidden_channels)
        self.other = layer(channels, hidden_channels)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the mixture at the size of ``x``."""
        size = x.shape[2:]
        other = self.compress(other)
        alike = (self.own(x) * resize(self.other(other), size)).sum(dim=1, keepdim=True).sigmoid()
        mixed: Tensor = (1 - alike) * x + alike * resize(other, size)
        return mixed


class PooledScales(nn.Module):
    """A map beside its means over ever larger windows, the last of which is the whole map.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the map.
        channels: Channels of each scale.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, norm_name: str) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            norm_act_conv(spatial_dims, in_channels, channels, 1, norm_name) for _ in range(len(_POOLS) + 2)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the scales at the size of ``x``, that of its pixels first."""
        pooled = [average_pool(x, kernel, stride, kernel // 2) for kernel, stride in _POOLS]
        maps = [x, *pooled, adaptive_average_pool(x, 1)]
        return [resize(scale(means), x.shape[2:]) for scale, means in zip(self.scales, maps, strict=True)]


class ParallelPooling(nn.Module):
    """Pooled scales that are smoothed side by side (PAPPM).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the map.
        channels: Channels of each scale.
        out_channels: Channels that are given out.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, out_channels: int, norm_name: str
    ) -> None:
        super().__init__()
        self.scales = PooledScales(spatial_dims, in_channels, channels, norm_name)
        self.smooth = norm_act_conv(spatial_dims, 4 * channels, 4 * channels, 3, norm_name, groups=4)
        self.compress = norm_act_conv(spatial_dims, 5 * channels, out_channels, 1, norm_name)
        self.shortcut = norm_act_conv(spatial_dims, in_channels, out_channels, 1, norm_name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its context."""
        first, *wider = self.scales(x)
        smooth = self.smooth(torch.cat([scale + first for scale in wider], dim=1))
        pooled: Tensor = self.compress(torch.cat([first, smooth], dim=1)) + self.shortcut(x)
        return pooled


class DeepPooling(nn.Module):
    """Pooled scales that are smoothed one after the other, each with the one before it (DAPPM).

    "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes" (Hong et al., 2021,
    https://arxiv.org/abs/2101.06085).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the map.
        channels: Channels of each scale.
        out_channels: Channels that are given out.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, out_channels: int, norm_name: str
    ) -> None:
        super().__init__()
        self.scales = PooledScales(spatial_dims, in_channels, channels, norm_name)
        self.smooth = nn.ModuleList(
            norm_act_conv(spatial_dims, channels, channels, 3, norm_name) for _ in range(4)
        )
        self.compress = norm_act_conv(spatial_dims, 5 * channels, out_channels, 1, norm_name)
        self.shortcut = norm_act_conv(spatial_dims, in_channels, out_channels, 1, norm_name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its context."""
        first, *wider = self.scales(x)
        maps = [first]
        for smooth, scale in zip(self.smooth, wider, strict=True):
            maps.append(smooth(scale + maps[-1]))
        pooled: Tensor = self.compress(torch.cat(maps, dim=1)) + self.shortcut(x)
        return pooled


class BoundaryFusion(nn.Module):
    """Takes details where a border is near and context elsewhere (Bag).

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of each branch.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, channels: int, norm_name: str) -> None:
        super().__init__()
        self.mix = norm_act_conv(spatial_dims, channels, channels, 3, norm_name)

    def forward(self, p: Tensor, i: Tensor, d: Tensor) -> Tensor:
        """Return the joined branches."""
        near = d.sigmoid()
        joined: Tensor = self.mix(near * p + (1 - near) * i)
        return joined


class LightBoundaryFusion(nn.Module):
    """Takes details where a border is near and context elsewhere, by convolutions of single pixels (Light-Bag).

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of each branch.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, channels: int, norm_name: str) -> None:
        super().__init__()
        self.details = ConvNormAct(spatial_dims, channels, channels, 1, 1, norm_name, act=False)
        self.context = ConvNormAct(spatial_dims, channels, channels, 1, 1, norm_name, act=False)

    def forward(self, p: Tensor, i: Tensor, d: Tensor) -> Tensor:
        """Return the joined branches."""
        near = d.sigmoid()
        joined: Tensor = self.details((1 - near) * i + p) + self.context(i + near * p)
        return joined


def norm_act_conv(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int, norm_name: str, groups: int = 1
) -> nn.Sequential:
    """Return normalisation, ReLU and a convolution."""
    return nn.Sequential(
        norm(norm_name, spatial_dims, in_channels),
        nn.ReLU(inplace=True),
        conv(spatial_dims, in_channels, out_channels, kernel_size, groups=groups, bias=False),
    )

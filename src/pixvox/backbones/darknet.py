"""DarkNet-18 to -53 for images and volumes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import Suggestion, suggest_depth_strides
from pixvox.layers import ConvNormAct, PerAxis

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

DARKNET53 = (1, 2, 8, 8, 4)
"""Residual blocks of the five stages of the published network."""

_STAGES = 5


class ConvLeaky(nn.Sequential):
    """Convolution, normalisation, leaky ReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd.
        stride: One number, or one per axis in array order.
        norm: Normalisation, see ``pixvox.layers.norm``.
        slope: Slope below zero.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: PerAxis = 1,
        norm: str = "batch",
        slope: float = 0.01,
    ) -> None:
        unit = ConvNormAct(spatial_dims, in_channels, out_channels, kernel_size, stride, norm, act=False)
        super().__init__(*unit, nn.LeakyReLU(slope, inplace=True))


class DarkBlock(nn.Module):
    """A 1x1 convolution to half of the channels, a 3x3 convolution back, and the shortcut.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of input and output.
        norm: Normalisation, see ``pixvox.layers.norm``.
        slope: Slope of the leaky ReLU below zero.
    """

    def __init__(self, spatial_dims: int, channels: int, norm: str, slope: float) -> None:
        super().__init__()
        self.conv1 = ConvLeaky(spatial_dims, channels, channels // 2, 1, 1, norm, slope)
        self.conv2 = ConvLeaky(spatial_dims, channels // 2, channels, 3, 1, norm, slope)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        transformed: Tensor = self.conv2(self.conv1(x))
        return transformed + x


class DarkStage(nn.Module):
    """A strided convolution, then residual blocks.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        depth: Residual blocks.
        stride: Stride per axis in array order.
        norm: Normalisation, see ``pixvox.layers.norm``.
        slope: Slope of the leaky ReLU below zero.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        depth: int,
        stride: Sequence[int],
        norm: str,
        slope: float,
    ) -> None:
        super().__init__()
        self.down = ConvLeaky(spatial_dims, in_channels, out_channels, 3, stride, norm, slope)
        self.blocks = nn.Sequential(
            *(DarkBlock(spatial_dims, out_channels, norm, slope) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the next level."""
        out: Tensor = self.blocks(self.down(x))
        return out


class DarkNet(Backbone):
    """Residual blocks of a narrow 1x1 and a wide 3x3 convolution, halving the size five times.

    "YOLOv3: An Incremental Improvement" (Redmon and Farhadi, 2018, https://arxiv.org/abs/1804.02767): 53 layers are
    blocks of 1, 2, 8, 8, 4 per stage. The same source serves volumes; 2-D weights become the centre slices of the
    kernels.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        depths: Residual blocks of each of the five stages.
        width: Channels of the stem, doubled by every stage.
        out_levels: Levels given out, counted from 1 (stride 2) to 5 (stride 32); 0 is the stem (stride 1).
        depth_strides: In 3-D, strides along depth of the five stages; by default as in the plane.
        negative_slope: Slope of the leaky ReLU below zero; timm's weights were trained with 0.01, the paper's
            with 0.1.
        norm: Normalisation, see ``pixvox.layers.norm``; ``"group"`` suits batches of one or two.
        pretrained: Load timm's ImageNet weights of darknet53 (fetched once by timm), or those of a file at this path.
        freeze: Weights and statistics that this level and finer ones are made of stay as they are; 0 for none, -1 for
            all.

    Raises:
        ValueError: If there are not five ``depths`` or ``depth_strides``, a level does not exist, or weights are
            asked for a network that has none.

    Example:
        >>> backbone = DarkNet(depths=(1, 1, 1, 1, 1), width=4)
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 64, 96))], backbone.strides
        ([(1, 32, 8, 12), (1, 64, 4, 6), (1, 128, 2, 3)], ((8, 8), (16, 16), (32, 32)))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        depths: Sequence[int] = DARKNET53,
        width: int = 32,
        out_levels: Sequence[int] = (3, 4, 5),
        depth_strides: Sequence[int] | None = None,
        negative_slope: float = 0.01,
        norm: str = "batch",
        pretrained: bool | str = False,
        freeze: int = 0,
    ) -> None:
        along_depth = tuple(depth_strides) if depth_strides is not None else (2,) * _STAGES
        _check(depths, along_depth, out_levels)
        steps = [(*(along_depth[stage],) * (spatial_dims - 2), 2, 2) for stage in range(_STAGES)]
        reached = [(1,) * spatial_dims]
        for step in steps:
            reached.append(tuple(r * s for r, s in zip(reached[-1], step, strict=True)))
        levels = sorted(out_levels)
        channels = [width * 2**level for level in range(_STAGES + 1)]
        super().__init__(
            spatial_dims, in_channels, [channels[i] for i in levels], [reached[i] for i in levels]
        )
        self.out_levels = tuple(levels)
        self.stem = ConvLeaky(spatial_dims, in_channels, width, 3, 1, norm, negative_slope)
        self.stages = nn.ModuleList(
            DarkStage(spatial_dims, channels[i], channels[i + 1], depths[i], steps[i], norm, negative_slope)
            for i in range(levels[-1])
        )
        if pretrained:
            self._load_imagenet(tuple(depths), width, norm, pretrained)
        if not -1 <= freeze <= levels[-1]:
            raise ValueError(f"freeze={freeze}: it is a level from 1 to {levels[-1]}, 0 for none, -1 for all")
        self.freeze = freeze
        self.freeze_parts()

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        return suggest_depth_strides(facts, _STAGES)

    def blocks(self) -> list[nn.Module]:
        """Return the strided convolutions and the residual blocks, in order."""
        return [
            part
            for stage in self.stages
            if isinstance(stage, DarkStage)
            for part in (stage.down, *stage.blocks)
        ]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return tuple(maps[level] for level in self.out_levels)

    def frozen_parts(self) -> list[nn.Module]:
        """Return the stem and the stages that stay as they are."""
        if self.freeze == -1:
            return list(self.children())
        return [self.stem, *self.stages][: self.freeze + 1] if self.freeze else []

    def _load_imagenet(self, depths: tuple[int, ...], width: int, norm: str, pretrained: bool | str) -> None:
        if (depths, width, norm) != (DARKNET53, 32, "batch"):
            raise ValueError(
                f"pretrained=True: there are weights for darknet53 (depths={DARKNET53}, width=32, norm='batch'), "
                f"not for depths={depths}, width={width}, norm={norm!r}; choose backbone=darknet53, or "
                "pretrained=False"
            )
        from pixvox.weights.timm_network import timm_weights

        self.load_timm(timm_weights("darknet53", pretrained, self.in_channels))

    def load_timm(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of timm's network of the same depths; in 3-D as the centre slices of the kernels.

        Args:
            state: State dict of timm's ``darknet53`` or of one with other depths; its classifier is passed over.

        Raises:
            ValueError: If a weight is missing or has another shape.
        """
        renamed = {_own_name(name): value for name, value in state.items()}
        own = self.state_dict()
        missing = sorted(own.keys() - renamed.keys())
        if missing:
            raise ValueError(
                f"timm's weights lack {len(missing)} of {len(own)} entries, the first is {missing[0]}: "
                "depths must be those of the network that they come from"
            )
        self.load_state_dict({name: _centred(renamed[name], like, name) for name, like in own.items()})


def _check(depths: Sequence[int], depth_strides: Sequence[int], out_levels: Sequence[int]) -> None:
    """Refuse what does not describe five stages."""
    for name, values in (("depths", depths), ("depth_strides", depth_strides)):
        if len(values) != _STAGES:
            raise ValueError(f"{name} needs one entry for each of the {_STAGES} stages, got {list(values)}")
    if not out_levels or not set(out_levels) <= set(range(_STAGES + 1)):
        raise ValueError(
            f"out_levels are numbers from 0 (stride 1) to {_STAGES} (stride 32), got {list(out_levels)}"
        )


def _own_name(name: str) -> str:
    """Return our name of a weight of timm's: the unit's convolution is its part 0, the normalisation part 1."""
    name = re.sub(r"\.bn\.", ".1.", re.sub(r"\.conv\.", ".0.", name))
    return name.replace("stem.conv1.", "stem.").replace("conv_down.", "down.")


def _centred(weight: Tensor, like: Tensor, name: str) -> Tensor:
    """Return ``weight`` as it is, or as the centre slice of a kernel with one axis more."""
    if weight.shape == like.shape:
        return weight
    lifted = torch.zeros_like(like)
    centre = lifted[:, :, like.shape[2] // 2] if like.dim() == weight.dim() + 1 else None
    if centre is None or centre.shape != weight.shape:
        raise ValueError(
            f"{name}: timm's weight has shape {tuple(weight.shape)}, this network's {tuple(like.shape)}; "
            "in_channels, width and depths must agree"
        )
    centre.copy_(weight)
    return lifted

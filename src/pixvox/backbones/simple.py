"""A small residual network for images and volumes: tests, demonstrations, and small data on a CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import NNUNET, Suggestion, by, pyramid_strides
from pixvox.layers import ConvNormAct, PerAxis, per_axis

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut.

    "Deep Residual Learning for Image Recognition" (He et al., 2015, https://arxiv.org/abs/1512.03385), Figure 2.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, stride: PerAxis, norm: str
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(spatial_dims, in_channels, out_channels, 3, stride, norm)
        self.conv2 = ConvNormAct(spatial_dims, out_channels, out_channels, 3, 1, norm, act=False)
        changes = in_channels != out_channels or any(s != 1 for s in per_axis(stride, spatial_dims))
        self.shortcut = (
            ConvNormAct(spatial_dims, in_channels, out_channels, 1, stride, norm, act=False)
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Simple(Backbone):
    """A stem and one residual stage per level.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        channels: Channels of each level, finest first.
        strides: Input pixels per feature pixel of each level: one number or one per axis in array order. Each
            must be a multiple of the one before.
        blocks: Residual blocks per level.
        norm: Normalisation, see ``pixvox.layers.norm``; ``"group"`` suits batches of one or two.

    Raises:
        ValueError: If there are not as many strides as channels, or a stride is not a multiple of the one
            before.

    Example:
        >>> import torch
        >>> backbone = Simple(spatial_dims=3, in_channels=1, channels=(8, 16), strides=((1, 2, 2), (2, 4, 4)))
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 1, 4, 16, 24))]
        [(1, 8, 4, 8, 12), (1, 16, 2, 4, 6)]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[PerAxis] = (4, 8, 16, 32),
        blocks: int = 1,
        norm: str = "batch",
    ) -> None:
        if len(strides) != len(channels):
            raise ValueError(
                f"give one stride per level: {len(channels)} channels but {len(strides)} strides, "
                f"{list(strides)}; set channels and strides together, finest level first"
            )
        absolute = [per_axis(stride, spatial_dims, "strides") for stride in strides]
        super().__init__(spatial_dims, in_channels, channels, absolute)
        first = [min(2, step) for step in absolute[0]]
        self.stem = ConvNormAct(spatial_dims, in_channels, channels[0], 3, first, norm)
        reached, width = first, int(channels[0])
        self.stages = nn.ModuleList()
        for level, stride in zip(channels, absolute, strict=True):
            if any(s % r != 0 for s, r in zip(stride, reached, strict=True)):
                raise ValueError(
                    f"stride {stride} is not a multiple of the stride before it, {tuple(reached)}"
                )
            steps = [s // r for s, r in zip(stride, reached, strict=True)]
            stage = [ResidualBlock(spatial_dims, width, level, steps, norm)]
            stage += [ResidualBlock(spatial_dims, level, level, 1, norm) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            reached, width = list(stride), level

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose strides by the small objects and the spacing."""
        levels = len(options["channels"])
        if len(facts.object_sides):
            small = min(facts.side(10)[-2:])
            first, read = (
                (4 if small >= 16 else 2),
                f"small objects measure {small:.0f} pixels (10th percentile)",
            )
            why = "the finest level sees small objects in four cells"
        else:
            first = max(
                1, min(4, 2 ** int(math.log2(max(1, min(facts.median_size[-2:]) / 2 ** (levels + 1)))))
            )
            read = f"median size {by(facts.median_size)}"
            why = "as fine as the coarsest level keeps four cells"
        if facts.spatial_dims == 3:
            read += f", spacing {by(facts.spacing) if facts.spacing else 'unknown'}"
            why += "; an axis is not halved while its voxels are twice as long as the shortest"
        return [Suggestion("strides", pyramid_strides(facts, first, levels), read, why, NNUNET)]

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
        return tuple(levels)

"""RegSeg's encoder: blocks whose groups of channels look near and far, for images and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import Suggestion, suggest_depth_strides
from pixvox.layers import ConvNormAct, adaptive_average_pool, average_pool, conv, norm
from pixvox.structures import Size

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

EXP48 = ((1,), (1, 2), *[(1, 4)] * 4, *[(1, 14)] * 7)
"""Dilations of the two halves of the channels in each block at stride 16, of the published network."""


class RegSegEncoder(Backbone):
    """A stem and D blocks; dilated convolutions see far at a stride of 16.

    "Rethinking Dilated Convolution for Real-time Semantic Segmentation" (Gao, 2021, https://arxiv.org/abs/2111.09957),
    the network ``exp48`` of https://github.com/RolandGao/RegSeg.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        channels: Channels of the stem, of the levels of strides 4, 8 and 16, and of the last block.
        dilations: Dilations of the parts of the channels, for each block of stride 16 behind the first.
        group_width: Channels of each group of a convolution.
        depth_strides: In 3-D, stride along depth of the four halvings; by default as in the plane.
        norm_name: Normalisation, see ``pixvox.layers.norm``.

    Raises:
        ValueError: If there are not five ``channels`` or four ``depth_strides``, or the channels cannot be split.

    Example:
        >>> backbone = RegSegEncoder()
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 64, 96))]
        [(1, 48, 16, 24), (1, 128, 8, 12), (1, 320, 4, 6)]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 48, 128, 256, 320),
        dilations: Sequence[Sequence[int]] = EXP48,
        group_width: int = 16,
        depth_strides: Sequence[int] | None = None,
        norm_name: str = "batch",
    ) -> None:
        depth = tuple(depth_strides) if depth_strides is not None else (2,) * 4
        for name, values, count in (("channels", channels, 5), ("depth_strides", depth, 4)):
            if len(values) != count:
                raise ValueError(f"{name} needs {count} entries, got {list(values)}")
        steps = [(*(along,) * (spatial_dims - 2), 2, 2) for along in depth]
        strides = [steps[0]]
        for step in steps[1:]:
            strides.append(tuple(reached * s for reached, s in zip(strides[-1], step, strict=True)))
        stem, fine, middle, coarse, last = channels
        super().__init__(spatial_dims, in_channels, (fine, middle, last), strides[1:])

        def block(width: int, wider: int, spread: Sequence[int] = (1,), step: Size | None = None) -> DBlock:
            return DBlock(spatial_dims, width, wider, spread, group_width, step, norm_name)

        self.stem = ConvNormAct(spatial_dims, in_channels, stem, 3, steps[0], norm_name)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(block(stem, fine, step=steps[1])),
                nn.Sequential(block(fine, middle, step=steps[2]), *(block(middle, middle) for _ in range(2))),
                nn.Sequential(
                    block(middle, coarse, step=steps[3]),
                    *(block(coarse, coarse, spread) for spread in dilations[:-1]),
                    block(coarse, last, dilations[-1]),
                ),
            ]
        )

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        return suggest_depth_strides(facts, 4)

    def blocks(self) -> list[nn.Module]:
        """Return the D blocks."""
        return [block for stage in self.stages for block in stage.children()]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return maps of strides 4, 8 and 16."""
        x = self.stem(self.padded(images))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return self.cropped(levels, images.shape[2:])


class DBlock(nn.Module):
    """A bottleneck of full width whose middle convolution has groups of several dilations.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dilations: Of each part of the channels.
        group_width: Channels of each group of the convolution.
        step: Stride, per axis in array order; None keeps the size.
        norm_name: Normalisation, see ``pixvox.layers.norm``.

    Raises:
        ValueError: If the channels cannot be split so.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        group_width: int,
        step: Size | None,
        norm_name: str,
    ) -> None:
        super().__init__()
        part = out_channels // len(dilations)
        if out_channels % (len(dilations) * group_width):
            raise ValueError(
                f"{out_channels} channels cannot be split in {len(dilations)} parts of whole groups of {group_width}; "
                f"choose a multiple of {len(dilations) * group_width}"
            )
        self.step = step
        self.reduce = ConvNormAct(spatial_dims, in_channels, out_channels, 1, 1, norm_name)
        self.spread = nn.ModuleList(
            conv(spatial_dims, part, part, 3, step or 1, dilation, part // group_width, bias=False)
            for dilation in dilations
        )
        self.norm = norm(norm_name, spatial_dims, out_channels)
        self.attention = SqueezeExcite(spatial_dims, out_channels, max(1, in_channels // 4))
        self.expand = ConvNormAct(spatial_dims, out_channels, out_channels, 1, 1, norm_name, act=False)
        self.shortcut = (
            ConvNormAct(spatial_dims, in_channels, out_channels, 1, 1, norm_name, act=False)
            if step is not None or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        parts = self.reduce(x).chunk(len(self.spread), dim=1)
        maps = torch.cat([spread(part) for spread, part in zip(self.spread, parts, strict=True)], dim=1)
        maps = self.expand(self.attention(F.relu(self.norm(maps))))
        shortcut = self.shortcut(x if self.step is None else average_pool(x, self.step, self.step))
        return F.relu(maps + shortcut)


class SqueezeExcite(nn.Module):
    """Weighs the channels by what is in the whole map.

    "Squeeze-and-Excitation Networks" (Hu et al., 2017, https://arxiv.org/abs/1709.01507).

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of input and output.
        hidden_channels: Channels between.
    """

    def __init__(self, spatial_dims: int, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.squeeze = conv(spatial_dims, channels, hidden_channels, 1)
        self.excite = conv(spatial_dims, hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighed maps."""
        weighed: Tensor = x * self.excite(F.relu(self.squeeze(adaptive_average_pool(x, 1)))).sigmoid()
        return weighed

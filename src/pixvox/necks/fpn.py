"""Feature pyramid network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor, nn

from pixvox.data.suggestions import FPN_PAPER, Suggestion
from pixvox.layers import ConvNormAct, conv, max_pool, resize
from pixvox.necks.neck import Neck

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint


class FPN(Neck):
    """Top-down pathway with lateral connections: every level gets the semantics of the coarsest.

    "Feature Pyramid Networks for Object Detection" (Lin et al., 2017, https://arxiv.org/abs/1612.03144), for images
    and volumes.

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        strides: Strides of the backbone's levels, per axis in array order.
        spatial_dims: 2 or 3.
        out_channels: Channels of every level given out.
        extra_level: Add a coarser level, every second pixel of the coarsest one (for the largest anchors).
        norm: Normalisation after each convolution, see ``pixvox.layers.norm``.

    Example:
        >>> import torch
        >>> neck = FPN(in_channels=(8, 16), strides=((4, 4), (8, 8)), out_channels=4)
        >>> levels = neck((torch.zeros(1, 8, 8, 12), torch.zeros(1, 16, 4, 6)))
        >>> [tuple(level.shape) for level in levels], neck.strides
        ([(1, 4, 8, 12), (1, 4, 4, 6), (1, 4, 2, 3)], ((4, 4), (8, 8), (16, 16)))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        spatial_dims: int = 2,
        out_channels: int = 256,
        extra_level: bool = True,
        norm: str = "none",
    ) -> None:
        out_strides = [tuple(stride) for stride in strides]
        if extra_level:
            out_strides.append(tuple(2 * step for step in out_strides[-1]))
        super().__init__((out_channels,) * len(out_strides), out_strides)
        self.extra_level = extra_level

        def layer(channels: int, kernel_size: int) -> nn.Module:
            if norm == "none":
                return conv(spatial_dims, channels, out_channels, kernel_size)
            return ConvNormAct(spatial_dims, channels, out_channels, kernel_size, 1, norm, act=False)

        self.lateral = nn.ModuleList([layer(channels, 1) for channels in in_channels])
        self.output = nn.ModuleList([layer(out_channels, 3) for _ in in_channels])
        for module in self.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def suggest(
        cls, facts: Fingerprint, options: Mapping[str, Any], strides: Sequence[Sequence[int]]
    ) -> list[Suggestion]:
        """Leave the extra level out when no object is large enough for it."""
        if not len(facts.object_sides):
            return []
        large, extra = max(facts.side(95)[-2:]), 2 * max(strides[-1][-2:])
        needed = large >= 3 * extra
        return [
            Suggestion(
                "extra_level",
                needed,
                f"large objects measure {large:.0f} pixels in the plane (95th percentile)",
                f"a further level of stride {extra} is for objects from {3 * extra} pixels on",
                FPN_PAPER,
            )
        ]

    def forward(
        self, levels: Sequence[Tensor], valid_sizes: Int[Tensor, "batch dims"] | None = None
    ) -> tuple[Tensor, ...]:
        """Return the pyramid, finest first."""
        outputs = self.pyramid(levels)
        if self.extra_level:
            outputs.append(max_pool(outputs[-1], kernel_size=1, stride=2))
        return tuple(outputs)

    def pyramid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return as many levels as the backbone has, finest first."""
        merged: list[Tensor] = []
        for level, lateral in zip(reversed(levels), reversed(self.lateral), strict=True):
            x = lateral(level)
            merged.append(x + resize(merged[-1], x.shape[2:], mode="nearest") if merged else x)
        return [output(x) for output, x in zip(self.output, reversed(merged), strict=True)]

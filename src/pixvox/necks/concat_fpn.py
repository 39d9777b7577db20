"""Feature pyramid that concatenates where FPN adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixvox.layers import ConvNormAct, resize
from pixvox.necks.neck import Neck


class ConcatFPN(Neck):
    """Top-down pathway that upsamples, concatenates and convolves, for any number of levels.

    The pathway of "YOLOv3: An Incremental Improvement" (Redmon and Farhadi, 2018, https://arxiv.org/abs/1804.02767):
    the coarser map is upsampled (nearest) and concatenated with the backbone's level; a 1x1 and a 3x3 convolution
    mix the two. Concatenating keeps what adding mixes, at the cost of wider convolutions.

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        strides: Strides of the backbone's levels, per axis in array order.
        spatial_dims: 2 or 3.
        out_channels: Channels of every level given out but the coarsest.
        coarsest_channels: Channels of the coarsest level given out.
        norm: Normalisation, see ``pixvox.layers.norm``; ``"group"`` suits batches of one or two.

    Example:
        >>> neck = ConcatFPN(in_channels=(8, 16), strides=((8, 8), (16, 16)), out_channels=4, coarsest_channels=6)
        >>> levels = neck((torch.zeros(1, 8, 9, 12), torch.zeros(1, 16, 5, 6)))
        >>> [tuple(level.shape) for level in levels], neck.channels
        ([(1, 4, 9, 12), (1, 6, 5, 6)], (4, 6))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        spatial_dims: int = 2,
        out_channels: int = 256,
        coarsest_channels: int = 512,
        norm: str = "batch",
    ) -> None:
        channels = [out_channels] * (len(in_channels) - 1) + [coarsest_channels]
        super().__init__(channels, strides)
        above = [*channels[1:], 0]  # what comes down from the next coarser level
        self.mix = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(spatial_dims, own + coarser, out, 1, 1, norm),
                ConvNormAct(spatial_dims, out, out, 3, 1, norm),
            )
            for own, coarser, out in zip(in_channels, above, channels, strict=True)
        )

    def forward(self, levels: Sequence[Tensor], valid_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the pyramid, finest first; padding is treated like the rest (``valid_sizes`` is not used)."""
        outputs: list[Tensor] = []
        for level, mix in zip(reversed(levels), reversed(self.mix), strict=True):
            if outputs:
                level = torch.cat([level, resize(outputs[-1], level.shape[2:], mode="nearest")], dim=1)
            outputs.append(mix(level))
        return tuple(reversed(outputs))

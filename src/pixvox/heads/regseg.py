"""RegSeg's decoder: levels joined from coarse to fine, the finest with few channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixvox.heads.semantic_head import SemanticHead
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.structures import Features


class RegSeg(SemanticHead):
    """Add each level to the next finer one, and put the finest beside what they become.

    "Rethinking Dilated Convolution for Real-time Semantic Segmentation" (Gao, 2021, https://arxiv.org/abs/2111.09957),
    the decoder of Figure 6, there over levels of strides 4, 8 and 16.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of the coarser levels; half of them go on to the finest.
        fine_channels: Channels of the finest level.
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, or there is one level alone.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        channels: int = 128,
        fine_channels: int = 8,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes,
            spatial_dims,
            losses,
            score_threshold=score_threshold,
            pseudo_label_threshold=pseudo_label_threshold,
        )
        if len(in_channels) < 2:
            raise ValueError(
                f"RegSeg joins levels, got one alone of stride {tuple(strides[0])}; choose backbone=regseg, or one "
                "that gives out levels of strides 4, 8 and 16"
            )
        coarser = len(in_channels) - 1
        self.laterals = nn.ModuleList(
            ConvNormAct(spatial_dims, width, own, 1, 1, norm)
            for width, own in zip(in_channels, (fine_channels, *[channels] * coarser), strict=True)
        )
        half = channels // 2
        self.middle = nn.ModuleList(
            ConvNormAct(spatial_dims, channels, channels if i else half, 3, 1, norm)
            for i in range(coarser - 1)
        )
        width = (half if coarser > 1 else channels) + fine_channels
        self.fine = ConvNormAct(spatial_dims, width, half, 3, 1, norm)
        self.classifier = conv(spatial_dims, half, num_classes, 1)

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the finest level; none of them only teach."""
        fine, *coarser = (
            lateral(level) for lateral, level in zip(self.laterals, features.levels, strict=True)
        )
        x = coarser.pop()
        for join, level in zip(reversed(self.middle), reversed(coarser), strict=True):
            x = join(level + resize(x, level.shape[2:]))
        return self.classifier(self.fine(torch.cat([resize(x, fine.shape[2:]), fine], dim=1))), {}

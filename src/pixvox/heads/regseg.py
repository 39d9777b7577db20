"""RegSeg's decoder: three levels joined from coarse to fine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixvox.heads.semantic_head import SemanticHead
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.structures import Features


class RegSeg(SemanticHead):
    """Add the coarsest of the three finest levels to the middle one, and put the finest beside them.

    "Rethinking Dilated Convolution for Real-time Semantic Segmentation" (Gao, 2021, https://arxiv.org/abs/2111.09957),
    the decoder of Figure 6, over levels of strides 4, 8 and 16.

    Args:
        in_channels: Channels of each level, finest first; the first three are used.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of the two coarser levels; half of them go on to the finest.
        fine_channels: Channels of the finest level.
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, or there are fewer than three levels.
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
        if len(in_channels) < 3:
            raise ValueError(
                f"RegSeg joins three levels, got {len(in_channels)} of strides {[tuple(s) for s in strides]}; "
                "choose backbone=regseg, or one that gives out levels of strides 4, 8 and 16"
            )
        self.laterals = nn.ModuleList(
            ConvNormAct(spatial_dims, width, own, 1, 1, norm)
            for width, own in zip(in_channels, (fine_channels, channels, channels), strict=False)
        )
        half = channels // 2
        self.middle = ConvNormAct(spatial_dims, channels, half, 3, 1, norm)
        self.fine = ConvNormAct(spatial_dims, half + fine_channels, half, 3, 1, norm)
        self.classifier = conv(spatial_dims, half, num_classes, 1)

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the finest level; none of them only teach."""
        fine, middle, coarse = (
            lateral(level) for lateral, level in zip(self.laterals, features.levels, strict=False)
        )
        middle = self.middle(middle + resize(coarse, middle.shape[2:]))
        joined = torch.cat([resize(middle, fine.shape[2:]), fine], dim=1)
        return self.classifier(self.fine(joined)), {}

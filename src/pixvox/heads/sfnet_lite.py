"""SFNet-Lite: context and the finest level meet in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixvox.heads.semantic_flow import ContextPooling, GatedDualFlowAlignment
from pixvox.heads.semantic_head import SemanticHead, classifier
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.structures import Features


class SFNetLite(SemanticHead):
    """Warp the context of the coarsest level and the finest level towards each other, and put a third beside them.

    "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow" (Li et al., 2022,
    https://arxiv.org/abs/2207.04415), as in https://github.com/lxtGH/SFSegNets.

    Args:
        in_channels: Channels of each level, finest first; the finest and the last two are used.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of all levels; the paper has 128 over ResNet-18.
        pool_gate: The gate between both maps sees mean and maximum of their channels, instead of half of the channels.
        dropout: Share of hidden channels set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        deep_supervision: What both maps become learns by itself too.
        aux_weight: Weight of the terms of its scores, ``aux``.
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
        pool_gate: bool = True,
        dropout: float = 0.1,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        deep_supervision: bool = False,
        aux_weight: float = 1.0,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        if len(in_channels) < 3:
            raise ValueError(
                f"SFNet-Lite joins the finest and the two coarsest levels, got {len(in_channels)} of strides "
                f"{[tuple(stride) for stride in strides]}; choose a backbone that gives out three or more"
            )
        fine, middle, coarse = in_channels[0], in_channels[-2], in_channels[-1]
        self.context = ContextPooling(spatial_dims, coarse, channels, dropout, norm)
        self.fine = ConvNormAct(spatial_dims, fine, channels, 1, 1, norm)
        self.middle = ConvNormAct(spatial_dims, middle, channels, 1, 1, norm)
        self.alignment = GatedDualFlowAlignment(spatial_dims, channels, pool_gate)
        self.classifier = nn.Sequential(
            ConvNormAct(spatial_dims, 2 * channels, channels, 3, 1, norm),
            conv(spatial_dims, channels, num_classes, 1),
        )
        self.aux_classifier = (
            classifier(spatial_dims, channels, channels, num_classes, dropout, norm)
            if deep_supervision
            else None
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the finest level, and those that only teach where they are asked for."""
        fine, middle, coarse = features.levels[0], features.levels[-2], features.levels[-1]
        joined = self.alignment(self.fine(fine), self.context(coarse))
        beside = resize(self.middle(middle), joined.shape[2:], align_corners=True)
        scores = self.classifier(torch.cat([joined, beside], dim=1))
        second = self.aux_classifier
        return scores, {"aux": second(joined)} if auxiliary and second is not None else {}

"""SFNet: a feature pyramid whose coarse levels are moved onto the finer ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixvox.heads.semantic_flow import ContextPooling, FlowAlignment
from pixvox.heads.semantic_head import SemanticHead, classifier
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.structures import Features


class SFNet(SemanticHead):
    """Add levels from coarse to fine by semantic flow, beginning with the context of the whole image.

    "Semantic Flow for Fast and Accurate Scene Parsing" (Li et al., 2020, https://arxiv.org/abs/2002.10120), as in
    https://github.com/lxtGH/SFSegNets.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of all levels; the paper has 128 over ResNet-18 and 256 over larger backbones.
        dropout: Share of hidden channels set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        deep_supervision: Each level but the coarsest learns by itself too.
        aux_weight: Weight of the terms of those levels' scores, ``aux_4`` and so on by their strides.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        channels: int = 128,
        dropout: float = 0.1,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        deep_supervision: bool = True,
        aux_weight: float = 1.0,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        finer = in_channels[:-1]
        self.context = ContextPooling(spatial_dims, in_channels[-1], channels, dropout, norm)
        self.laterals = nn.ModuleList(
            ConvNormAct(spatial_dims, width, channels, 1, 1, norm) for width in finer
        )
        self.alignments = nn.ModuleList(FlowAlignment(spatial_dims, channels) for _ in finer)
        self.smooth = nn.ModuleList(ConvNormAct(spatial_dims, channels, channels, 3, 1, norm) for _ in finer)
        self.classifier = nn.Sequential(
            ConvNormAct(spatial_dims, len(in_channels) * channels, channels, 3, 1, norm),
            conv(spatial_dims, channels, num_classes, 1),
        )
        self.aux_names = [f"aux_{stride[-1]}" for stride in strides[:-1]] if deep_supervision else []
        self.aux_classifiers = nn.ModuleList(
            classifier(spatial_dims, channels, channels, num_classes, dropout, norm) for _ in self.aux_names
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores of all levels together, and those of each that learns by itself."""
        x = self.context(features.levels[-1])
        maps, aux = [x], {}
        for i in range(len(features.levels) - 2, -1, -1):
            lateral = self.laterals[i](features.levels[i])
            x = lateral + self.alignments[i](lateral, x)
            maps.insert(0, self.smooth[i](x))
            if auxiliary and self.aux_names:
                aux[self.aux_names[i]] = self.aux_classifiers[i](x)
        size = maps[0].shape[2:]
        joined = torch.cat([resize(each, size, align_corners=True) for each in maps], dim=1)
        return self.classifier(joined), aux

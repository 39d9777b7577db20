"""SegFormer's head: a linear layer for each level, and one for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixvox.heads.semantic_head import SemanticHead
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.structures import Features


class SegFormer(SemanticHead):
    """Mixes the channels of all levels pixel by pixel, and classifies; what surrounds a pixel is the backbone's work.

    "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers" (Xie et al., 2021,
    https://arxiv.org/abs/2105.15203), section 3.2; the layers are those of transformers' ``SegformerDecodeHead``.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Not used.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of each level once mixed; 256 in the paper's small models, 768 in its large ones.
        dropout: Share of channels before the classifier set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
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
        channels: int = 256,
        dropout: float = 0.1,
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
        del strides  # all levels are resized to the finest, whatever its stride
        self.projections = nn.ModuleList(conv(spatial_dims, width, channels, 1) for width in in_channels)
        self.fusion = ConvNormAct(spatial_dims, len(in_channels) * channels, channels, 1, 1, norm)
        self.classifier = nn.Sequential(nn.Dropout(dropout), conv(spatial_dims, channels, num_classes, 1))

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the finest level."""
        finest = features.levels[0].shape[2:]
        maps = [
            resize(project(level), finest)
            for project, level in zip(self.projections, features.levels, strict=True)
        ]
        return self.classifier(self.fusion(torch.cat(maps, dim=1))), {}

"""UPerNet: all levels together, the coarsest with means of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pixvox.heads.auxiliary import AuxiliaryClassifier
from pixvox.heads.pyramid_pooling import PyramidPooling
from pixvox.heads.semantic_head import SemanticHead
from pixvox.layers import ChannelNorm, ConvNormAct, PerAxis, conv, resize
from pixvox.structures import Features


class UPerNet(SemanticHead):
    """Hands what the coarsest level knows of the scene down to the finer ones, and classifies all of them together.

    "Unified Perceptual Parsing for Scene Understanding" (Xiao et al., 2018, https://arxiv.org/abs/1807.10221): pyramid
    pooling on the coarsest level, a feature pyramid, and one classifier of its levels side by side. The usual head of
    transformers; the layers are those of transformers' ``UperNetHead``.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Not used.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of every layer.
        bins: Parts of the coarsest level along each axis, for each size of part: one number or one per axis in array
            order.
        dropout: Share of channels before the classifier set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``. A batch norm of the mean of a single image learns from the
            statistics so far.
        norm_levels: Normalise the channels of each pixel of each level first, as for the published models on ConvNeXt.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_level: A level, by index, that a second classifier learns from too; None for no such classifier. The
            published models have ``-2``.
        aux_channels: Channels of the second classifier.
        aux_weight: Weight of its terms.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, or there is no such ``aux_level``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        channels: int = 512,
        bins: Sequence[PerAxis] = (1, 2, 3, 6),
        dropout: float = 0.1,
        norm: str = "batch",
        norm_levels: bool = False,
        losses: Mapping[str, nn.Module] | None = None,
        aux_level: int | None = None,
        aux_channels: int = 256,
        aux_weight: float = 0.4,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        del strides  # maps are resized to the next finer level, whatever its stride

        def layer(incoming: int, kernel_size: int) -> nn.Module:
            return ConvNormAct(spatial_dims, incoming, channels, kernel_size, 1, norm)

        self.level_norms = nn.ModuleList(
            ChannelNorm(width, eps=1e-6) if norm_levels else nn.Identity() for width in in_channels
        )
        self.pooling = PyramidPooling(in_channels[-1], channels, bins, spatial_dims, norm)
        self.lateral = nn.ModuleList(layer(width, 1) for width in in_channels[:-1])
        self.output = nn.ModuleList(layer(channels, 3) for _ in in_channels[:-1])
        self.fusion = layer(len(in_channels) * channels, 3)
        self.classifier = nn.Sequential(nn.Dropout(dropout), conv(spatial_dims, channels, num_classes, 1))
        self.aux_classifier = (
            None
            if aux_level is None
            else AuxiliaryClassifier(
                in_channels, aux_level, num_classes, spatial_dims, aux_channels, norm=norm
            )
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the finest level, and the second classifier's."""
        levels = tuple(norm(level) for norm, level in zip(self.level_norms, features.levels, strict=True))
        pyramid = [self.pooling(levels[-1])]
        for lateral, level in zip(reversed(self.lateral), reversed(levels[:-1]), strict=True):
            pyramid.append(lateral(level) + resize(pyramid[-1], level.shape[2:]))
        finest = levels[0].shape[2:]
        coarsest, *finer = pyramid
        maps = [output(level) for output, level in zip(self.output, reversed(finer), strict=True)]
        fused = self.fusion(torch.cat([resize(level, finest) for level in (*maps, coarsest)], dim=1))
        second = self.aux_classifier
        taught = second.of(replace(features, levels=levels)) if auxiliary and second is not None else {}
        return self.classifier(fused), taught

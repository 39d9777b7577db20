"""DeepLabV3+: a pyramid of atrous convolutions, refined by a finer level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixvox.heads.atrous_pyramid import AtrousPyramid, rates_of
from pixvox.heads.auxiliary import AuxiliaryClassifier
from pixvox.heads.semantic_head import SemanticHead, level_index, level_of_stride
from pixvox.layers import ConvNormAct, SeparableConvNormAct, conv, resize
from pixvox.structures import Features


class DeepLabV3Plus(SemanticHead):
    """Looks at neighbourhoods of several sizes on a coarse level, and puts them beside a fine one to find borders.

    "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation" (Chen et al., 2018,
    https://arxiv.org/abs/1802.02611).

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        in_level: The coarse level, by index.
        low_level: The fine level, by index; by default that whose stride is nearest to 4.
        atrous_rates: Dilation of each neighbourhood, in pixels of the coarse level, the same along all axes; by default
            6, 12, 18 at a stride of 16, and so on.
        channels: Channels of the pyramid and before the classifier.
        low_channels: Channels that the fine level is reduced to.
        separable: Look at each channel by itself before mixing them, which is cheaper.
        dropout: Share of the pyramid's channels set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``. A batch norm of the mean of a single image learns from the
            statistics so far.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_level: A level, by index, that a second classifier learns from too; None for no such classifier.
        aux_weight: Weight of its terms.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, or there is no such level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        in_level: int = -1,
        low_level: int | None = None,
        atrous_rates: Sequence[int] | None = None,
        channels: int = 256,
        low_channels: int = 48,
        separable: bool = True,
        dropout: float = 0.5,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        aux_level: int | None = None,
        aux_weight: float = 0.5,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        self.in_level = level_index(in_level, len(in_channels), "in_level")
        low = level_of_stride(strides, 4) if low_level is None else low_level
        self.low_level = level_index(low, len(in_channels), "low_level")
        rates = atrous_rates or rates_of(strides[self.in_level])
        block = SeparableConvNormAct if separable else ConvNormAct
        self.pyramid = nn.Sequential(
            AtrousPyramid(
                in_channels[self.in_level], channels, rates, spatial_dims, separable, dropout, norm
            ),
            block(spatial_dims, channels, channels, norm_name=norm),
        )
        self.low = ConvNormAct(spatial_dims, in_channels[self.low_level], low_channels, 1, 1, norm)
        self.classifier = nn.Sequential(
            block(spatial_dims, low_channels + channels, channels, norm_name=norm),
            conv(spatial_dims, channels, num_classes, 1),
        )
        self.aux_classifier = (
            None
            if aux_level is None
            else AuxiliaryClassifier(in_channels, aux_level, num_classes, spatial_dims, norm=norm)
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the fine level, and the second classifier's."""
        low = self.low(features.levels[self.low_level])
        seen = resize(self.pyramid(features.levels[self.in_level]), low.shape[2:])
        second = self.aux_classifier
        scores = self.classifier(torch.cat([seen, low], dim=1))
        return scores, second.of(features) if auxiliary and second is not None else {}

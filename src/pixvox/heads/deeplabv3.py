"""DeepLabV3: a pyramid of atrous convolutions on one level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pixvox.heads.atrous_pyramid import AtrousPyramid, rates_of
from pixvox.heads.auxiliary import AuxiliaryClassifier
from pixvox.heads.semantic_head import SemanticHead, level_index
from pixvox.layers import ConvNormAct, conv
from pixvox.structures import Features


class DeepLabV3(SemanticHead):
    """Looks at neighbourhoods of several sizes on one level, and classifies.

    "Rethinking Atrous Convolution for Semantic Image Segmentation" (Chen et al., 2017,
    https://arxiv.org/abs/1706.05587). The layers are those of torchvision's ``DeepLabHead``; meant for backbones whose
    last strides are replaced by dilation.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        in_level: The level to classify, by index.
        atrous_rates: Dilation of each neighbourhood, in pixels of that level, the same along all axes; by default 12,
            24, 36 at a stride of 8 and half of it at each further one, which torchvision's models do not halve.
        channels: Channels of the pyramid and before the classifier.
        dropout: Share of the pyramid's channels set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``. A batch norm of the mean of a single image learns from the
            statistics so far.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_level: A level, by index, that a second classifier learns from too; None for no such classifier,
            torchvision's models have ``-2``.
        aux_channels: Channels of the second classifier; by default a quarter of its level's, and not fewer than
            classes.
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
        atrous_rates: Sequence[int] | None = None,
        channels: int = 256,
        dropout: float = 0.5,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        aux_level: int | None = None,
        aux_channels: int | None = None,
        aux_weight: float = 0.5,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        self.in_level = level_index(in_level, len(in_channels), "in_level")
        rates = atrous_rates or rates_of(strides[self.in_level])
        self.classifier = nn.Sequential(
            AtrousPyramid(
                in_channels[self.in_level], channels, rates, spatial_dims, dropout=dropout, norm=norm
            ),
            ConvNormAct(spatial_dims, channels, channels, 3, 1, norm),
            conv(spatial_dims, channels, num_classes, 1),
        )
        self.aux_classifier = (
            None
            if aux_level is None
            else AuxiliaryClassifier(
                in_channels, aux_level, num_classes, spatial_dims, aux_channels, norm=norm
            )
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the level, and the second classifier's."""
        second = self.aux_classifier
        scores = self.classifier(features.levels[self.in_level])
        return scores, second.of(features) if auxiliary and second is not None else {}

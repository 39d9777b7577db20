"""PSPNet: means of the parts of an image tell each pixel about the scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pixvox.heads.auxiliary import AuxiliaryClassifier
from pixvox.heads.pyramid_pooling import PyramidPooling
from pixvox.heads.semantic_head import SemanticHead, level_index
from pixvox.layers import PerAxis, conv
from pixvox.structures import Features


class PSPNet(SemanticHead):
    """Classifies one level beside the means of its parts.

    "Pyramid Scene Parsing Network" (Zhao et al., 2016, https://arxiv.org/abs/1612.01105); meant for backbones whose
    last strides are replaced by dilation.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Not used.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        in_level: The level to classify, by index.
        bins: Parts along each axis, for each size of part: one number or one per axis in array order.
        channels: Channels of the means of each size and before the classifier; by default a quarter of the level's,
            and not fewer than classes.
        dropout: Share of channels before the classifier set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``. A batch norm of the mean of a single image learns from the
            statistics so far.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_level: A level, by index, that a second classifier learns from too; None for no such classifier. The paper's
            is ``-2``, with a weight of 0.4.
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
        bins: Sequence[PerAxis] = (1, 2, 3, 6),
        channels: int | None = None,
        dropout: float = 0.1,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        aux_level: int | None = None,
        aux_weight: float = 0.4,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        del strides  # parts are counted, whatever their size
        self.in_level = level_index(in_level, len(in_channels), "in_level")
        width = in_channels[self.in_level]
        hidden = channels or max(width // 4, num_classes)
        self.classifier = nn.Sequential(
            PyramidPooling(width, hidden, bins, spatial_dims, norm),
            nn.Dropout(dropout),
            conv(spatial_dims, hidden, num_classes, 1),
        )
        self.aux_classifier = (
            None
            if aux_level is None
            else AuxiliaryClassifier(in_channels, aux_level, num_classes, spatial_dims, norm=norm)
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the level, and the second classifier's."""
        second = self.aux_classifier
        scores = self.classifier(features.levels[self.in_level])
        return scores, second.of(features) if auxiliary and second is not None else {}

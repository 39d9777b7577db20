"""Fully convolutional head: a class for every pixel or voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pixvox.heads.auxiliary import AuxiliaryClassifier
from pixvox.heads.semantic_head import SemanticHead, classifier
from pixvox.layers import resize
from pixvox.structures import Features


class FCN(SemanticHead):
    """Classify every pixel or voxel on one level, or on several whose scores are added from coarse to fine.

    "Fully Convolutional Networks for Semantic Segmentation" (Long et al., 2015, https://arxiv.org/abs/1411.4038).
    One level is torchvision's ``FCNHead``; several are the paper's skips (FCN-16s, FCN-8s, ...).

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        in_levels: Levels to classify, by index; None takes all, ``[-1]`` the coarsest alone.
        hidden_channels: Channels before the classifier; by default a quarter of the level's.
        dropout: Share of hidden channels set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_level: A level, by index, that a second classifier learns from too, which helps deep networks; its
            ``aux_logits`` count for nothing else. None for no such classifier; torchvision's models have ``-2``.
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
        in_levels: Sequence[int] | None = None,
        hidden_channels: int | None = None,
        dropout: float = 0.1,
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
        del strides  # the scores are resized to the next finer level, whatever its stride
        levels = range(len(in_channels)) if in_levels is None else in_levels
        self.in_levels = sorted(level % len(in_channels) for level in levels)
        self.classifiers = nn.ModuleList(
            classifier(
                spatial_dims,
                in_channels[level],
                hidden_channels or max(in_channels[level] // 4, num_classes),
                num_classes,
                dropout,
                norm,
            )
            for level in self.in_levels
        )
        self.aux_classifier = (
            None
            if aux_level is None
            else AuxiliaryClassifier(
                in_channels, aux_level, num_classes, spatial_dims, hidden_channels, dropout, norm
            )
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the levels' scores on the finest, and the second classifier's."""
        fine_to_coarse = [
            scores_of(features.levels[level])
            for scores_of, level in zip(self.classifiers, self.in_levels, strict=True)
        ]
        scores = fine_to_coarse.pop()
        while fine_to_coarse:
            finer = fine_to_coarse.pop()
            scores = finer + resize(scores, finer.shape[2:])
        second = self.aux_classifier
        return scores, second.of(features) if auxiliary and second is not None else {}

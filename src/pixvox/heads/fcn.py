"""Fully convolutional head: a class for every pixel or voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixvox.data.suggestions import NNUNET, Suggestion
from pixvox.heads.head import Head, Outputs
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.structures import IGNORE_INDEX, Features, Geometry, Segmentation, Targets

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint


class FCN(Head):
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

    task = "semantic"
    gives_aux = False
    """Set it to have ``aux_logits`` also in predictions, which do not need them."""

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
        super().__init__(spatial_dims, num_classes, score_threshold, pseudo_label_threshold)
        del strides  # the scores are resized to the next finer level, whatever its stride
        levels = range(len(in_channels)) if in_levels is None else in_levels
        self.in_levels = sorted(level % len(in_channels) for level in levels)

        def classifier(level: int) -> nn.Module:
            hidden = hidden_channels or max(in_channels[level] // 4, num_classes)
            return nn.Sequential(
                ConvNormAct(spatial_dims, in_channels[level], hidden, 3, 1, norm),
                nn.Dropout(dropout),
                conv(spatial_dims, hidden, num_classes, 1),
            )

        count = len(in_channels)
        if aux_level is not None and not -count <= aux_level < count:
            raise ValueError(
                f"aux_level={aux_level}: there are {count} levels, 0 to {count - 1} or -{count} to -1"
            )
        self.classifiers = nn.ModuleList(classifier(level) for level in self.in_levels)
        self.aux_level = aux_level
        self.aux_classifier = None if aux_level is None else classifier(aux_level)
        self.aux_weight = aux_weight
        self.losses = nn.ModuleDict(losses or {"cross_entropy": CrossEntropy()})

    @classmethod
    def suggest(
        cls,
        facts: Fingerprint,
        options: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
    ) -> list[Suggestion]:
        """Add a Dice term, which weighs a rare class like a frequent one."""
        rarest = min((share for share in facts.class_shares.values() if share > 0), default=1.0)
        if rarest > 0.1:
            return []
        return [
            Suggestion(
                "losses.dice",
                {"_target_": "pixvox.losses.dice.Dice"},
                f"the rarest class holds {rarest:.2%} of the labelled pixels",
                "cross-entropy counts pixels, Dice counts classes: their sum learns rare ones too",
                NNUNET,
            )
        ]

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return ``logits (batch, classes, *spatial)`` at the size of the images, and ``aux_logits`` if there are."""
        fine_to_coarse = [
            classifier(features.levels[level])
            for classifier, level in zip(self.classifiers, self.in_levels, strict=True)
        ]
        scores = fine_to_coarse.pop()
        while fine_to_coarse:
            finer = fine_to_coarse.pop()
            scores = finer + resize(scores, finer.shape[2:])
        outputs: Outputs = {"logits": _to_images(scores, features), "valid_sizes": features.valid_sizes}
        wanted = self.training or targets is not None or self.gives_aux
        if wanted and self.aux_classifier is not None and self.aux_level is not None:
            outputs["aux_logits"] = _to_images(self.aux_classifier(features.levels[self.aux_level]), features)
        return outputs

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return each configured term, and each of the second classifier as ``aux_TERM``; padding is ignored."""
        if not isinstance(targets, Tensor):
            raise ValueError(
                "a semantic head learns from label maps (batch, *spatial), but was given instances"
            )
        labels = targets.to(torch.int64, copy=True)
        for label_map, valid in zip(labels, outputs["valid_sizes"].tolist(), strict=True):
            for axis, length in enumerate(valid):
                label_map.narrow(axis, length, label_map.shape[axis] - length).fill_(IGNORE_INDEX)
        losses = {name: term(outputs["logits"], labels) for name, term in self.losses.items()}
        if "aux_logits" in outputs:
            for name, term in self.losses.items():
                losses[f"aux_{name}"] = self.aux_weight * term(outputs["aux_logits"], labels)
        return losses

    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return the class map of each image at its original size."""
        results = []
        for logits, geometry in zip(outputs["logits"], geometries, strict=True):
            for axis, length in enumerate(geometry.valid_size):
                logits = logits.narrow(axis + 1, 0, length)
            original = resize(logits[None].float(), geometry.original_size)[0]
            probabilities = original.softmax(dim=0) if self.gives_probabilities else None
            results.append(
                Segmentation(class_map=original.argmax(dim=0), probabilities=probabilities, geometry=geometry)
            )
        return results


def _to_images(scores: Tensor, features: Features) -> Tensor:
    """Resize scores to the images, and cut off what pads them."""
    logits = resize(scores, features.padded_size)
    for axis, length in enumerate(features.input_size):
        logits = logits.narrow(axis + 2, 0, length)
    return logits

"""What heads that give every pixel or voxel a class share: sizes, losses, and class maps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pixvox.data.suggestions import NNUNET, Suggestion
from pixvox.heads.head import Head, Outputs
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.structures import IGNORE_INDEX, Features, Geometry, Segmentation, Targets

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint


class SemanticHead(Head):
    """Scores every pixel or voxel for each class; a head of this kind writes ``scores`` alone.

    Args:
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_weight: Weight of the terms of auxiliary scores.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is none of ``supported_dims``.
    """

    task = "semantic"
    gives_aux = False
    """Set it to have ``aux_logits`` also in predictions, which do not need them."""

    def __init__(
        self,
        num_classes: int,
        spatial_dims: int = 2,
        losses: Mapping[str, nn.Module] | None = None,
        aux_weight: float = 0.5,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(spatial_dims, num_classes, score_threshold, pseudo_label_threshold)
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

    @abstractmethod
    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return maps of class scores, at any resolution.

        Args:
            features: Of a batch.
            auxiliary: Whether auxiliary scores are wanted: while learning, and where ``gives_aux`` is set.

        Returns:
            The scores that count, and those that only teach, by names that begin with ``aux``.
        """

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return ``logits (batch, classes, *spatial)`` at the size of the images, and ``aux_logits`` by name."""
        scores, auxiliary = self.scores(features, self.training or targets is not None or self.gives_aux)
        outputs: Outputs = {"logits": to_images(scores, features), "valid_sizes": features.valid_sizes}
        if auxiliary:
            outputs["aux_logits"] = {name: to_images(maps, features) for name, maps in auxiliary.items()}
        return outputs

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return each configured term, and each of auxiliary scores as ``AUX_TERM``; padding is ignored."""
        labels = labels_of(outputs, targets)
        losses = {name: term(outputs["logits"], labels) for name, term in self.losses.items()}
        for which, logits in outputs.get("aux_logits", {}).items():
            for name, term in self.losses.items():
                losses[f"{which}_{name}"] = self.weight_of(which) * term(logits, labels)
        return losses

    def weight_of(self, which: str) -> float:
        """Return the weight of the terms of auxiliary scores of a name."""
        return self.aux_weight

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


def classifier(
    spatial_dims: int, in_channels: int, hidden_channels: int, num_classes: int, dropout: float, norm: str
) -> nn.Sequential:
    """Return a convolution, dropout, and a score for each class: torchvision's ``FCNHead``."""
    return nn.Sequential(
        ConvNormAct(spatial_dims, in_channels, hidden_channels, 3, 1, norm),
        nn.Dropout(dropout),
        conv(spatial_dims, hidden_channels, num_classes, 1),
    )


def level_index(index: int, count: int, name: str) -> int:
    """Return the place of a level, from 0, that may be counted from the end.

    Args:
        index: From 0, or from -1 for the coarsest.
        count: Levels that there are.
        name: Of the argument, for the error.

    Raises:
        ValueError: If there is no such level.

    Example:
        >>> level_index(-1, 4, "in_level")
        3
    """
    if not -count <= index < count:
        raise ValueError(f"{name}={index}: there are {count} levels, 0 to {count - 1} or -{count} to -1")
    return index % count


def level_of_stride(strides: Sequence[Sequence[int]], stride: int) -> int:
    """Return the place of the level whose stride is nearest to ``stride``; of equally near ones the finest.

    Args:
        strides: Of each level, per axis; the longest axis counts.
        stride: Input pixels per feature pixel that are wanted.

    Example:
        >>> level_of_stride([(1, 4, 4), (2, 8, 8), (2, 8, 8)], 8)
        1
    """
    distances = [abs(math.log2(max(step) / stride)) for step in strides]
    return distances.index(min(distances))


def to_images(scores: Tensor, features: Features) -> Tensor:
    """Resize scores to the images, and cut off what pads them."""
    logits = resize(scores, features.padded_size)
    for axis, length in enumerate(features.input_size):
        logits = logits.narrow(axis + 2, 0, length)
    return logits


def labels_of(outputs: Outputs, targets: Targets) -> Int[Tensor, "batch *spatial"]:
    """Return the label maps of a batch, with padding ignored.

    Raises:
        ValueError: If the targets are instances.
    """
    if not isinstance(targets, Tensor):
        raise ValueError("a semantic head learns from label maps (batch, *spatial), but was given instances")
    labels = targets.to(torch.int64, copy=True)
    for label_map, valid in zip(labels, outputs["valid_sizes"].tolist(), strict=True):
        for axis, length in enumerate(valid):
            label_map.narrow(axis, length, label_map.shape[axis] - length).fill_(IGNORE_INDEX)
    return labels

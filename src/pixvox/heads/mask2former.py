"""Mask2Former for images and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pixvox.heads.head import Outputs
from pixvox.heads.query_crops import MapFrame
from pixvox.heads.query_head import QueryHead
from pixvox.heads.query_maps import class_map_of, class_probabilities_of, masks_of_classes, panoptic_of
from pixvox.heads.query_predictions import QueryMasks, QueryPrediction
from pixvox.losses.query_classification import QueryClassification, SoftmaxWithNoObject
from pixvox.ranges import check_shares
from pixvox.structures import Features, Geometry, Segmentation, Targets
from pixvox.transformer.masked_decoder import MaskedDecoder

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
"""Of the losses and of the matching costs, in the paper."""


class Mask2Former(QueryHead):
    """Learned queries, each of which becomes a class and a mask: an object, or all of a class.

    "Masked-attention Mask Transformer for Universal Image Segmentation" (Cheng et al., 2021,
    https://arxiv.org/abs/2112.01527), for images and volumes. The finest level of the neck carries the masks;
    queries look at the others in turn, or at the finest itself when there is no other.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        task: What is learned and given out: ``"instance"``, ``"semantic"`` (from label maps; one mask per class),
            or ``"panoptic"`` (from instances that include one per stuff class).
        is_thing: Panoptic: for each class whether its objects are told apart; None is all.
        segment_threshold: Panoptic: queries of this score or less take no part.
        overlap_threshold: Panoptic: least share of its own mask that a query must keep beside better ones.
        num_queries: Queries: the most objects (or classes) that can be found in an image.
        channels: Channels of queries and tokens, a multiple of 4 and of ``num_heads``.
        num_layers: Layers of the decoder.
        num_heads: Heads of its attentions.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        project: Project the levels even where their channels fit.
        classification: How queries are classified; softmax with "no object" by default.
        costs: Weights of the matching costs ``class``, ``mask`` and ``dice``; those of the paper by default.
        weights: Weights of the losses of the same names.
        options: Further arguments of ``QueryHead``.

    Raises:
        ValueError: If the task is unknown, or ``is_thing`` has another length than there are classes.

    Example:
        >>> import torch
        >>> head = Mask2Former((6, 8), ((4, 4), (8, 8)), 3, channels=8, num_queries=5, num_layers=2, num_heads=2)
        >>> levels = (torch.zeros(1, 6, 4, 6), torch.zeros(1, 8, 2, 3))
        >>> images, sizes = torch.zeros(1, 1, 16, 24), torch.tensor([[16, 24]])
        >>> outputs = head(Features(levels, ((4, 4), (8, 8)), images, (16, 24), sizes))
        >>> outputs["class_logits"].shape, outputs["mask_logits"].shape
        (torch.Size([1, 5, 4]), torch.Size([1, 5, 4, 6]))
    """

    tasks: ClassVar[tuple[str, ...]] = ("instance", "semantic", "panoptic")
    predicts_boxes = False

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        task: Literal["instance", "semantic", "panoptic"] = "instance",
        is_thing: Sequence[bool] | None = None,
        segment_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
        num_queries: int = 100,
        channels: int = 256,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.0,
        project: bool = False,
        classification: QueryClassification | None = None,
        costs: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        classification = classification or SoftmaxWithNoObject()
        super().__init__(
            in_channels,
            spatial_dims,
            num_classes,
            classification,
            costs or WEIGHTS,
            weights or WEIGHTS,
            **options,
        )
        if task not in self.tasks:
            raise ValueError(f"task must be one of {', '.join(self.tasks)}; got {task!r}")
        check_shares(segment_threshold=segment_threshold, overlap_threshold=overlap_threshold)
        if is_thing is not None and len(is_thing) != num_classes:
            raise ValueError(
                f"is_thing has {len(is_thing)} entries for {num_classes} classes; give one per class"
            )
        self.task = task
        self.is_thing = tuple(is_thing) if is_thing is not None else (True,) * num_classes
        self.segment_threshold = segment_threshold
        self.overlap_threshold = overlap_threshold
        self.first = min(1, len(in_channels) - 1)
        self.strides = tuple(tuple(stride) for stride in strides)
        self.decoder = MaskedDecoder(
            in_channels[self.first :], spatial_dims, in_channels[0], num_queries, channels, num_layers,
            num_heads, feedforward, dropout, project,
        )  # fmt: skip
        self.classifier = nn.Linear(channels, classification.num_logits(num_classes))
        classification.init_bias(self.classifier)

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the decoder."""
        return list(self.decoder.layers)

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return classes and masks of the queries, before the first layer and after each."""
        features = self.placed(features)
        pixels = features.levels[0]
        steps = self.decoder(
            features.levels[self.first :], self.strides[self.first :], pixels, features.valid_sizes
        )
        predictions = [
            QueryPrediction(self.classifier(known), masks=QueryMasks(embeddings, pixels))
            for known, embeddings in steps
        ]
        return self.outputs(features, predictions, targets=targets)

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the terms of all layers; label maps are learned as one mask per class."""
        if self.task != "semantic":
            return super().loss(outputs, targets)
        if not isinstance(targets, Tensor):
            raise ValueError(
                "Mask2Former with task=semantic learns from label maps (batch, *spatial), but was given instances; "
                "set head.task=instance, or read the data as a semantic dataset"
            )
        sizes = outputs["valid_sizes"].tolist()
        classes = [
            masks_of_classes(label_map, size, self.num_classes)
            for label_map, size in zip(targets, sizes, strict=True)
        ]
        return super().loss(outputs, classes)

    @torch.no_grad()
    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return instances, a class map, or panoptic segments in each original frame."""
        if self.task == "instance":
            return super().postprocess(outputs, geometries)
        return [
            self._map(outputs["prediction"], i, outputs["padded_size"], g) for i, g in enumerate(geometries)
        ]

    def _map(
        self, prediction: QueryPrediction, image: int, padded_size: Sequence[int], geometry: Geometry
    ) -> Segmentation:
        masks, scores = prediction.masks, self.classification.scores(prediction.class_logits[image])
        if masks is None:
            raise ValueError("these outputs hold no masks; they are not Mask2Former's")
        frame = MapFrame(masks.grid, padded_size, geometry)
        if self.task == "semantic" and self.gives_probabilities:
            probabilities = class_probabilities_of(masks, image, scores, frame)
            return Segmentation(
                class_map=probabilities.argmax(dim=0), probabilities=probabilities, geometry=geometry
            )
        if self.task == "semantic":
            return Segmentation(class_map=class_map_of(masks, image, scores, frame), geometry=geometry)
        return panoptic_of(
            masks, image, scores, frame, self.is_thing, self.segment_threshold, self.overlap_threshold
        )

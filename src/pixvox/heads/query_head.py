"""What all heads with queries share: raw outputs, the loss, and the way from queries to instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pixvox.heads.coordinates import Coordinates
from pixvox.heads.head import Head, Outputs, instances_of
from pixvox.heads.pixel_classes import PixelClasses, pixel_class_loss
from pixvox.heads.query_crops import MapFrame, masks_from_maps
from pixvox.heads.query_predictions import DenoisingPredictions, QueryMasks, QueryPrediction
from pixvox.losses.query_classification import QueryClassification
from pixvox.losses.set_prediction import SetCriterion
from pixvox.ops.boxes import box_convert, clip_boxes
from pixvox.ops.mask_nms import mask_nms
from pixvox.ranges import check_shares, check_weights
from pixvox.structures import Features, Geometry, Instances, Masks, Segmentation, Targets

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion

_OF_MASKS = ("mask", "dice", "pixel_class")

__all__ = ["DenoisingPredictions", "QueryHead", "QueryMasks", "QueryPrediction"]


class QueryHead(Head):
    """A head whose queries are matched one to one to the objects; a head's own file holds only ``forward``.

    There is no cap on the number of queries. What one more of them costs, beside the layers of the network, on a mask
    grid of ``cells`` (128 x 128 for an image of 512 pixels at stride 4):

    - in training ``4 * cells`` bytes (64 KiB) while a layer is matched, or ``4 * num_points``, and as much for each
      object from the first layer to the last (with points, ``2 + oversample_ratio - importance_ratio`` times as much);
      masks are learned a few at a time, whatever their number;
    - in evaluation ``4 * cells`` bytes for the public ``mask_logits``; instances are read off a few maps at a time and
      keep their crops alone: 1,000 of them take 40 MiB more at the peak (``benchmarks/memory.py``).

    Args:
        in_channels: Channels of the levels that the head looks at, finest first.
        spatial_dims: 2 for images, 3 for volumes.
        num_classes: Classes of the data.
        classification: How queries are classified.
        costs: Weights of the matching costs ``class box giou mask dice``; 0 or absent is not used.
        weights: Weights of the losses of the same names, and of ``pixel_class``: classes as the finest level tells
            them in each of its cells (``PixelClasses``). With it, features learn classes from fewer images.
        coordinates: Add to each level where its cells lie (``Coordinates``). With it, masks of objects that look alike
            come apart after fewer images.
        num_points: Points per mask in matching and loss; None takes every cell of the mask grid.
        oversample_ratio: Candidates per point, from which uncertain ones are chosen.
        importance_ratio: Part of the points that are chosen for being uncertain.
        mask_loss: ``"bce"`` or ``"focal"``.
        class_agnostic_proposals: Teach the encoder's proposals as if there were one class.
        score_threshold: Instances below are not given out.
        pseudo_label_threshold: Instances above teach a student.
        confident_score: See ``Head``.
        detections_per_image: Most instances of one image; None is as many as queries.
        mask_score: Multiply scores by the mean probability inside the mask.
        mask_nms_threshold: IoU of masks of one class above which the one of lower score goes; None keeps all.
    """

    task = "instance"
    predicts_boxes: ClassVar[bool] = True
    """Whether queries have boxes; costs, losses and classifications that need them are refused without."""
    groups = 1
    """Groups of queries in training, each matched on its own, for heads that make such; one answers afterwards."""

    def __init__(
        self,
        in_channels: Sequence[int],
        spatial_dims: int,
        num_classes: int,
        classification: QueryClassification,
        costs: Mapping[str, float],
        weights: Mapping[str, float],
        num_points: int | None = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        mask_loss: Literal["bce", "focal"] = "bce",
        class_agnostic_proposals: bool = False,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.7,
        confident_score: float = 0.5,
        detections_per_image: int | None = None,
        mask_score: bool = False,
        mask_nms_threshold: float | None = None,
        coordinates: bool = False,
    ) -> None:
        super().__init__(spatial_dims, num_classes, score_threshold, pseudo_label_threshold, confident_score)
        if detections_per_image is not None and detections_per_image < 1:
            raise ValueError(
                f"detections_per_image must be at least 1, or null for no cap; got {detections_per_image}"
            )
        if mask_nms_threshold is not None:
            check_shares(mask_nms_threshold=mask_nms_threshold)
        if not self.predicts_boxes:
            _refuse_boxes(type(self).__name__, classification, costs, weights)
        self.classification = classification
        self.coordinates = (
            nn.ModuleList(Coordinates(width, spatial_dims) for width in in_channels) if coordinates else None
        )
        self.pixel_class_weight = check_weights(weights, "loss").get("pixel_class", 0.0)
        self.pixel_classes = (
            PixelClasses(in_channels[0], num_classes, spatial_dims) if self.pixel_class_weight else None
        )
        weights = {name: weight for name, weight in weights.items() if name != "pixel_class"}
        self.criterion = SetCriterion(
            classification, costs, weights, num_points, oversample_ratio, importance_ratio, mask_loss,
            class_agnostic_proposals,
        )  # fmt: skip
        self.detections_per_image = detections_per_image
        self.mask_score = mask_score
        self.mask_nms_threshold = mask_nms_threshold

    @classmethod
    def suggest(
        cls,
        facts: Fingerprint,
        options: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
    ) -> list[Suggestion]:
        """Return the number of queries by the most crowded images."""
        from pixvox.data.suggestions import DETR, Suggestion, query_count

        if not len(facts.objects_per_image):
            return []
        crowd = facts.count(99.9)
        return [
            Suggestion(
                "num_queries", query_count(crowd),
                f"an image holds up to {crowd:.0f} objects (99.9th percentile)",
                "a query answers for one object: half as many again, at least 100, a multiple of 50", DETR,
            )
        ]  # fmt: skip

    def placed(self, features: Features) -> Features:
        """Return the features with coordinates, if the head uses them; every ``forward`` begins with it."""
        if self.coordinates is None:
            return features
        levels = list(features.levels)
        for i, place in enumerate(self.coordinates):
            levels[i] = place(levels[i], features.valid_sizes, features.padded_size)
        return replace(features, levels=tuple(levels))

    def outputs(
        self,
        features: Features,
        predictions: Sequence[QueryPrediction],
        proposals: QueryPrediction | None = None,
        denoising: DenoisingPredictions | None = None,
        targets: Targets | None = None,
    ) -> Outputs:
        """Return the raw outputs, with which every ``forward`` ends.

        Unless the head trains with targets they hold the public tensors of the last layer: ``class_logits``, ``boxes``
        (relative to the valid part of each image) and ``mask_logits``.

        Args:
            features: What the head was given.
            predictions: One set per decoder layer, in order; the last one answers.
            proposals: Of the encoder, for heads with two stages.
            denoising: Of the denoising queries, in training.
            targets: What ``forward`` was given.
        """
        last = predictions[-1]
        found: Outputs = {
            "prediction": last,
            "auxiliary": list(predictions[:-1]),
            "proposals": proposals,
            "denoising": denoising,
            "groups": self.groups if self.training else 1,
            "generators": features.generators(),
            "valid_sizes": features.valid_sizes,
            "input_size": features.input_size,
            "padded_size": features.padded_size,
        }
        if self.training and targets is not None:
            if self.pixel_classes is not None:
                found["pixel_class_logits"] = self.pixel_classes(features.levels[0])
            return found
        found["class_logits"] = last.class_logits
        if last.boxes is not None:
            found["boxes"] = last.boxes
        if last.masks is not None:
            found["mask_logits"] = last.masks.logits()
        return found

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the terms of all layers, proposals and denoising queries, and that of pixels in training."""
        instances = instances_of(targets, type(self).__name__)
        terms = self.criterion(outputs, instances)
        logits = outputs.get("pixel_class_logits")
        if logits is not None:
            found = pixel_class_loss(logits, instances, outputs["valid_sizes"], outputs["padded_size"])
            terms["pixel_class"] = self.pixel_class_weight * found
        return terms

    @torch.no_grad()
    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return the best (query, class) pairs as instances with cropped masks, in each original frame."""
        return [self._segmentation(outputs, i, geometry) for i, geometry in enumerate(geometries)]

    def _segmentation(self, outputs: Outputs, image: int, geometry: Geometry) -> Segmentation:
        """Return the instances of one image."""
        prediction: QueryPrediction = outputs["prediction"]
        queries, labels, scores = self._best(self.classification.scores(prediction.class_logits[image]))
        masks: Masks | None = None
        if prediction.masks is not None:
            frame = MapFrame(prediction.masks.grid, outputs["padded_size"], geometry)
            # A query that answers with two classes has one mask.
            unique, place = torch.unique(queries, return_inverse=True)
            found, certainty = masks_from_maps(prediction.masks, image, unique, frame)
            masks = found[place]
            scores = scores * certainty[place] if self.mask_score else scores
        if prediction.boxes is not None:
            boxes = _original_boxes(prediction.boxes[image, queries], geometry)
        else:
            boxes = masks.boxes()  # type: ignore[union-attr]
        instances = Instances(boxes, labels, masks, scores, size=geometry.original_size)
        return Segmentation(instances=instances[self._kept(instances)], geometry=geometry)

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, labels and scores of the best pairs of a query and a class."""
        most = scores.shape[0] if self.detections_per_image is None else self.detections_per_image
        best, place = scores.flatten().topk(min(most, scores.numel()))
        place = place[best > self.score_threshold]
        return place // scores.shape[1], place % scores.shape[1], best[: len(place)]

    def _kept(self, instances: Instances) -> Tensor:
        """Return which instances are given out, best first: those with a mask, and a score, and no better double."""
        masks, scores = instances.masks, instances.scores
        if scores is None:
            raise ValueError("predictions need scores; give Instances(scores=...)")
        keeps = scores > self.score_threshold
        if masks is not None:
            keeps &= masks.areas() > 0
        kept = keeps.nonzero()[:, 0]
        if masks is not None and self.mask_nms_threshold is not None:
            few = instances[kept]
            return kept[mask_nms(few.masks, few.scores, few.labels, self.mask_nms_threshold)]  # type: ignore[arg-type]
        return kept[scores[kept].argsort(descending=True, stable=True)]


def _original_boxes(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Turn boxes relative to the valid part into absolute ones of the original frame, clipped to it."""
    size = geometry.original_size
    corners = box_convert(boxes.float(), "cxcywh", "xyxy") * boxes.new_tensor(
        size[::-1] * 2, dtype=torch.float32
    )
    return clip_boxes(corners, size)


def _refuse_boxes(
    name: str, classification: QueryClassification, costs: Mapping[str, float], weights: Mapping[str, float]
) -> None:
    """Refuse what needs boxes in a head whose queries have none."""
    for kind, given in (("costs", costs), ("weights", weights)):
        wanted = [key for key in ("box", "giou") if given.get(key)]
        if wanted:
            raise ValueError(
                f"{name} predicts no boxes, but {kind} has {wanted}; leave them out, or set them to 0"
            )
    if classification.needs_iou:
        raise ValueError(
            f"{name} predicts no boxes, but {type(classification).__name__} learns how well they fit; choose "
            "SoftmaxWithNoObject or SigmoidFocal as its classification"
        )


def used_weights(weights: Mapping[str, float], masks: bool) -> dict[str, float]:
    """Return costs or weights of losses as a head uses them: without masks, those that need masks go.

    Example:
        >>> used_weights({"class": 2.0, "giou": 2.0, "dice": 5.0}, masks=False)
        {'class': 2.0, 'giou': 2.0}
    """
    return {name: weight for name, weight in weights.items() if masks or name not in _OF_MASKS}

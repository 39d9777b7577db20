"""The loss of a set of queries: match them to the objects of their image, then compare class, box and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pixvox.distributed.world import world_mean
from pixvox.heads.query_predictions import DenoisingPredictions, QueryPrediction
from pixvox.losses.mask_points import MaskPoints, PixelsAtPoints, PointDraw
from pixvox.losses.query_classification import NO_OBJECT, QueryClassification
from pixvox.ops.boxes import box_convert, box_iou, box_volume, generalized_box_iou
from pixvox.ops.matching import Candidates, HungarianMatcher
from pixvox.ranges import check_weights
from pixvox.structures import Instances

Pairs = tuple[Tensor, Tensor]
"""Matched queries of one image, and the object of each."""


@dataclass
class SetTargets:
    """The truth of one image as matching and losses need it; ``boxes`` are normalised by the valid size."""

    labels: Tensor
    boxes: Tensor
    ignored_boxes: Tensor
    points: MaskPoints | None = None

    @classmethod
    def of(cls, instances: Instances, valid_size: Tensor, points: MaskPoints | None = None) -> SetTargets:
        """Leave out what is ignored, and normalise the boxes."""
        sides = valid_size.flip(0).repeat(2).to(instances.boxes)
        boxes = instances.boxes / sides
        kept = ~instances.ignore
        return cls(instances.labels[kept], box_convert(boxes[kept], "xyxy", "cxcywh"), boxes[~kept], points)


class SetCriterion:
    """Compare predictions with objects, layer by layer, after matching each layer on its own.

    "End-to-End Object Detection with Transformers" (Carion et al., 2020, https://arxiv.org/abs/2005.12872); masks at
    points as in "Masked-attention Mask Transformer" (Cheng et al., 2022, https://arxiv.org/abs/2112.01527); groups as
    in "Group DETR" (Chen et al., 2023, https://arxiv.org/abs/2207.13085).

    Points are drawn once per image and step, from the image's own generator, and serve all layers. Ignored instances
    are no targets: queries that lie mostly on them do not learn that nothing is there, and their pixels carry no mask
    loss. Sums are divided by the number of objects, a mean over all processes.

    Args:
        classification: Class logits, their cost and their loss.
        costs: Weights of the matching costs ``class box giou mask dice``.
        weights: Weights of the losses of the same names; 0 or absent is not computed.
        num_points: Points per mask; None takes every cell of the mask grid, with the truth pooled to it.
        oversample_ratio: Candidates per point, from which the uncertain ones are chosen.
        importance_ratio: Part of the points that are chosen for being uncertain.
        mask_loss: ``"bce"`` or ``"focal"``, for matching and loss.
        class_agnostic_proposals: Match and teach proposals as if there were one class.

    Raises:
        ValueError: If a name is unknown or a number makes no sense.
    """

    def __init__(
        self,
        classification: QueryClassification,
        costs: Mapping[str, float],
        weights: Mapping[str, float],
        num_points: int | None = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        mask_loss: Literal["bce", "focal"] = "bce",
        class_agnostic_proposals: bool = False,
    ) -> None:
        unknown = [name for name in weights if name not in HungarianMatcher.names]
        if unknown:
            raise ValueError(f"unknown loss weights {unknown}; there are {list(HungarianMatcher.names)}")
        if mask_loss not in ("bce", "focal"):
            raise ValueError(f'mask_loss is "bce" or "focal", got {mask_loss!r}')
        self.classification = classification
        self.weights = check_weights(weights, "loss")
        if not self.weights:
            raise ValueError(
                f"a head learns from at least one loss whose weight is not 0, of {list(HungarianMatcher.names)}"
            )
        self.focal = mask_loss == "focal"
        self.matcher = HungarianMatcher(classification.cost, costs, self.focal)
        self.draw = PointDraw(num_points, oversample_ratio, importance_ratio)
        self.class_agnostic_proposals = class_agnostic_proposals

    @property
    def needs_masks(self) -> bool:
        """True when masks are matched or learned."""
        return self.matcher.needs_masks or "mask" in self.weights or "dice" in self.weights

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Instances]) -> dict[str, Tensor]:
        """Return the weighted terms to add up, by name.

        ``class``, ``box``, ``giou``, ``mask`` and ``dice`` are of the last layer; ``auxiliary_*`` sum those of the
        earlier layers, ``denoising_*`` those of all layers of the denoising queries, ``proposals_*`` are the
        encoder's.

        Args:
            outputs: What ``QueryHead.outputs`` made.
            targets: The instances of each image.
        """
        groups = outputs.get("groups", 1)
        truths = self._truths(outputs, targets)
        sampler = PixelsAtPoints([truth.points for truth in truths], outputs["padded_size"])
        count, count_denoising = self._counts(outputs, truths, groups)
        terms = self._matched(outputs["prediction"], truths, sampler, count, groups)
        for prediction in outputs["auxiliary"]:
            _add(terms, "auxiliary_", self._matched(prediction, truths, sampler, count, groups))
        if outputs.get("proposals") is not None:
            truths_of_proposals = [self._for_proposals(truth) for truth in truths]
            found = self._matched(outputs["proposals"], truths_of_proposals, sampler, count, groups)
            _add(terms, "proposals_", found)
        if outputs.get("denoising") is not None:
            found = self._denoised(outputs["denoising"], truths, sampler, count_denoising)
            _add(terms, "denoising_", found)
        return terms

    @staticmethod
    def _counts(outputs: Mapping[str, Any], truths: Sequence[SetTargets], groups: int) -> Tensor:
        """Return what the sums over objects, and over denoising queries with an object, are divided by."""
        device = outputs["prediction"].class_logits.device
        objects = groups * sum(len(truth.labels) for truth in truths)
        denoising = outputs.get("denoising")
        noised = 0 if denoising is None else int(denoising.with_object.sum())
        return world_mean(torch.tensor([objects, noised], dtype=torch.float32, device=device))

    def _truths(self, outputs: Mapping[str, Any], targets: Sequence[Instances]) -> list[SetTargets]:
        valid_sizes = outputs["valid_sizes"]
        if len(targets) != len(valid_sizes):
            raise ValueError(
                f"{len(targets)} targets for {len(valid_sizes)} images; give one Instances per image, "
                "Instances.empty(size) where nothing is"
            )
        truths = []
        for instances, valid_size, generator in zip(targets, valid_sizes, outputs["generators"], strict=True):
            points = None
            if self.needs_masks:
                masks = outputs["prediction"].masks
                if masks is None:
                    raise ValueError(
                        "mask costs or weights are set, but this head predicts no masks; set them to 0"
                    )
                points = self.draw(instances, valid_size, masks.grid, outputs["padded_size"], generator)
            truths.append(SetTargets.of(instances, valid_size, points))
        return truths

    def _for_proposals(self, truth: SetTargets) -> SetTargets:
        if not self.class_agnostic_proposals:
            return truth
        return SetTargets(torch.zeros_like(truth.labels), truth.boxes, truth.ignored_boxes, truth.points)

    def _matched(
        self,
        prediction: QueryPrediction,
        truths: Sequence[SetTargets],
        sampler: PixelsAtPoints,
        count: Tensor,
        groups: int,
    ) -> dict[str, Tensor]:
        """Return the terms of one layer."""
        pairs, learns = self.match(prediction, truths, sampler, groups)
        return self._terms(prediction, truths, sampler, pairs, learns, count)

    @torch.no_grad()
    def match(
        self,
        prediction: QueryPrediction,
        truths: Sequence[SetTargets],
        sampler: PixelsAtPoints,
        groups: int = 1,
    ) -> tuple[list[Pairs], Tensor | None]:
        """Return the pairs of each image, and which queries learn (None for all)."""
        found: list[Pairs] = []
        logits = prediction.class_logits
        masked = self.matcher.needs_masks and prediction.masks is not None
        matcher = self.matcher if prediction.masks is not None else self.matcher.without_masks()
        learns = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        for i, truth in enumerate(truths):
            # An image without objects and without ignored regions asks for no masks.
            asked = masked and len(truth.labels) + len(truth.ignored_boxes)
            masks = prediction.masks if asked else None
            points = truth.points
            queries = Candidates(
                logits[i],
                None if prediction.boxes is None else prediction.boxes[i],
                None if masks is None else sampler.matching_logits(masks, i),
            )
            objects = Candidates(truth.labels, truth.boxes, None if points is None else points.matching_truth)
            weight = None if points is None else points.matching_weight
            found.append(matcher(queries, objects, weight, groups, f"image {i} of the batch"))
            covered = on_ignored(queries, truth)
            if covered is not None:
                covered[found[-1][0]] = False
                learns[i] = ~covered
        return found, None if bool(learns.all()) else learns

    def _terms(
        self,
        prediction: QueryPrediction,
        truths: Sequence[SetTargets],
        sampler: PixelsAtPoints,
        pairs: Sequence[Pairs],
        learns: Tensor | None,
        count: Tensor,
    ) -> dict[str, Tensor]:
        """Compare matched queries with their objects."""
        logits = prediction.class_logits
        labels = torch.full(logits.shape[:2], NO_OBJECT, dtype=torch.int64, device=logits.device)
        ious = torch.zeros(logits.shape[:2], device=logits.device) if prediction.boxes is not None else None
        # A sum of nothing, which keeps the graph: parameters get zeros, not None, when nothing is matched.
        names = [
            name for name in self.weights if prediction.masks is not None or name not in ("mask", "dice")
        ]
        terms = dict.fromkeys(names, logits[:, :0].float().sum())
        for i, (truth, (queries, objects)) in enumerate(zip(truths, pairs, strict=True)):
            labels[i, queries] = truth.labels[objects]
            if prediction.boxes is not None:
                distance, overlap, iou = box_terms(prediction.boxes[i, queries], truth.boxes[objects])
                ious[i, queries] = iou  # type: ignore[index]
                for name, value in (("box", distance), ("giou", overlap)):
                    if name in terms:
                        terms[name] = terms[name] + value / count
            if prediction.masks is not None and ("mask" in terms or "dice" in terms):
                values = sampler.losses(prediction.masks, i, queries, objects, self.focal)
                for name, value in zip(("mask", "dice"), values, strict=True):
                    if name in terms:
                        terms[name] = terms[name] + value / count
        if "class" in terms:
            terms["class"] = terms["class"] + self.classification.loss(logits, labels, count, learns, ious)
        return {name: self.weights[name] * value for name, value in terms.items()}

    def _denoised(
        self,
        denoising: DenoisingPredictions,
        truths: Sequence[SetTargets],
        sampler: PixelsAtPoints,
        count: Tensor,
    ) -> dict[str, Tensor]:
        """Return the terms of queries that know their objects."""
        pairs = [
            (rows.nonzero()[:, 0], objects[rows])
            for rows, objects in zip(denoising.with_object, denoising.objects, strict=True)
        ]
        terms: dict[str, Tensor] = {}
        for prediction in denoising.predictions:
            _add(terms, "", self._terms(prediction, truths, sampler, pairs, denoising.valid, count))
        return terms


def _add(terms: dict[str, Tensor], prefix: str, more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        terms[prefix + name] = terms[prefix + name] + value if prefix + name in terms else value


def box_terms(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return L1 distance and generalised IoU loss, summed, and the IoU of each pair, which has no gradient."""
    predicted = predicted.float()
    corners, true_corners = box_convert(predicted, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy")
    distance = F.l1_loss(predicted, true, reduction="sum")
    overlap = (1 - generalized_box_iou(corners, true_corners, paired=True)).sum()
    return distance, overlap, box_iou(corners.detach(), true_corners, paired=True)


def on_ignored(queries: Candidates, truth: SetTargets) -> Tensor | None:
    """Return which queries lie with half of their box in the image, or else of their mask, on an ignored region."""
    if len(truth.ignored_boxes) == 0:
        return None
    if queries.boxes is not None:
        # What lies beyond the image is neither ignored nor background: only the rest of a box counts.
        boxes = box_convert(queries.boxes.float(), "cxcywh", "xyxy").clamp(0, 1)
        half = boxes.shape[1] // 2
        low = torch.maximum(boxes[:, None, :half], truth.ignored_boxes[None, :, :half])
        high = torch.minimum(boxes[:, None, half:], truth.ignored_boxes[None, :, half:])
        shared = (high - low).clamp(min=0).prod(dim=-1)
        return shared.amax(dim=1) >= 0.5 * box_volume(boxes)
    if queries.masks is None or truth.points is None or truth.points.ignored is None:
        return None
    inside = (queries.masks > 0).float()
    return inside @ truth.points.ignored[: inside.shape[1]] > 0.5 * inside.sum(dim=1).clamp(min=1)

"""The loss of outlines: each layer is matched on its own for its classes, and all together for their points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.distributed.world import world_mean
from pixvox.heads.query_predictions import QueryPrediction
from pixvox.losses.query_classification import NO_OBJECT, QueryClassification
from pixvox.losses.set_prediction import Pairs, SetTargets, box_terms, on_ignored
from pixvox.ops.matching import Candidates, HungarianMatcher, hungarian
from pixvox.ranges import check_weights
from pixvox.transformer.contour_decoder import Contours

_COSTS = ("class", "box", "giou", "points")
_WEIGHTS = (*_COSTS, "direction")


@dataclass
class ContourTargets:
    """The truth of one image.

    Args:
        truth: Classes, boxes and ignored boxes.
        points: Outline of each object, relative to the valid part of the image.
    """

    truth: SetTargets
    points: Float[Tensor, "objects points 2"]


class ContourCriterion:
    """Compares outlines with those of the objects, layer by layer.

    "ContourFormer" (Yao et al., 2025, https://arxiv.org/abs/2501.17688). Every layer, and the encoder's proposals, are
    matched on their own. Classes learn by the layer's own pairs, boxes and points of all layers by the pairs that most
    layers agree on (D-FINE's global matching).

    Args:
        classification: Class logits, their cost and their loss.
        costs: Weights of the matching costs ``class``, ``box``, ``giou`` and ``points`` (L1 of all points).
        weights: Weights of the losses ``class``, ``points`` (L1), ``direction`` (one minus the cosine of each step
            along the outline), and of ``box`` and ``giou`` for the proposals.

    Raises:
        ValueError: If a name is unknown or a number makes no sense.
    """

    def __init__(
        self, classification: QueryClassification, costs: Mapping[str, float], weights: Mapping[str, float]
    ) -> None:
        for what, given, known in (("matching costs", costs, _COSTS), ("loss weights", weights, _WEIGHTS)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"unknown {what} {unknown}; there are {list(known)}")
        self.classification = classification
        self.point_cost = check_weights(costs, "matching cost").get("points", 0.0)
        others = {name: cost for name, cost in costs.items() if name != "points"}
        self.matcher = HungarianMatcher(classification.cost, others)
        self.weights = check_weights(weights, "loss")

    def __call__(
        self,
        first: Contours,
        layers: Sequence[Contours],
        proposals: QueryPrediction,
        targets: Sequence[ContourTargets],
        valid_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Return the weighted terms to add up, by name.

        Args:
            first: Outlines before they are refined.
            layers: Those of each layer; the last one answers.
            proposals: Of the encoder.
            targets: Of each image.
            valid_sizes: The part of each image that is not padding, in array order.
        """
        own = [self.match(layer, targets) for layer in layers]
        proposed = self.match(proposals, targets)
        together = agreed([*(pairs for pairs, _ in (own[-1], *own[:-1])), proposed[0]])
        numbers = [sum(len(each.truth.labels) for each in targets), sum(len(rows) for rows, _ in together)]
        count, shared = world_mean(
            torch.tensor(numbers, dtype=torch.float32, device=layers[-1].points.device)
        )
        terms: dict[str, Tensor] = {}
        for name, layer, (pairs, learns) in (
            ("", layers[-1], own[-1]),
            *(("auxiliary_", layer, match) for layer, match in zip(layers[:-1], own, strict=False)),
            # The first outlines are of the first layer, but learn classes with the last but one, as the authors' do.
            ("first_", first, own[-2] if len(own) > 1 else own[-1]),
        ):
            _add(terms, name, {"class": self._classes(layer, targets, pairs, learns, count)})
            _add(terms, name, self._points(layer, targets, together, shared, valid_sizes))
        _add(terms, "proposals_", {"class": self._classes(proposals, targets, *proposed, count)})
        _add(terms, "proposals_", self._boxes(proposals, targets, together, shared))
        return self._weighted(terms)

    def denoised(
        self,
        first: Contours,
        layers: Sequence[Contours],
        objects: Int[Tensor, "batch queries"],
        targets: Sequence[ContourTargets],
        valid_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Return the weighted terms of queries that know their objects, summed over the layers.

        Args:
            first: Outlines before they are refined.
            layers: Those of each layer.
            objects: The object of each query, negative where there is none to find.
            targets: Of each image.
            valid_sizes: The part of each image that is not padding, in array order.
        """
        pairs = [
            (rows.nonzero()[:, 0], found[rows]) for rows, found in zip(objects >= 0, objects, strict=True)
        ]
        count = world_mean((objects >= 0).sum())
        terms: dict[str, Tensor] = {}
        for layer in (*layers, first):
            _add(terms, "denoising_", {"class": self._classes(layer, targets, pairs, None, count)})
            _add(terms, "denoising_", self._points(layer, targets, pairs, count, valid_sizes))
        return self._weighted(terms)

    def _weighted(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {name: self.weights.get(name.rpartition("_")[2], 0.0) for name in terms}
        return {name: weights[name] * value for name, value in terms.items() if weights[name]}

    @torch.no_grad()
    def match(
        self, prediction: Contours | QueryPrediction, targets: Sequence[ContourTargets]
    ) -> tuple[list[Pairs], Tensor | None]:
        """Return the pairs of each image, and which queries learn (None for all)."""
        found: list[Pairs] = []
        logits, boxes = prediction.class_logits, prediction.boxes
        learns = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        for i, target in enumerate(targets):
            queries = Candidates(logits[i], None if boxes is None else boxes[i])
            objects = Candidates(target.truth.labels, target.truth.boxes)
            with torch.autocast(logits.device.type, enabled=False):
                cost = self.matcher.cost(queries, objects)
                if isinstance(prediction, Contours) and self.point_cost and cost.numel():
                    outlines = prediction.points[i].float().flatten(1)
                    cost += self.point_cost * torch.cdist(outlines, target.points.flatten(1), p=1)
            rows, columns = hungarian(cost)
            found.append((rows, columns))
            covered = on_ignored(queries, target.truth)
            if covered is not None:
                covered[rows] = False
                learns[i] = ~covered
        return found, None if bool(learns.all()) else learns

    def _classes(
        self,
        prediction: Contours | QueryPrediction,
        targets: Sequence[ContourTargets],
        pairs: Sequence[Pairs],
        learns: Tensor | None,
        count: Tensor,
    ) -> Tensor:
        logits, boxes = prediction.class_logits, prediction.boxes
        labels = torch.full(logits.shape[:2], NO_OBJECT, dtype=torch.int64, device=logits.device)
        ious = torch.zeros(logits.shape[:2], device=logits.device)
        for i, (target, (queries, objects)) in enumerate(zip(targets, pairs, strict=True)):
            labels[i, queries] = target.truth.labels[objects]
            if boxes is not None:
                ious[i, queries] = box_terms(boxes[i, queries], target.truth.boxes[objects])[2]
        return self.classification.loss(logits, labels, count, learns, ious)

    def _boxes(
        self,
        proposals: QueryPrediction,
        targets: Sequence[ContourTargets],
        pairs: Sequence[Pairs],
        count: Tensor,
    ) -> dict[str, Tensor]:
        if proposals.boxes is None:
            raise ValueError("proposals need boxes")
        nothing = proposals.boxes[:, :0].float().sum()
        terms = {"box": nothing, "giou": nothing}
        for i, (target, (queries, objects)) in enumerate(zip(targets, pairs, strict=True)):
            distance, overlap, _ = box_terms(proposals.boxes[i, queries], target.truth.boxes[objects])
            terms = {"box": terms["box"] + distance / count, "giou": terms["giou"] + overlap / count}
        return terms

    def _points(
        self,
        layer: Contours,
        targets: Sequence[ContourTargets],
        pairs: Sequence[Pairs],
        count: Tensor,
        valid_sizes: Tensor,
    ) -> dict[str, Tensor]:
        nothing = layer.points[:, :0].float().sum()
        terms = {"points": nothing, "direction": nothing}
        for i, (target, (queries, objects)) in enumerate(zip(targets, pairs, strict=True)):
            points, true = layer.points[i, queries].float(), target.points[objects]
            terms["points"] = terms["points"] + (points - true).abs().sum() / count
            if "direction" in self.weights:
                sides = valid_sizes[i].flip(0).to(points)
                steps, wanted = (outline.diff(dim=1) * sides for outline in (points, true))
                cosine = F.cosine_similarity(steps, wanted, dim=-1)
                terms["direction"] = terms["direction"] + (1 - cosine).sum() / count
        return terms


def agreed(matches: Sequence[Sequence[Pairs]]) -> list[Pairs]:
    """Return for each image the pairs of all layers, of each query the one that most layers chose.

    Args:
        matches: Pairs of each image, by layer.

    Example:
        >>> layers = [[(torch.tensor([0, 2]), torch.tensor([1, 0]))], [(torch.tensor([0, 1]), torch.tensor([1, 0]))]]
        >>> [(queries.tolist(), objects.tolist()) for queries, objects in agreed(layers)]
        [([0, 1, 2], [1, 0, 0])]
    """
    found = []
    for layers in zip(*matches, strict=True):
        rows = torch.cat([torch.stack(pairs, dim=1) for pairs in layers])
        unique, counts = torch.unique(rows, return_counts=True, dim=0)
        order = counts.argsort(descending=True, stable=True)
        chosen: dict[int, int] = {}
        for query, instance in unique[order].tolist():
            chosen.setdefault(query, instance)
        queries = torch.tensor(sorted(chosen), dtype=torch.int64, device=rows.device)
        objects = torch.tensor(
            [chosen[query] for query in sorted(chosen)], dtype=torch.int64, device=rows.device
        )
        found.append((queries, objects))
    return found


def _add(terms: dict[str, Tensor], prefix: str, more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        terms[prefix + name] = terms[prefix + name] + value if prefix + name in terms else value

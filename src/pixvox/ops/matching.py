"""Which query learns which object: the one-to-one assignment of least cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.errors import TrainingError
from pixvox.ops.boxes import box_convert, generalized_box_iou
from pixvox.ranges import check_weights

_CHUNK = (
    2**21
)  # logits of queries that are compared with the objects at one time: 8 MiB, and a few times that
_SPARSE = 0.05  # share of points inside of masks up to which adding up those alone is faster than a product


def hungarian(cost: Float[Tensor, "rows columns"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Return the one-to-one assignment of rows to columns with the least total cost.

    Args:
        cost: Cost of each pair; infinite for pairs that must not be.

    Returns:
        Rows, ascending, and the column of each, on the device of the cost.

    Raises:
        TrainingError: If a cost is NaN, or if infinite costs leave no assignment.

    Example:
        >>> rows, columns = hungarian(torch.tensor([[4.0, 1.0], [2.0, 0.5], [3.0, 3.0]]))
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [1, 0])
    """
    if cost.numel() == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=cost.device)
        return empty, empty.clone()
    from scipy.optimize import linear_sum_assignment

    values = cost.detach().cpu().double()
    if bool(values.isnan().any()):
        raise TrainingError(
            f"{int(values.isnan().sum())} of {values.numel()} matching costs are NaN: predictions or targets "
            "hold NaN or infinite values; look at the last loss, the learning rate, and the boxes"
        )
    try:
        rows, columns = linear_sum_assignment(values.numpy())
    except ValueError as error:
        raise TrainingError(
            f"infinite matching costs leave no assignment of {tuple(cost.shape)} pairs"
        ) from error
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


@dataclass
class Candidates:
    """What matching compares: the queries of one image, or its objects.

    Args:
        classes: Logits of queries ``(queries, logits)``, labels of objects ``(objects,)``.
        boxes: Normalised ``[cx, cy, (cz,) w, h, (d)]``; None where there are none.
        masks: Logits of queries, or truth in [0, 1] of objects, at the same points; None where there are none.
    """

    classes: Tensor
    boxes: Float[Tensor, "n sides"] | None = None
    masks: Float[Tensor, "n points"] | None = None


class HungarianMatcher:
    """Match the queries of one image to its objects, one to one, at the least total cost.

    "End-to-End Object Detection with Transformers" (Carion et al., 2020, https://arxiv.org/abs/2005.12872). Images
    are matched one by one, so that no query is ever compared with the objects of another image. All costs are
    float32, also under autocast.

    Args:
        class_cost: Cost of logits ``(queries, logits)`` against labels ``(objects,)``.
        costs: Weight of each of the costs ``class``, ``box`` (L1), ``giou``, ``mask`` (binary cross entropy, or focal)
            and ``dice``; 0 or absent is not used.
        mask_focal: Take the focal loss (alpha 0.25, gamma 2) for ``mask``.

    Raises:
        ValueError: If a cost is unknown, or none is used.

    Example:
        >>> matcher = HungarianMatcher(lambda logits, labels: -logits.softmax(1)[:, labels], {"class": 1.0})
        >>> queries = Candidates(torch.tensor([[0.0, 5.0], [5.0, 0.0], [1.0, 1.0]]))
        >>> rows, columns = matcher(queries, Candidates(torch.tensor([0, 1])))
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [1, 0])
    """

    names = ("class", "box", "giou", "mask", "dice")

    def __init__(
        self,
        class_cost: Callable[[Tensor, Tensor], Tensor],
        costs: Mapping[str, float],
        mask_focal: bool = False,
    ) -> None:
        unknown = [name for name in costs if name not in self.names]
        if unknown:
            raise ValueError(f"unknown matching costs {unknown}; there are {list(self.names)}")
        self.costs = check_weights(costs, "matching cost")
        if not self.costs:
            raise ValueError(f"matching needs at least one cost that is not 0 of {list(self.names)}")
        self.class_cost = class_cost
        self.mask_focal = mask_focal

    @property
    def needs_masks(self) -> bool:
        """True when masks are compared."""
        return "mask" in self.costs or "dice" in self.costs

    def without_masks(self) -> HungarianMatcher:
        """Return the matcher of predictions that have no masks, such as an encoder's proposals of boxes."""
        costs = {name: cost for name, cost in self.costs.items() if name not in ("mask", "dice")}
        return HungarianMatcher(self.class_cost, costs)

    @torch.no_grad()
    def __call__(
        self,
        queries: Candidates,
        objects: Candidates,
        weight: Float[Tensor, " points"] | None = None,
        groups: int = 1,
        where: str = "this image",
    ) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Return the matched queries and the object of each.

        Args:
            queries: All queries, group by group.
            objects: The objects; possibly none, possibly more than queries.
            weight: Weight of each point of the masks, by default 1.
            groups: Parts of the queries that are matched each on its own, to all objects.
            where: Name of the image for the error.

        Raises:
            TrainingError: If a cost is NaN.
            ValueError: If the queries are not that many groups.
        """
        device = queries.classes.device
        if len(queries.classes) % groups:
            raise ValueError(
                f"{len(queries.classes)} queries are not {groups} groups of one size; in training a head predicts "
                "groups * num_queries of them, group by group"
            )
        with torch.autocast(device.type, enabled=False):
            cost = self.cost(queries, objects, weight)
        cost = _without_infinity(_refuse_nan(cost.cpu(), where))
        size = len(cost) // groups
        pairs = [hungarian(cost[i * size : (i + 1) * size]) for i in range(groups)]
        rows = torch.cat([row + i * size for i, (row, _) in enumerate(pairs)])
        columns = torch.cat([column for _, column in pairs])
        return rows.to(device), columns.to(device)

    def cost(
        self, queries: Candidates, objects: Candidates, weight: Tensor | None = None
    ) -> Float[Tensor, "queries objects"]:
        """Return the weighted sum of the costs of each pair."""
        total = queries.classes.new_zeros((len(queries.classes), len(objects.classes)), dtype=torch.float32)
        if total.numel() == 0:
            return total
        if "class" in self.costs:
            total += self.costs["class"] * self.class_cost(queries.classes, objects.classes)
        if "box" in self.costs or "giou" in self.costs:
            total += self._box_cost(queries.boxes, objects.boxes)
        if self.needs_masks:
            total += self._mask_cost(queries.masks, objects.masks, weight)
        return total

    def _box_cost(self, predicted: Tensor | None, true: Tensor | None) -> Tensor:
        if predicted is None or true is None:
            raise ValueError(
                "the costs 'box' and 'giou' need boxes, but this head predicts none; set them to 0"
            )
        predicted, true = predicted.float(), true.float()
        distance = torch.cdist(predicted, true, p=1)
        overlap = generalized_box_iou(
            box_convert(predicted, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy")
        )
        return self.costs.get("box", 0.0) * distance - self.costs.get("giou", 0.0) * overlap

    def _mask_cost(self, logits: Tensor | None, true: Tensor | None, weight: Tensor | None) -> Tensor:
        if logits is None or true is None:
            raise ValueError("the costs 'mask' and 'dice' need masks, but there are none; set them to 0")
        mask, dice = pairwise_mask_costs(logits, true, weight, self.mask_focal)
        return self.costs.get("mask", 0.0) * mask + self.costs.get("dice", 0.0) * dice


def pairwise_mask_costs(
    logits: Float[Tensor, "queries points"],
    true: Float[Tensor, "objects points"],
    weight: Float[Tensor, " points"] | None = None,
    focal: bool = False,
) -> tuple[Float[Tensor, "queries objects"], Float[Tensor, "queries objects"]]:
    """Return how badly the mask of each query fits each object, a few queries at a time.

    Args:
        logits: Of queries at points.
        true: Masks of objects at the same points, in [0, 1].
        weight: Weight of each point, by default 1.
        focal: Focal loss (alpha 0.25, gamma 2) instead of the plain binary cross entropy.

    Returns:
        The mean binary cross entropy over the points, and one minus the soft Dice coefficient, smoothed by 1.
    """
    true = true.float()
    sum_over_mask = _sums_over(true)
    area = (true if weight is None else true * weight).sum(dim=1)
    count: Tensor | int = true.shape[1] if weight is None else weight.sum().clamp(min=1e-6)
    masks, dices = [], []
    for values in torch.split(logits.float(), max(1, _CHUNK // true.shape[1])):
        confidence = values.sigmoid()
        if focal:
            negative = 0.75 * confidence.square() * F.softplus(values)
            difference = negative - 0.25 * (1 - confidence).square() * F.softplus(-values)
        else:  # the loss of a negative is that of a positive plus the logit: one product serves both
            negative, difference = F.softplus(values), values
        if weight is not None:
            negative, difference, confidence = negative * weight, difference * weight, confidence * weight
        masks.append((negative.sum(dim=1, keepdim=True) - sum_over_mask(difference)) / count)
        total = confidence.sum(dim=1, keepdim=True) + area
        dices.append(1 - (2 * sum_over_mask(confidence) + 1) / (total + 1))
    return torch.cat(masks), torch.cat(dices)


def _sums_over(true: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function from values ``(queries, points)`` to their sums over each mask ``(queries, objects)``.

    In a crowded scene each object fills a tiny part of the points; then only these are added up.
    """
    rows, points = true.nonzero(as_tuple=True)
    if len(rows) > _SPARSE * true.numel():
        return lambda values: values @ true.T
    starts = torch.searchsorted(rows, torch.arange(len(true), device=true.device))
    shares = true[rows, points]
    return lambda values: (
        F.embedding_bag(points, values.T.contiguous(), starts, mode="sum", per_sample_weights=shares).T
    )


def _refuse_nan(cost: Tensor, where: str) -> Tensor:
    """Return the costs if none of them is NaN."""
    count = int(cost.isnan().sum())
    if count:
        raise TrainingError(
            f"{count} of {cost.numel()} matching costs of {where} are NaN: predictions or targets hold NaN or infinite "
            "values; look at the last loss, the learning rate, and the boxes"
        )
    return cost


def _without_infinity(cost: Tensor) -> Tensor:
    """Replace infinite costs by finite ones that outweigh all others together, but do not swamp them.

    The largest float would: next to it, the differences between the other costs are lost to rounding.
    """
    finite = cost[cost.isfinite()]
    if finite.numel() == cost.numel():
        return cost
    bound = 1.0 + float(finite.abs().max()) if finite.numel() else 1.0
    outweighs = 2.0 * bound * (min(cost.shape) + 1)
    return cost.double().nan_to_num(posinf=outweighs, neginf=-outweighs)

"""How queries are classified: number of logits, matching cost, loss, scores and the bias to begin with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixvox.distributed.world import world_mean
from pixvox.ranges import check_at_least, check_shares

NO_OBJECT = -1
"""Label of a query that is matched to nothing."""

_EPSILON = 1e-12


class QueryClassification(nn.Module, ABC):
    """What a head with queries needs to know of its classes; all of it is computed in float32.

    A module without weights, as configurations in checkpoints may name modules alone.

    Example:
        >>> SigmoidFocal().num_logits(3), SoftmaxWithNoObject().num_logits(3)
        (3, 4)
    """

    needs_iou: bool = False
    """True when the loss wants to know how well the boxes of matched queries fit."""

    @abstractmethod
    def num_logits(self, num_classes: int) -> int:
        """Return how many logits a query has."""

    @abstractmethod
    def scores(self, logits: Float[Tensor, "*batch logits"]) -> Float[Tensor, "*batch classes"]:
        """Return the confidence in each class, in [0, 1], without any "no object"."""

    @abstractmethod
    def cost(
        self, logits: Float[Tensor, "queries logits"], labels: Int[Tensor, " objects"]
    ) -> Float[Tensor, "queries objects"]:
        """Return the matching cost of each query with each object of these labels."""

    @abstractmethod
    def loss(
        self,
        logits: Float[Tensor, "batch queries logits"],
        labels: Int[Tensor, "batch queries"],
        count: Float[Tensor, ""],
        learns: Bool[Tensor, "batch queries"] | None = None,
        ious: Float[Tensor, "batch queries"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            logits: Of all queries.
            labels: Class of the matched object, ``NO_OBJECT`` (-1) where there is none.
            count: Number of objects to divide by, already a mean over processes.
            learns: False for queries that learn nothing.
            ious: IoU of the box of each matched query with its object's, for those that need it.
        """

    def init_bias(self, layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
        """Set the bias of the layer that gives the logits to where training begins well: no class before others."""
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class SoftmaxWithNoObject(QueryClassification):
    """Softmax over the classes and, last, "no object", whose queries weigh less.

    "End-to-End Object Detection with Transformers" (Carion et al., 2020, https://arxiv.org/abs/2005.12872), as in
    Mask2Former: a weighted cross entropy, divided by the sum of the weights of all queries, of all processes.

    Args:
        no_object_weight: Weight of a query that is matched to nothing.

    Example:
        >>> SoftmaxWithNoObject().scores(torch.tensor([[0.0, 0.0, 0.0, 0.0]])).tolist()
        [[0.25, 0.25, 0.25]]
    """

    def __init__(self, no_object_weight: float = 0.1) -> None:
        super().__init__()
        check_shares(no_object_weight=no_object_weight)
        self.no_object_weight = no_object_weight

    def num_logits(self, num_classes: int) -> int:
        """Return one logit per class and one for "no object"."""
        return num_classes + 1

    def scores(self, logits: Float[Tensor, "*batch logits"]) -> Float[Tensor, "*batch classes"]:
        """Return the probabilities of the classes."""
        return logits.float().softmax(dim=-1)[..., :-1]

    def cost(
        self, logits: Float[Tensor, "queries logits"], labels: Int[Tensor, " objects"]
    ) -> Float[Tensor, "queries objects"]:
        """Return minus the probability of each object's class."""
        return -logits.float().softmax(dim=-1)[:, labels]

    def loss(
        self,
        logits: Float[Tensor, "batch queries logits"],
        labels: Int[Tensor, "batch queries"],
        count: Float[Tensor, ""],
        learns: Bool[Tensor, "batch queries"] | None = None,
        ious: Float[Tensor, "batch queries"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the weighted cross entropy."""
        empty = labels == NO_OBJECT
        weight = torch.where(empty, self.no_object_weight, 1.0)
        if learns is not None:
            weight = weight * learns
        wanted = torch.where(empty, logits.shape[-1] - 1, labels)
        each = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        return (each * weight.flatten()).sum() / world_mean(weight.sum(), minimum=_EPSILON).to(each.device)


class SigmoidFocal(QueryClassification):
    """An independent sigmoid per class with the focal loss, as Deformable DETR.

    "Focal Loss for Dense Object Detection" (Lin et al., 2017, https://arxiv.org/abs/1708.02002).

    Args:
        alpha: Weight of the positive entries; the negative ones get ``1 - alpha``.
        gamma: Exponent that makes easy entries light.
        prior: Confidence to begin with.

    Example:
        >>> round(float(SigmoidFocal().scores(torch.zeros(1))), 2)
        0.5
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, prior: float = 0.01) -> None:
        super().__init__()
        check_at_least(0, gamma=gamma)
        if not 0 < prior < 1:
            raise ValueError(f"prior must lie between 0 and 1, got {prior}")
        if not alpha <= 1:
            raise ValueError(f"alpha must be at most 1 (below 0 neither side is weighted), got {alpha}")
        self.alpha = alpha
        self.gamma = gamma
        self.prior = prior

    def num_logits(self, num_classes: int) -> int:
        """Return one logit per class."""
        return num_classes

    def scores(self, logits: Float[Tensor, "*batch logits"]) -> Float[Tensor, "*batch classes"]:
        """Return the sigmoids."""
        return logits.float().sigmoid()

    def cost(
        self, logits: Float[Tensor, "queries logits"], labels: Int[Tensor, " objects"]
    ) -> Float[Tensor, "queries objects"]:
        """Return what the focal loss of each object's class gains by being positive."""
        positive, negative = focal_terms(logits.float(), self.alpha, self.gamma)
        return (positive - negative)[:, labels]

    def loss(
        self,
        logits: Float[Tensor, "batch queries logits"],
        labels: Int[Tensor, "batch queries"],
        count: Float[Tensor, ""],
        learns: Bool[Tensor, "batch queries"] | None = None,
        ious: Float[Tensor, "batch queries"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the focal loss, summed and divided by the number of objects."""
        positive, negative = focal_terms(logits.float(), self.alpha, self.gamma)
        each = torch.where(_entries(labels, logits.shape[-1]), positive, negative)
        return _sum(each, learns) / count

    def init_bias(self, layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
        """Set the bias such that every class begins at the prior confidence."""
        nn.init.constant_(layer.bias, -math.log((1 - self.prior) / self.prior))  # type: ignore[arg-type]


class IoUAware(SigmoidFocal):
    """An independent sigmoid per class that learns how well the box fits: IoU-aware binary cross entropy.

    "LW-DETR" (Chen et al., 2024, https://arxiv.org/abs/2406.03459). With ``s`` the confidence and ``u`` the IoU, a
    matched entry learns ``t = s^alpha * u^(1 - alpha)``, held fixed; every other entry learns 0, weighted by
    ``s^2``. The sum is divided by the number of objects. Matching is by the focal cost.

    Args:
        alpha: Share of the confidence in the target.
        least_target: Targets are at least this; LW-DETR's code has 0.01, its paper 0.
        cost_alpha: ``alpha`` of the focal matching cost.
        cost_gamma: ``gamma`` of the focal matching cost.
        prior: Confidence to begin with.
    """

    needs_iou = True

    def __init__(
        self,
        alpha: float = 0.25,
        least_target: float = 0.0,
        cost_alpha: float = 0.25,
        cost_gamma: float = 2.0,
        prior: float = 0.01,
    ) -> None:
        super().__init__(cost_alpha, cost_gamma, prior)
        check_shares(alpha=alpha, least_target=least_target)
        self.iou_alpha = alpha
        self.least_target = least_target

    def loss(
        self,
        logits: Float[Tensor, "batch queries logits"],
        labels: Int[Tensor, "batch queries"],
        count: Float[Tensor, ""],
        learns: Bool[Tensor, "batch queries"] | None = None,
        ious: Float[Tensor, "batch queries"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the IoU-aware binary cross entropy."""
        if ious is None:
            raise ValueError(
                "IoU-aware classification needs the IoU of boxes, but this head predicts none; "
                "choose SigmoidFocal or SoftmaxWithNoObject as its classification"
            )
        logits = logits.float()
        confidence = logits.sigmoid()
        quality = confidence**self.iou_alpha * ious[..., None].float() ** (1 - self.iou_alpha)
        wanted = quality.clamp(min=self.least_target).detach()
        positive = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        negative = confidence.square() * F.softplus(logits)
        each = torch.where(_entries(labels, logits.shape[-1]), positive, negative)
        return _sum(each, learns) / count


class Varifocal(SigmoidFocal):
    """An independent sigmoid per class that learns how well the box fits; other entries weigh what they are sure of.

    "VarifocalNet: An IoU-aware Dense Object Detector" (Zhang et al., 2021, https://arxiv.org/abs/2008.13367), as
    RT-DETR, D-FINE and ContourFormer use it: a matched entry learns the IoU ``u`` with the weight ``u``, every other
    entry 0 with the weight ``alpha * s^gamma``. Matching is by the focal cost.

    Args:
        alpha: Weight of entries without an object.
        gamma: Exponent that makes easy ones light.
        cost_alpha: ``alpha`` of the focal matching cost.
        cost_gamma: ``gamma`` of the focal matching cost.
        prior: Confidence to begin with.
    """

    needs_iou = True

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        cost_alpha: float = 0.25,
        cost_gamma: float = 2.0,
        prior: float = 0.01,
    ) -> None:
        super().__init__(cost_alpha, cost_gamma, prior)
        check_at_least(0, alpha=alpha, gamma=gamma)
        self.negative_alpha, self.negative_gamma = alpha, gamma

    def loss(
        self,
        logits: Float[Tensor, "batch queries logits"],
        labels: Int[Tensor, "batch queries"],
        count: Float[Tensor, ""],
        learns: Bool[Tensor, "batch queries"] | None = None,
        ious: Float[Tensor, "batch queries"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the varifocal loss."""
        if ious is None:
            raise ValueError("varifocal classification needs the IoU of boxes, but this head predicts none")
        logits = logits.float()
        matched = _entries(labels, logits.shape[-1])
        wanted = torch.where(matched, ious[..., None].float(), 0.0).detach()
        light = self.negative_alpha * logits.sigmoid().detach() ** self.negative_gamma
        weight = torch.where(matched, wanted, light)
        each = F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="none")
        return _sum(each, learns) / count


def focal_terms(logits: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the focal loss of each logit if it were positive, and if it were negative.

    Args:
        logits: Of any shape, float32.
        alpha: Weight of positives; below 0 neither side is weighted.
        gamma: Exponent.
    """
    confidence = logits.sigmoid()
    positive = (1 - confidence) ** gamma * F.softplus(-logits)
    negative = confidence**gamma * F.softplus(logits)
    return (alpha * positive, (1 - alpha) * negative) if alpha >= 0 else (positive, negative)


def _entries(labels: Tensor, num_classes: int) -> Tensor:
    """Return which (query, class) entries are positive."""
    return labels[..., None] == torch.arange(num_classes, device=labels.device)


def _sum(each: Tensor, learns: Tensor | None) -> Tensor:
    return each.sum() if learns is None else (each * learns[..., None]).sum()

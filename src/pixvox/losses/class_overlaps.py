"""Overlap of predicted and true regions, which losses of regions are made of."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.distributed.world import world_sum
from pixvox.losses.class_factors import class_counts


def class_overlaps(
    logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"], ignore_index: int
) -> Float[Tensor, "3 classes"]:
    """Return for each class how much is shared, predicted and true, in pixels of all processes.

    Args:
        logits: Scores of classes, turned into probabilities by softmax.
        labels: Classes.
        ignore_index: Label left out.

    Raises:
        ValueError: If a label is none of the classes.

    Example:
        >>> labels = torch.tensor([[[0, 1, 1, 255]]])
        >>> class_overlaps(torch.zeros(1, 2, 1, 4), labels, ignore_index=255).tolist()
        [[0.5, 1.0], [1.5, 1.5], [1.0, 2.0]]
    """
    labels = labels.long()
    true = class_counts(labels, logits.shape[1], ignore_index)
    shared, predicted = _SoftmaxSums.apply(logits, labels, ignore_index)
    return world_sum(torch.stack([shared, predicted, true.float()]))


class _SoftmaxSums(torch.autograd.Function):
    """Sums over pixels of the probabilities of each class, where it is true and everywhere.

    By autograd alone the same takes twice the time and memory: maps of all classes are made for the truth, for both
    products and for the gradient of each step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
        valid = labels != ignore_index
        known = torch.where(valid, labels, 0).unsqueeze(1)
        probabilities = logits.float().softmax(dim=1).mul_(valid.unsqueeze(1))
        of_truth = probabilities.gather(1, known)
        ctx.save_for_backward(probabilities, of_truth, known)
        ctx.dtype = logits.dtype
        predicted = probabilities.flatten(2).sum(dim=(0, 2))
        return _sums_by_class(of_truth, known, logits.shape[1]), predicted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probabilities, of_truth, known = ctx.saved_tensors
        of_shared, of_predicted = gradients
        # A tenth of the time of indexing by a map.
        at_truth = of_shared.index_select(0, known.flatten()).view_as(of_truth).mul_(of_truth)
        slopes = probabilities * of_predicted.view(-1, *[1] * (probabilities.dim() - 2))
        # That of softmax: each probability's own slope, less what all of a pixel have together.
        slopes.addcmul_(probabilities, slopes.sum(dim=1, keepdim=True) + at_truth, value=-1)
        return slopes.scatter_add_(1, known, at_truth).to(ctx.dtype), None, None


def _sums_by_class(
    values: Float[Tensor, "*places"], labels: Int[Tensor, "*places"], num_classes: int
) -> Float[Tensor, " {num_classes}"]:
    """Add values up by class: first in each row, because one sum of float32 stands still after millions of pixels."""
    rows = labels.flatten(0, -2)
    places = rows + num_classes * torch.arange(len(rows), device=rows.device).unsqueeze(1)
    sums = values.new_zeros(len(rows) * num_classes).index_add(0, places.flatten(), values.flatten())
    return sums.view(-1, num_classes).sum(dim=0)

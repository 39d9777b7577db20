"""Overlap of predicted and true regions, which losses of regions are made of."""

from __future__ import annotations

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
    num_classes, axes = logits.shape[1], [0, *range(2, logits.dim())]
    true = class_counts(labels, num_classes, ignore_index)
    labels, valid = labels.unsqueeze(1), (labels != ignore_index).unsqueeze(1)
    classes = torch.arange(num_classes, device=labels.device).view(-1, *[1] * (logits.dim() - 2))
    probabilities = logits.float().softmax(dim=1) * valid
    shared = torch.where(labels == classes, probabilities, 0.0).sum(axes)
    return world_sum(torch.stack([shared, probabilities.sum(axes), true.float()]))

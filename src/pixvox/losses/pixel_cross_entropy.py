"""Cross-entropy of each pixel or voxel, which several losses are made of."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def pixel_cross_entropy(
    logits: Float[Tensor, "batch classes *spatial"],
    labels: Int[Tensor, "batch *spatial"],
    ignore_index: int,
    class_weights: Float[Tensor, " classes"] | None = None,
    label_smoothing: float = 0.0,
    reduction: Literal["none", "sum"] = "none",
) -> Float[Tensor, "*places"]:
    """Return minus the logarithm of the probability of each pixel's class, in float32; 0 where it is ignored.

    Args:
        logits: Scores of classes.
        labels: Classes.
        ignore_index: Label left out.
        class_weights: Factor of each class.
        label_smoothing: Share of the truth spread over all classes, in [0, 1).
        reduction: ``"none"`` for a map, ``"sum"`` for its sum.

    Example:
        >>> logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]])
        >>> pixel_cross_entropy(logits, labels, ignore_index=255).exp().tolist()
        [[[2.0, 1.0]]]
    """
    shape, labels = labels.shape, labels.long()
    if torch.are_deterministic_algorithms_enabled():
        # On a GPU torch's kernel for maps refuses to work then; the one for rows repeats bit for bit.
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    loss = F.cross_entropy(
        logits.float(), labels, class_weights,
        ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction,
    )  # fmt: skip
    return loss if reduction == "sum" else loss.reshape(shape)

"""Mask losses of matched queries, at points or on the whole grid."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pixvox.losses.query_classification import focal_terms


def mask_losses(
    logits: Float[Tensor, "masks points"],
    true: Float[Tensor, "masks points"],
    weight: Float[Tensor, "masks points"] | None = None,
    focal: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return binary cross entropy (or focal loss) and Dice loss, each summed over the masks.

    Those of "Masked-attention Mask Transformer" (Cheng et al., 2022, https://arxiv.org/abs/2112.01527).

    Args:
        logits: Of each mask at its points.
        true: Truth in [0, 1].
        weight: Weight of each point, 0 where the truth is not known; by default 1.
        focal: Focal loss (alpha 0.25, gamma 2) instead of the plain cross entropy.
    """
    logits, true = logits.float(), true.float()
    if focal:
        positive, negative = focal_terms(logits, 0.25, 2.0)
        each = true * positive + (1 - true) * negative
    else:
        each = F.binary_cross_entropy_with_logits(logits, true, reduction="none")
    confidence = logits.sigmoid()
    area = true
    if weight is None:
        mask = each.mean(dim=1)
    else:
        mask = (each * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-6)
        confidence, area = confidence * weight, true * weight
    dice = 1 - (2 * (confidence * true).sum(dim=1) + 1) / (confidence.sum(dim=1) + area.sum(dim=1) + 1)
    return mask.sum(), dice.sum()


def squared_dice_losses(
    probabilities: Float[Tensor, "masks pixels"],
    truth: Bool[Tensor, "masks pixels"],
    known: Bool[Tensor, " pixels"] | None = None,
) -> Float[Tensor, " masks"]:
    """Return one minus the Dice coefficient of each mask, with squares in its denominator.

    "V-Net" (Milletari et al., 2016, https://arxiv.org/abs/1606.04797), as in SOLO.

    Args:
        probabilities: Of each pixel.
        truth: Of each pixel.
        known: False for pixels that do not count.

    Example:
        >>> import torch
        >>> round(float(squared_dice_losses(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]]))), 3)
        0.001
    """
    true = truth.to(probabilities.dtype)
    if known is not None:
        probabilities, true = probabilities * known, true * known
    shared = (probabilities * true).sum(dim=1)
    whole = (probabilities * probabilities).sum(dim=1) + true.sum(dim=1) + 2e-3
    return 1 - 2 * shared / whole

"""Dice loss over class maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.data.class_weights import ClassWeighting
from pixvox.losses.class_factors import check_length, class_factors
from pixvox.losses.class_overlaps import class_overlaps
from pixvox.structures import IGNORE_INDEX


class Dice(nn.Module):
    """One minus the soft Dice coefficient of each class, over the whole batch, of all processes.

    "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation" (Milletari et al., 2016,
    https://arxiv.org/abs/1606.04797), with plain denominators. A region term: a rare class weighs as much
    as a frequent one. Classes absent from the truth of a batch are left out of the mean, ignored pixels out
    of the sums.

    Args:
        weight: Factor of the term.
        ignore_index: Label left out.
        smooth: Added to both sides of the fraction, in pixels.
        include_background: Count class 0.
        class_weights: Factor of each class in the mean, or None; in a configuration also a word, see
            ``pixvox.data.class_weights``.

    Raises:
        ValueError: If ``class_weights`` are not numbers from 0 up.

    Example:
        >>> labels = torch.tensor([[[0, 1], [1, 0]]])
        >>> certain = 50.0 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
        >>> round(float(Dice()(certain, labels)), 4)
        0.0
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        ignore_index: int = IGNORE_INDEX,
        smooth: float = 1e-5,
        include_background: bool = True,
        class_weights: Sequence[float] | ClassWeighting | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.ignore_index = ignore_index
        self.smooth = smooth
        self.include_background = include_background
        self.register_buffer("class_weights", class_factors(class_weights), persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the mean over the classes that are present."""
        shared, predicted, true = class_overlaps(logits, labels, self.ignore_index)
        factors = (true > 0).float()
        if not self.include_background:
            factors[0] = 0.0
        if self.class_weights is not None:
            check_length(self.class_weights, len(factors))
            factors = factors * self.class_weights
        dice = (2 * shared + self.smooth) / (predicted + true + self.smooth)
        # Where no class counts, the sum of factors is 0 as well.
        total = factors.sum().clamp(min=torch.finfo(torch.float32).tiny)
        loss: Tensor = self.weight * (factors * (1 - dice)).sum() / total
        return loss

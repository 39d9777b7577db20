"""Generalised Dice loss over class maps."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.losses.class_overlaps import class_overlaps
from pixvox.structures import IGNORE_INDEX


class GeneralizedDice(nn.Module):
    """One minus the overlap of all classes together, each divided by the square of its volume.

    "Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations" (Sudre et al.,
    2017, https://arxiv.org/abs/1707.03237). Volumes are those of the truth, over the whole batch, of all processes.
    Classes absent from it, whose weight would be infinite, are left out, ignored pixels as well.

    Args:
        weight: Factor of the term.
        ignore_index: Label left out.
        smooth: Added to both sides of the fraction, in pixels of the rarest class.
        include_background: Count class 0.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[[0, 0, 0, 1]]])
        >>> round(float(GeneralizedDice()(torch.zeros(1, 2, 1, 4), labels)), 4)  # one half everywhere
        0.625
    """

    def __init__(
        self,
        weight: float = 1.0,
        ignore_index: int = IGNORE_INDEX,
        smooth: float = 1e-5,
        include_background: bool = True,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.ignore_index = ignore_index
        self.smooth = smooth
        self.include_background = include_background

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the loss of the classes that are present."""
        shared, predicted, true = class_overlaps(logits, labels, self.ignore_index)
        present = true > 0
        if not self.include_background:
            present[0] = False
        if not present.any():
            nothing: Tensor = 0.0 * shared.sum()
            return nothing
        volumes = true[present]
        # The rarest class weighs 1: plain 1 / volume^2 would vanish beside ``smooth`` in large images.
        factors = (volumes.min() / volumes).square()
        overlap = 2 * (factors * shared[present]).sum() + self.smooth
        total = (factors * (predicted + true)[present]).sum() + self.smooth
        loss: Tensor = self.weight * (1 - overlap / total)
        return loss

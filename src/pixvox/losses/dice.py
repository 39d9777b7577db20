"""Dice loss over class maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.distributed.world import world_sum
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

    Example:
        >>> labels = torch.tensor([[[0, 1], [1, 0]]])
        >>> certain = 50.0 * F.one_hot(labels, 2).movedim(-1, 1).float()
        >>> round(float(Dice()(certain, labels)), 4)
        0.0
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
        """Return the mean over the classes that are present."""
        valid = (labels != self.ignore_index).unsqueeze(1)
        probabilities = logits.float().softmax(dim=1) * valid
        truth = F.one_hot(torch.where(valid[:, 0], labels.long(), 0), logits.shape[1]).movedim(-1, 1) * valid
        axes = [0, *range(2, logits.dim())]
        sums = torch.stack(
            [(probabilities * truth).sum(axes), (probabilities + truth).sum(axes), truth.sum(axes).float()]
        )
        shared, total, true = world_sum(sums)
        present = true > 0
        if not self.include_background:
            present[0] = False
        if not present.any():
            return logits.sum() * 0.0
        dice = (2 * shared + self.smooth) / (total + self.smooth)
        loss: Tensor = self.weight * (1 - dice[present]).mean()
        return loss

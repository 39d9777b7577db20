"""Focal loss over class maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.data.class_weights import ClassWeighting
from pixvox.distributed.world import world_mean
from pixvox.losses.class_factors import class_factors, pixel_factors
from pixvox.losses.pixel_cross_entropy import pixel_cross_entropy
from pixvox.ranges import check_at_least
from pixvox.structures import IGNORE_INDEX


class Focal(nn.Module):
    """Cross-entropy in which pixels that are right already count less: by ``(1 - p)^gamma``, p of the true class.

    "Focal Loss for Dense Object Detection" (Lin et al., 2017, https://arxiv.org/abs/1708.02002), over a softmax.
    Its mean is that of cross-entropy: over the pixels that are not ignored, weighted by their classes.

    Args:
        weight: Factor of the term.
        gamma: 0 is cross-entropy; the paper takes 2.
        class_weights: Factor of each class, the paper's alpha, or None; in a configuration also a word, see
            ``pixvox.data.class_weights``.
        ignore_index: Label left out.

    Raises:
        ValueError: If ``gamma`` is negative or ``class_weights`` are not numbers from 0 up.

    Example:
        >>> logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]])
        >>> round(float(Focal(gamma=2.0)(logits, labels)), 4)  # log(2) / 4
        0.1733
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        gamma: float = 2.0,
        class_weights: Sequence[float] | ClassWeighting | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        check_at_least(0, gamma=gamma)
        self.weight = weight
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_factors(class_weights), persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the mean over the pixels that count, in all processes that share a step."""
        cross_entropy = pixel_cross_entropy(logits, labels, self.ignore_index)
        tiny = torch.finfo(torch.float32).tiny
        # Below gamma 1 a power has no finite slope at 0, where certain and ignored pixels are.
        doubt = (-torch.expm1(-cross_entropy)).clamp(min=tiny)
        loss = doubt.pow(self.gamma) * cross_entropy
        if self.class_weights is None:
            total = (labels != self.ignore_index).sum()
        else:
            factors = pixel_factors(self.class_weights, labels, logits.shape[1], self.ignore_index)
            loss, total = loss * factors, factors.sum()
        return self.weight * loss.sum() / world_mean(total, minimum=tiny)

"""Cross-entropy over class maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.data.class_weights import ClassWeighting
from pixvox.distributed.world import world_mean
from pixvox.losses.class_factors import check_length, class_counts, class_factors
from pixvox.losses.pixel_cross_entropy import pixel_cross_entropy
from pixvox.structures import IGNORE_INDEX


class CrossEntropy(nn.Module):
    """Cross-entropy of every pixel or voxel that is not ignored; 0 where all are.

    Args:
        weight: Factor of the term.
        class_weights: Factor of each class, or None; in a configuration also a word, see
            ``pixvox.data.class_weights``.
        ignore_index: Label left out.
        label_smoothing: Share of the truth spread over all classes, in [0, 1).

    Raises:
        ValueError: If ``class_weights`` are not numbers from 0 up.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        class_weights: Sequence[float] | ClassWeighting | None = None,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_factors(class_weights), persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the mean over the pixels that count, in all processes that share a step."""
        if self.class_weights is None:
            total = (labels != self.ignore_index).sum()
        else:
            check_length(self.class_weights, logits.shape[1])
            total = (class_counts(labels, logits.shape[1], self.ignore_index) * self.class_weights).sum()
        loss = pixel_cross_entropy(
            logits, labels, self.ignore_index, self.class_weights, self.label_smoothing, reduction="sum"
        )
        # Weights may add up to less than 1; where nothing counts the sum above is 0.
        return self.weight * loss / world_mean(total, minimum=torch.finfo(torch.float32).tiny)

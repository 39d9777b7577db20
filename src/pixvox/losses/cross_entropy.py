"""Cross-entropy over class maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.distributed.world import world_mean
from pixvox.structures import IGNORE_INDEX


class CrossEntropy(nn.Module):
    """Cross-entropy of every pixel or voxel that is not ignored; 0 where all are.

    Args:
        weight: Factor of the term.
        class_weights: Factor of each class, or None.
        ignore_index: Label left out.
        label_smoothing: Share of the truth spread over all classes, in [0, 1).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(list(class_weights))
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the mean over the pixels that count, in all processes that share a step."""
        labels = labels.long()
        loss = F.cross_entropy(
            logits.float(), labels, self.class_weights,
            ignore_index=self.ignore_index, label_smoothing=self.label_smoothing, reduction="sum",
        )  # fmt: skip
        counted = labels[labels != self.ignore_index]
        weights = self.class_weights
        count = counted.new_tensor(len(counted)) if weights is None else weights[counted].sum()
        # Weights may add up to less than 1; where nothing counts the sum above is 0.
        return self.weight * loss / world_mean(count, minimum=torch.finfo(torch.float32).tiny)

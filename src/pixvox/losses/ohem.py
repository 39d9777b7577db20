"""Cross-entropy of the hardest pixels of class maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixvox.data.class_weights import ClassWeighting
from pixvox.distributed.world import world_mean
from pixvox.losses.class_factors import class_factors, pixel_factors
from pixvox.losses.pixel_cross_entropy import pixel_cross_entropy
from pixvox.ranges import check_shares
from pixvox.structures import IGNORE_INDEX


class OHEM(nn.Module):
    """Online hard example mining: cross-entropy of the pixels whose class is not yet predicted surely enough.

    "Training Region-based Object Detectors with Online Hard Example Mining" (Shrivastava et al., 2016,
    https://arxiv.org/abs/1604.03540), for pixels as BiSeNet (https://arxiv.org/abs/1808.00897) and PIDNet
    (https://arxiv.org/abs/2206.02066) train: where the probability of the true class is below a threshold, and at
    least so many of the hardest. Each process chooses among its own pixels.

    Args:
        weight: Factor of the term.
        threshold: Pixels whose true class has a lower probability are hard, from 0 to 1; 0 takes the hardest
            ``min_kept`` alone.
        min_kept: Pixels of a batch that are kept at least: a number, or a share in (0, 1) of those that are not
            ignored.
        class_weights: Factor of each class in the mean, or None; in a configuration also a word, see
            ``pixvox.data.class_weights``. They do not change which pixels are hard.
        ignore_index: Label left out.

    Raises:
        ValueError: If ``threshold`` or ``min_kept`` is out of range or ``class_weights`` are not numbers from 0 up.

    Example:
        >>> labels = torch.zeros(1, 1, 4, dtype=torch.int64)
        >>> logits = torch.tensor([4.0, 3.0, 0.0, 2.0]).view(1, 1, 1, 4) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        >>> round(float(OHEM(min_kept=1)(logits, labels)), 4)  # the pixel of one half: log(2)
        0.6931
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        threshold: float = 0.7,
        min_kept: int | float = 0.0625,
        class_weights: Sequence[float] | ClassWeighting | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        check_shares(threshold=threshold)
        if min_kept < 0 or (isinstance(min_kept, float) and not 0 < min_kept < 1):
            raise ValueError(
                f"min_kept must be a whole number of pixels or a share in (0, 1), got {min_kept}"
            )
        self.weight = weight
        self.threshold = threshold
        self.min_kept = min_kept
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_factors(class_weights), persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the mean over the hard pixels, in all processes that share a step."""
        cross_entropy = pixel_cross_entropy(logits, labels, self.ignore_index)
        factors = self._hard(cross_entropy.detach(), labels != self.ignore_index).float()
        if self.class_weights is not None:
            factors = factors * pixel_factors(self.class_weights, labels, logits.shape[1], self.ignore_index)
        total = world_mean(factors.sum(), minimum=torch.finfo(torch.float32).tiny)
        return self.weight * (cross_entropy * factors).sum() / total

    def _hard(
        self, cross_entropy: Float[Tensor, "*places"], valid: Bool[Tensor, "*places"]
    ) -> Bool[Tensor, "*places"]:
        """Return which pixels are kept."""
        count = int(valid.sum())
        share = isinstance(self.min_kept, float)
        least = math.ceil(self.min_kept * count) if share else min(int(self.min_kept), count)
        limit = -math.log(self.threshold) if self.threshold > 0 else math.inf
        hard = valid & (cross_entropy > limit)
        if int(hard.sum()) >= least:
            return hard
        hardest = torch.where(valid, cross_entropy, -1.0).flatten().topk(least, sorted=False).indices
        return torch.zeros_like(valid).flatten().index_fill(0, hardest, True).reshape(valid.shape)

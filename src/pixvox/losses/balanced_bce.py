"""Binary cross-entropy in which both answers weigh the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixvox.distributed.world import world_sum


class BalancedBCE(nn.Module):
    """Binary cross-entropy of pixels, each weighed by the share of the pixels that have the other answer.

    "Holistically-Nested Edge Detection" (Xie and Tu, 2015, https://arxiv.org/abs/1504.06375), equation 2, as a mean:
    a border is a small part of an image.

    Args:
        weight: Factor of the term.

    Example:
        >>> truth = torch.tensor([True, False, False, False])
        >>> loss = BalancedBCE()(torch.zeros(4), truth, torch.ones(4, dtype=torch.bool))
        >>> round(float(loss), 4)  # (3/4 + 3 * 1/4) * log(2) / 4
        0.2599
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self, logits: Float[Tensor, "*places"], truth: Bool[Tensor, "*places"], valid: Bool[Tensor, "*places"]
    ) -> Float[Tensor, ""]:
        """Return the mean over the valid pixels of all processes that share a step; 0 where there are none."""
        positive, negative = truth & valid, ~truth & valid
        entropy = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none")
        sums = torch.stack(
            [(entropy * positive).sum(), (entropy * negative).sum(), positive.sum(), negative.sum()]
        )
        of_positive, of_negative, positives, negatives = world_sum(sums)
        count = (positives + negatives).detach().clamp(min=1)
        weighed = of_positive * negatives.detach() + of_negative * positives.detach()
        loss: Tensor = self.weight * weighed / count**2
        return loss

"""Which anchor or proposal learns which object: by IoU; and which of them are drawn to learn."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BELOW_LOW = -1
"""Match of a prediction that is background."""

BETWEEN = -2
"""Match of a prediction that is neither object nor background, and learns nothing."""


class Matcher:
    """Match each prediction to the object it overlaps best, or to none.

    The rule of Faster R-CNN (Ren et al., 2015, https://arxiv.org/abs/1506.01497), as in torchvision's
    ``det_utils.Matcher``, with two mends: no objects means background, not an error, and an object that no
    prediction overlaps at all claims none (there it claims every prediction of IoU 0).

    Args:
        high_threshold: From this IoU on a prediction is matched.
        low_threshold: Below this IoU it is background; between the two it is left out.
        allow_low_quality_matches: Match the predictions that overlap an object best (all of them, on ties)
            even below the thresholds, so that each object has one; they learn the object *they* overlap best.

    Raises:
        ValueError: If the thresholds are not in order.

    Example:
        >>> quality = torch.tensor([[0.9, 0.6, 0.4, 0.1]])
        >>> Matcher(0.7, 0.3)(quality).tolist()
        [0, -2, -2, -1]
    """

    def __init__(
        self, high_threshold: float, low_threshold: float, allow_low_quality_matches: bool = False
    ) -> None:
        if low_threshold > high_threshold:
            raise ValueError(
                f"low_threshold ({low_threshold}) must not be above high_threshold ({high_threshold})"
            )
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, quality: Float[Tensor, "objects predictions"]) -> Int[Tensor, " predictions"]:
        """Return for each prediction the index of its object, ``BELOW_LOW`` (-1) or ``BETWEEN`` (-2).

        Args:
            quality: IoU of each object with each prediction.
        """
        if quality.shape[0] == 0:
            return torch.full((quality.shape[1],), BELOW_LOW, dtype=torch.int64, device=quality.device)
        best, matches = quality.max(dim=0)
        result = matches.clone()
        result[best < self.high_threshold] = BETWEEN
        result[best < self.low_threshold] = BELOW_LOW
        if self.allow_low_quality_matches and quality.shape[1] > 0:
            best_of_object = quality.amax(dim=1, keepdim=True)
            claimed = ((quality == best_of_object) & (best_of_object > 0)).any(dim=0)
            result[claimed] = matches[claimed]
        return result


def balanced_sample(
    matches: Int[Tensor, " predictions"],
    batch_size: int,
    positive_fraction: float,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, " positives"], Int[Tensor, " negatives"]]:
    """Draw a bounded number of matched and of background predictions to learn from.

    There are two draws from the generator, in this order, whatever the counts: a permutation of the matched
    predictions, then one of the background; the first of each are taken. torchvision's sampler draws alike.

    Args:
        matches: From ``Matcher``: 0 or greater is matched, -1 background, less is left out.
        batch_size: Predictions to draw in all.
        positive_fraction: Part of them that is matched, at most; background fills up the rest.
        generator: Source of randomness; the global one of the device when None.

    Returns:
        Indices of the drawn matched predictions and of the drawn background.

    Example:
        >>> positives, negatives = balanced_sample(torch.tensor([0, -1, -2, -1, 1]), 3, 0.5)
        >>> len(positives), len(negatives)
        (1, 2)
    """
    positives = (matches >= 0).nonzero()[:, 0]
    negatives = (matches == BELOW_LOW).nonzero()[:, 0]
    most = int(batch_size * positive_fraction)
    drawn = positives[_permutation(positives, generator)[:most]]
    return drawn, negatives[_permutation(negatives, generator)[: batch_size - len(drawn)]]


def _permutation(items: Tensor, generator: torch.Generator | None) -> Tensor:
    device = items.device if generator is None else generator.device
    return torch.randperm(len(items), generator=generator, device=device).to(items.device)

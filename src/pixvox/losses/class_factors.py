"""Factors and pixel counts of classes, for losses of class maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.data.class_weights import ClassWeighting


def class_factors(class_weights: Sequence[float] | ClassWeighting | None) -> Float[Tensor, " classes"] | None:
    """Return the factors of classes as a tensor of their own, or None for none.

    Args:
        class_weights: A factor from 0 up for each class.

    Raises:
        ValueError: If they are no such numbers, or a word: only a training, which counts pixels, can resolve it.

    Example:
        >>> class_factors([1, 0.5]).tolist()
        [1.0, 0.5]
    """
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        raise ValueError(
            f"class_weights={class_weights!r} is resolved by a training, which counts the pixels of its data; "
            "elsewhere give one number per class, such as those of pixvox.data.class_weights.class_weights"
        )
    factors = [float(weight) for weight in class_weights]
    if (
        not factors
        or not all(math.isfinite(factor) and factor >= 0 for factor in factors)
        or not any(factors)
    ):
        raise ValueError(
            f"class_weights takes a finite number from 0 up for each class, one of them above 0, got {factors}"
        )
    return torch.tensor(factors)


def pixel_factors(
    factors: Float[Tensor, " classes"], labels: Int[Tensor, "*places"], num_classes: int, ignore_index: int
) -> Float[Tensor, "*places"]:
    """Return the factor of each pixel's class, 0 where it is ignored.

    Args:
        factors: Of the classes.
        labels: Classes of pixels.
        num_classes: How many classes are predicted.
        ignore_index: Label left out.

    Raises:
        ValueError: If there are more or fewer factors than classes.
    """
    check_length(factors, num_classes)
    valid = labels != ignore_index
    return factors[torch.where(valid, labels, 0).long()] * valid


def check_length(factors: Float[Tensor, " weights"], num_classes: int) -> None:
    """Refuse factors of other classes.

    Raises:
        ValueError: If there are more or fewer factors than classes.
    """
    if len(factors) != num_classes:
        raise ValueError(
            f"class_weights has {len(factors)} numbers for {num_classes} classes; give one per class"
        )


def class_counts(
    labels: Int[Tensor, "*places"], num_classes: int, ignore_index: int
) -> Int[Tensor, " {num_classes}"]:
    """Return how many pixels each class has, ignored ones left out.

    Args:
        labels: Classes of pixels.
        num_classes: How many classes there are.
        ignore_index: Label left out.

    Raises:
        ValueError: If a label is none of the classes.

    Example:
        >>> class_counts(torch.tensor([0, 2, 2, 255]), 3, ignore_index=255).tolist()
        [1, 0, 2]
    """
    flat = labels.flatten()
    if ignore_index < 0:
        flat = flat[flat != ignore_index]
    counts = torch.bincount(flat, minlength=num_classes)
    if 0 <= ignore_index < len(counts):
        counts[ignore_index] = 0
    strange = (counts[num_classes:].nonzero().flatten() + num_classes).tolist()
    if strange:
        raise ValueError(
            f"labels {strange} are none of the {num_classes} classes that are predicted: labels are 0 to "
            f"{num_classes - 1}, and {ignore_index} for what is left out"
        )
    return counts[:num_classes]

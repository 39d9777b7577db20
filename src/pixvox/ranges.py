"""Checks that numbers lie where they make sense, with one wording for all parts."""

from __future__ import annotations

import math
from collections.abc import Mapping


def check_at_least(least: int, **values: float) -> None:
    """Check that every value is at least ``least``.

    Args:
        least: The smallest value that makes sense.
        values: Values by the name that the user knows.

    Raises:
        ValueError: If one is less, or not a number.

    Example:
        >>> check_at_least(1, num_layers=0)
        Traceback (most recent call last):
        ValueError: num_layers must be at least 1, got 0
    """
    for name, value in values.items():
        if not value >= least:  # NaN is not
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_shares(**values: float) -> None:
    """Check that every value is from 0 to 1.

    Args:
        values: Values by the name that the user knows.

    Raises:
        ValueError: If one is outside, or not a number.

    Example:
        >>> check_shares(dropout=1.5)
        Traceback (most recent call last):
        ValueError: dropout must be from 0 to 1, got 1.5
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")


def check_weights(weights: Mapping[str, float | None], what: str) -> dict[str, float]:
    """Return the weights that are used: those that are neither 0 nor None.

    Args:
        weights: Weights by name.
        what: What they weigh, for the error.

    Raises:
        ValueError: If one is no number, negative or infinite.

    Example:
        >>> check_weights({"class": 2, "box": 0.0, "giou": None}, "matching cost")
        {'class': 2.0}
    """
    for name, weight in weights.items():
        right = weight is None or (isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0)
        if not right:
            raise ValueError(
                f"the weight of the {what} {name} must be a number of at least 0, got {weight!r}"
            )
    return {name: float(weight) for name, weight in weights.items() if weight}

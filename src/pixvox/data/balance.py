"""Show images of rare classes more often."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

import numpy as np

from pixvox.data.dataset import Dataset

logger = logging.getLogger(__name__)

Balance = Literal["repeat_factor", "inverse_frequency"]


def image_weights(dataset: Dataset, balance: Balance, threshold: float = 0.1) -> np.ndarray:
    """Return how often each image is to be seen per epoch, on average.

    Args:
        dataset: Whose images; the classes that they show are read without decoding images where that is possible.
        balance: ``"repeat_factor"`` or ``"inverse_frequency"``; see ``repeat_factors`` and ``inverse_frequencies``.
        threshold: That of ``repeat_factors``.

    Raises:
        ValueError: If ``balance`` is unknown.
    """
    if balance not in ("repeat_factor", "inverse_frequency"):
        raise ValueError(f"balance takes repeat_factor, inverse_frequency or null, got {balance!r}")
    classes = [dataset.classes_in(index) for index in range(len(dataset))]
    by_factor = balance == "repeat_factor"
    weights = repeat_factors(classes, threshold) if by_factor else inverse_frequencies(classes)
    _log(dataset, classes, weights)
    return weights


def repeat_factors(classes: Sequence[AbstractSet[int]], threshold: float = 0.1) -> np.ndarray:
    """Repeat images of classes that fewer than a share ``threshold`` of the images show.

    "LVIS: A Dataset for Large Vocabulary Instance Segmentation" (Gupta et al., 2019,
    https://arxiv.org/abs/1908.03195): a class in a share f of the images has the factor
    ``max(1, sqrt(threshold / f))``, an image that of its rarest class. LVIS, with 1,203 classes, takes 0.001.

    Args:
        classes: Class indices that each image shows.
        threshold: Share of images below which a class is rare, above 0 and at most 1.

    Raises:
        ValueError: If ``threshold`` is out of range.

    Example:
        >>> repeat_factors([{0}, {0}, {0}, {1}], threshold=1.0).round(3).tolist()
        [1.155, 1.155, 1.155, 2.0]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie above 0 and at most be 1, got {threshold}")
    shares = _shares(classes)
    factors = {label: max(1.0, math.sqrt(threshold / share)) for label, share in shares.items()}
    return np.array([max((factors[label] for label in shown), default=1.0) for shown in classes])


def inverse_frequencies(classes: Sequence[AbstractSet[int]]) -> np.ndarray:
    """Weigh images by one over the share of their rarest class, at as many images per epoch as there are.

    Images without any class count as one class more.

    Args:
        classes: Class indices that each image shows.

    Example:
        >>> inverse_frequencies([{0}, {0}, {0}, {0, 1}]).round(3).tolist()
        [0.571, 0.571, 0.571, 2.286]
    """
    named = [shown or {-1} for shown in classes]
    shares = _shares(named)
    weights = np.array([max(1 / shares[label] for label in shown) for shown in named])
    return np.asarray(weights * (len(weights) / weights.sum()))


def balanced_order(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a shuffled order in which image i comes ``weights[i]`` times on average, rounded down or up.

    The length is the rounded sum of the weights in every epoch. Fractions are drawn evenly (systematic sampling),
    which varies less than independent draws.

    Args:
        weights: Mean number of times for each image, 0 or above.
        generator: Source of the draw.
    """
    shuffled = generator.permutation(len(weights))
    ends = np.cumsum(weights[shuffled])
    count = balanced_length(weights)
    places = (generator.random() + np.arange(count)) * (ends[-1] / count)
    chosen = np.searchsorted(ends, places, side="right").clip(max=len(weights) - 1)
    return generator.permutation(shuffled[chosen])


def balanced_length(weights: np.ndarray) -> int:
    """Return the number of images of an epoch."""
    return max(1, round(float(weights.sum())))


def number_repeats(order: np.ndarray, length: int) -> np.ndarray:
    """Add ``length`` to an index for each time that it came before, so that repeats can be told apart.

    Example:
        >>> number_repeats(np.array([2, 0, 2, 2]), length=3).tolist()
        [2, 0, 5, 8]
    """
    seen: Counter[int] = Counter()
    numbered = order.copy()
    for place, index in enumerate(order.tolist()):
        numbered[place] += seen[index] * length
        seen[index] += 1
    return numbered


def _shares(classes: Sequence[AbstractSet[int]]) -> dict[int, float]:
    counts = Counter(label for shown in classes for label in shown)
    return {label: count / len(classes) for label, count in counts.items()}


def _log(dataset: Dataset, classes: Sequence[AbstractSet[int]], weights: np.ndarray) -> None:
    names = dataset.metadata.class_names
    before: Counter[int] = Counter(label for shown in classes for label in shown)
    after = dict.fromkeys(before, 0.0)
    for shown, weight in zip(classes, weights, strict=True):
        for label in shown:
            after[label] += float(weight)
    rare = sorted(before, key=lambda label: before[label])[:5]
    logger.info(
        "balanced: %d images, %d per epoch; images with the rarest classes: %s",
        len(classes),
        balanced_length(weights),
        ", ".join(f"{names[label]} {before[label]} -> {after[label]:.0f}" for label in rare) or "none",
    )

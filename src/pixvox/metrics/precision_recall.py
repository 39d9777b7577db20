"""Average precision of ranked predictions, for any kind of overlap and any number of dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from pixvox.metrics.overlaps import Overlaps

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recall values at which COCO reads the precision."""


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision over recall at one IoU threshold.

    Args:
        iou_threshold: Overlap from which a prediction counts as found, in [0, 1].
        recall: Recall values, ascending.
        precision: Largest precision reached at each recall or above it; the mean over the classes.
        name: What the curve is of, such as ``"mask"``.
    """

    iou_threshold: float
    recall: Float[np.ndarray, " points"]
    precision: Float[np.ndarray, " points"]
    name: str = "mask"

    @property
    def average_precision(self) -> float:
        """Mean precision over the recall values."""
        return float(self.precision.mean())


class RankedMatches(NamedTuple):
    """Which predictions found a true object, at each IoU threshold."""

    matched: Bool[np.ndarray, "thresholds predictions"]
    ignored: Bool[np.ndarray, "thresholds predictions"]


def rank_and_match(
    overlaps: Overlaps,
    scores: Float[np.ndarray, " predictions"],
    same_class: Bool[np.ndarray, " pairs"],
    ignore: Bool[np.ndarray, " truths"],
    thresholds: Float[np.ndarray, " thresholds"],
) -> RankedMatches:
    """Give every prediction, best score first, the free true object that it overlaps most, as COCO does.

    A prediction that finds none, but has at least the threshold's share of itself in an ignored region, is
    neither right nor wrong.

    Args:
        overlaps: Table of common elements, with ignored regions among the truths.
        scores: Confidence of each prediction.
        same_class: Whether the two of each pair have one class.
        ignore: Whether each truth is a crowd or ignored region.
        thresholds: IoU thresholds in [0, 1].
    """
    predicted, true = overlaps.predicted[same_class], overlaps.true[same_class]
    counts = overlaps.counts[same_class]
    region = ignore[true]
    iou = overlaps.iou()[same_class]
    share = counts / np.maximum(overlaps.predicted_sizes[predicted], 1)
    shape = (len(thresholds), len(overlaps.predicted_sizes))
    largest_share = np.zeros(shape[1])
    np.maximum.at(largest_share, predicted[region], share[region])
    predicted, true, iou = predicted[~region], true[~region], iou[~region]

    rank = np.empty(shape[1], dtype=np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(shape[1])
    # Best score first; for one prediction the largest overlap first, and among equals the last truth.
    order = np.lexsort((-true, -iou, rank[predicted]))
    predicted, true, iou = predicted[order], true[order], iou[order]
    matched = np.zeros(shape, dtype=bool)
    for row, threshold in enumerate(thresholds):
        taken: set[int] = set()
        near = iou >= min(threshold, 1 - 1e-10)
        for candidate, target in zip(predicted[near].tolist(), true[near].tolist(), strict=True):
            if not matched[row, candidate] and target not in taken:
                matched[row, candidate] = True
                taken.add(target)
    ignored = ~matched & (largest_share[None] >= np.minimum(thresholds, 1 - 1e-10)[:, None])
    return RankedMatches(matched, ignored)


def interpolated_precision(
    matched: Bool[np.ndarray, " predictions"], num_truths: int
) -> Float[np.ndarray, " points"]:
    """Return the precision at COCO's 101 recall values.

    Args:
        matched: Whether each prediction, best score first, found a true object.
        num_truths: True objects that there were to find, above 0.

    Example:
        >>> precision = interpolated_precision(np.array([True, False, True]), num_truths=2)
        >>> precision[[0, 50, 51, 100]].round(3).tolist()
        [1.0, 1.0, 0.667, 0.667]
    """
    found = np.cumsum(matched)
    precision: npt.NDArray[np.float64] = found / (np.arange(len(matched)) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(found / num_truths, RECALLS, side="left")
    return np.append(precision, 0.0)[first]


def class_precisions(
    matches: list[RankedMatches],
    scores: list[npt.NDArray[np.float64]],
    labels: list[npt.NDArray[np.int64]],
    truths_per_class: Int[np.ndarray, " classes"],
    num_thresholds: int,
) -> Float[np.ndarray, "thresholds points classes"]:
    """Return precision by threshold, recall and class over all images; NaN for classes without truth."""
    result = np.full((num_thresholds, len(RECALLS), len(truths_per_class)), np.nan)
    empty = np.zeros((num_thresholds, 0), dtype=bool)
    matched = np.concatenate([empty, *[match.matched for match in matches]], axis=1)
    ignored = np.concatenate([empty, *[match.ignored for match in matches]], axis=1)
    all_scores = np.concatenate([np.zeros(0), *scores])
    all_labels = np.concatenate([np.zeros(0, dtype=np.int64), *labels])
    order = np.argsort(-all_scores, kind="stable")
    for label in np.flatnonzero(truths_per_class):
        picked = order[all_labels[order] == label]
        for row in range(num_thresholds):
            counted = picked[~ignored[row, picked]]
            result[row, :, label] = interpolated_precision(
                matched[row, counted], int(truths_per_class[label])
            )
    return result

"""The scores of microscopy and connectomics for label maps, in 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pixvox.errors import ConfigError
from pixvox.metrics.centroid_scores import match_centroids
from pixvox.metrics.contingency import ContingencyCounter, ContingencyTable, side_by_side
from pixvox.metrics.metric import Metric, defined_mean, gather, ratio
from pixvox.metrics.object_scores import (
    FIELD_THRESHOLDS,
    aggregated_jaccard,
    aggregated_jaccard_plus,
    matched_scores,
    panoptic_quality,
    recall_by_size,
    seg,
)
from pixvox.metrics.partition_scores import adapted_rand_error, variation_of_information
from pixvox.structures import Instances, Segmentation

_PER_VOLUME: tuple[Callable[[ContingencyTable], dict[str, float]], ...] = (
    lambda table: {"AJI": aggregated_jaccard(table), "AJI_plus": aggregated_jaccard_plus(table)},
    adapted_rand_error,
    variation_of_information,
)
"""Scores of a volume as a whole, whose mean is taken; all others count the objects of all volumes."""


def volume_scores(
    tables: Sequence[ContingencyTable],
    thresholds: Sequence[float] = FIELD_THRESHOLDS,
    distance: float | None = None,
    size_edges: Sequence[float] | None = None,
) -> dict[str, float]:
    """Return every score that is known of label maps; NaN where one is not defined.

    Scores of objects are over the objects of all volumes: those of ``matched_scores``, ``panoptic_quality``, ``seg``,
    ``recall_by_size`` and ``match_centroids``. ``AJI``, ``AJI_plus``, ``ARAND`` and ``VOI`` are means over volumes.

    Args:
        tables: One per image or volume.
        thresholds: IoU in (0, 1] over which the mean of the matched scores is taken.
        distance: Adds ``centroid_F1`` and the like: how far apart matched centroids may be, in the unit of the
            spacing, in voxels where it is unknown.
        size_edges: Sizes that part the bins of the recall by size (um^3 or voxels); None for thirds.
    """
    tables = tables or [ContingencyCounter().table()]
    table = side_by_side(tables)
    scores = {**matched_scores(table, thresholds), **panoptic_quality(table), "SEG": seg(table)}
    for of_volume in _PER_VOLUME:
        each = [of_volume(volume) for volume in tables]
        scores |= {name: defined_mean(np.array([one[name] for one in each])) for name in each[0]}
    scores |= recall_by_size(table, size_edges)
    if distance is not None:
        scores |= _centroid_scores(tables, distance)
    predicted, true = len(table.overlaps.predicted_ids), len(table.overlaps.true_ids)
    return {**scores, "predicted_objects": float(predicted), "true_objects": float(true)}


def _centroid_scores(tables: Sequence[ContingencyTable], distance: float) -> dict[str, float]:
    """Return precision, recall and F1 of centroids, and how far matched ones are apart."""
    matches = [match_centroids(table, distance) for table in tables]
    apart = np.concatenate([match.distances for match in matches])
    found, predicted = len(apart), sum(match.predicted for match in matches)
    true = sum(match.true for match in matches)
    return {
        "centroid_F1": float(ratio(2 * found, predicted + true)),
        "centroid_precision": float(ratio(found, predicted)),
        "centroid_recall": float(ratio(found, true)),
        "centroid_distance": float(ratio(apart.sum(), found)),
    }


class VolumeScores(Metric):
    """Score instances by matched AP from IoU .1 on, PQ, SEG, AJI, ARAND, VOI, recall by size and centroids.

    Predictions of at least ``score_threshold`` are painted, the best score on top, and compared with the truth voxel
    by voxel; classes are not looked at. Ignored true objects and regions count nowhere, and a prediction that matches
    nothing and has more than half of itself there is no error. ``compare_volumes`` gives the same scores of label maps
    that do not fit into memory.

    Args:
        score_threshold: Score from which a prediction is part of the label map, in [0, 1].
        thresholds: IoU in (0, 1] over which the mean of the matched scores is taken.
        distance: How far apart matched centroids may be, in the unit of the spacing; None leaves them out.
        size_edges: Sizes that part the bins of the recall by size (um^3 or voxels); None for thirds.
        prefix: Put before the name of each score, where another metric has scores of the same name.

    Example:
        >>> import torch
        >>> truth = Segmentation(Instances(masks=torch.tensor([[1, 1, 0, 2]])))
        >>> found = Segmentation(Instances(masks=torch.tensor([[1, 1, 0, 0]]), scores=torch.ones(1)))
        >>> metric = VolumeScores(distance=1.0)
        >>> metric.update([found], [truth])
        >>> scores = metric.compute()
        >>> [round(scores[name], 3) for name in ("matched_AP10", "SEG", "AJI", "VOI_merge", "centroid_recall")]
        [0.5, 0.5, 0.667, 0.5, 0.5]
    """

    def __init__(
        self,
        score_threshold: float = 0.5,
        thresholds: Sequence[float] = FIELD_THRESHOLDS,
        distance: float | None = None,
        size_edges: Sequence[float] | None = None,
        prefix: str = "",
    ) -> None:
        self.score_threshold = score_threshold
        self.thresholds = tuple(thresholds)
        self.distance = distance
        self.size_edges = size_edges
        self.prefix = prefix
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._tables: list[ContingencyTable] = []

    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""
        for each, what in ((prediction, "prediction"), (truth, "truth")):
            if each.instances is None or each.instances.masks is None:
                raise ConfigError(
                    f"the {what} of {truth.source or 'an image'} holds no instance masks, which this metric scores"
                )
        found, true = prediction.instances, truth.instances
        geometry = truth.geometry or prediction.geometry
        # What is ignored is painted last: an object within a crowd keeps its voxels.
        order = true.ignore.cpu().argsort(stable=True)  # type: ignore[union-attr]
        ignored = range(int((~true.ignore).sum()) + 1, len(order) + 1)  # type: ignore[union-attr]
        counter = ContingencyCounter(geometry.spacing if geometry is not None else None, ignored)
        true_labels = true.masks.label_map(order)  # type: ignore[union-attr]
        counter.add(_painted(found, self.score_threshold), true_labels.cpu().numpy())  # type: ignore[arg-type]
        self._tables.append(counter.table())

    def compute(self) -> dict[str, float]:
        """Return the scores of all images so far."""
        scores = volume_scores(gather(self._tables), self.thresholds, self.distance, self.size_edges)
        return {self.prefix + name: value for name, value in scores.items()}


def _painted(instances: Instances, score_threshold: float) -> np.ndarray:
    """Return the label map of what scores high enough, the best on top."""
    order = None
    if instances.scores is not None:
        ranked = instances.scores.argsort(descending=True, stable=True)
        order = ranked[instances.scores[ranked] >= score_threshold]
    return instances.masks.label_map(order).cpu().numpy()  # type: ignore[union-attr]

"""Scores of instances in 2-D and 3-D: matched AP, F1 and panoptic quality of label maps, and ranked AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from pixvox.errors import ConfigError
from pixvox.metrics.metric import Metric, defined_mean, finite_scores, gather, ratio
from pixvox.metrics.overlaps import Overlaps, covered, element_overlaps, elements, paint
from pixvox.metrics.precision_recall import (
    RECALLS,
    PrecisionRecallCurve,
    RankedMatches,
    class_precisions,
    rank_and_match,
)
from pixvox.structures import Instances, Segmentation

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
"""IoU thresholds .50, .55, ... .95."""


_DENSE_ELEMENTS = 1 << 20
"""Rows times columns of a connected group up to which its assignment is solved as a full matrix."""


def match_pairs(
    rows: Int[np.ndarray, " pairs"],
    columns: Int[np.ndarray, " pairs"],
    iou: Float[np.ndarray, " pairs"],
    most_pairs: bool = True,
) -> Int[np.ndarray, " matches"]:
    """Choose pairs, no row and no column twice: as many as possible, then of the largest total IoU.

    Without overlaps a pair of IoU above one half is alone in its row and column, so nearly all pairs are
    decided without an assignment; what remains is split into connected groups, each solved exactly.

    Args:
        rows: Row of each pair.
        columns: Column of each pair.
        iou: What each pair is worth, in [0, 1].
        most_pairs: False looks at the total IoU alone, which may leave out pairs of little worth.

    Returns:
        Indices of the chosen pairs, ascending.
    """
    alone = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1) if len(rows) else rows > 0
    chosen = [np.flatnonzero(alone)]
    rest = np.flatnonzero(~alone)
    if len(rest):
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        num_rows = int(rows.max()) + 1
        total = num_rows + int(columns.max()) + 1
        links = coo_matrix((np.ones(len(rest)), (rows[rest], columns[rest] + num_rows)), shape=(total, total))
        group_of_node = connected_components(links, directed=False)[1]
        group = group_of_node[rows[rest]]
        order = np.argsort(group, kind="stable")
        borders = np.flatnonzero(np.diff(group[order])) + 1
        chosen += [
            part[_assign(rows[part], columns[part], iou[part], most_pairs)]
            for part in np.split(rest[order], borders)
        ]  # fmt: skip
    return np.sort(np.concatenate(chosen))


def _assign(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    iou: npt.NDArray[np.float64],
    most_pairs: bool,
) -> npt.NDArray[np.bool_]:
    """Solve one connected group: each pair is worth 1, and its IoU decides between equal numbers of pairs.

    Returns:
        Which pairs are chosen.
    """
    unique_rows, row = np.unique(rows, return_inverse=True)
    unique_columns, column = np.unique(columns, return_inverse=True)
    shape = (len(unique_rows), len(unique_columns))
    value = 1 + iou / (2 * min(shape)) if most_pairs else iou
    if shape[0] * shape[1] > _DENSE_ELEMENTS:
        return _assign_sparse(row, column, value, shape)
    from scipy.optimize import linear_sum_assignment

    values = np.zeros(shape)
    values[row, column] = value
    picked = np.zeros(shape, dtype=bool)
    picked[linear_sum_assignment(values, maximize=True)] = True
    chosen: npt.NDArray[np.bool_] = picked[row, column]
    return chosen


def _assign_sparse(
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    value: npt.NDArray[np.float64],
    shape: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """Solve a group that is too large for a full matrix, in memory that grows with its pairs."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    # The solver wants a partner for every row: each may take a column of its own that is worth nothing.
    spare = np.arange(shape[0])
    best = 2.0  # above every value, for costs of 0 are no links
    cost = np.concatenate([best - value, np.full(shape[0], best)])
    ends = np.concatenate([row, spare]), np.concatenate([column, shape[1] + spare])
    links = coo_matrix((cost, ends), shape=(shape[0], shape[1] + shape[0])).tocsr()
    partner = np.empty(shape[0], dtype=np.int64)
    picked_rows, picked_columns = min_weight_full_bipartite_matching(links)
    partner[picked_rows] = picked_columns
    chosen: npt.NDArray[np.bool_] = partner[row] == column
    return chosen


@dataclass(frozen=True)
class _ImageScores:
    """What is kept of one image: counts per threshold and class, and the ranked matches."""

    found: Int[np.ndarray, "thresholds classes"]
    iou_sum: Float[np.ndarray, "thresholds classes"]
    predicted: Int[np.ndarray, "thresholds classes"]
    true: Int[np.ndarray, " classes"]
    ranked: RankedMatches | None
    scores: Float[np.ndarray, " predictions"]
    labels: Int[np.ndarray, " predictions"]

    def matched_ap(self, threshold: int) -> float:
        """Return TP / (TP + FP + FN) at a threshold; NaN when there is neither truth nor prediction."""
        found = self.found[threshold].sum()
        return float(ratio(found, self.predicted[threshold].sum() + self.true.sum() - found))


class LabelMapScores(Metric):
    """Score instances by IoU matching, in 2-D and 3-D, from one sparse contingency table per image.

    Two views of the same predictions:

    - *As a label map*: predictions of at least ``score_threshold`` are painted, the best score on top, and
      matched one to one with the truth. ``matched_AP`` is TP / (TP + FP + FN), the mean over the thresholds,
      counted over all images and classes; ``matched_AP50_per_image`` is the mean over images that show or
      should show an object ("Cell Detection with Star-convex Polygons", Schmidt et al., 2018,
      https://arxiv.org/abs/1806.03535). ``PQ = SQ * RQ`` is the panoptic quality at IoU > 0.5, the mean over
      classes ("Panoptic Segmentation", Kirillov et al., 2019, https://arxiv.org/abs/1801.00868).
    - *As ranked detections*: ``AP``, ``AP50``, ``AP75`` are COCO's, of all predictions whatever their score
      and number, with the overlaps they have, the mean over classes.

    Ignored true objects and regions: their pixels do not count in any IoU of the label map, and an unmatched
    prediction with more than half of itself there is no error; for the ranked view COCO's crowd rule holds.

    Args:
        thresholds: IoU thresholds of the mean scores, in (0, 1]; must hold 0.5 and 0.75.
        score_threshold: Score from which a prediction is part of the label map, in [0, 1].
        class_aware: Whether matched objects must have one class; False scores the shapes alone.
        num_classes: Number of classes; found from the labels when None.
        is_thing: For each class whether its objects are told apart: adds ``PQ_things`` and ``PQ_stuff``.

    Example:
        >>> import torch
        >>> truth = Segmentation(Instances(masks=torch.tensor([[1, 1, 0, 2]])))
        >>> found = Segmentation(Instances(masks=torch.tensor([[1, 1, 0, 0]]), scores=torch.ones(1)))
        >>> metric = LabelMapScores()
        >>> metric.update([found], [truth])
        >>> scores = metric.compute()
        >>> scores["matched_AP50"], scores["precision_50"], scores["recall_50"]
        (0.5, 1.0, 0.5)
    """

    def __init__(
        self,
        thresholds: Sequence[float] = COCO_THRESHOLDS,
        score_threshold: float = 0.5,
        class_aware: bool = True,
        num_classes: int | None = None,
        is_thing: Sequence[bool] | None = None,
    ) -> None:
        self.thresholds = np.array(sorted(thresholds), dtype=np.float64)
        in_range = bool(((self.thresholds > 0) & (self.thresholds <= 1)).all())
        if not in_range or not {0.5, 0.75} <= set(self.thresholds.tolist()):
            raise ConfigError(
                f"thresholds must lie in (0, 1] and hold 0.5 and 0.75, got {list(thresholds)}; "
                "the default is 0.5, 0.55, ... 0.95"
            )
        self.score_threshold = score_threshold
        self.class_aware = class_aware
        self.num_classes = num_classes
        self.is_thing = None if is_thing is None else np.array(is_thing, dtype=bool)
        self._images: list[_ImageScores] = []

    def reset(self) -> None:
        """Forget all images."""
        self._images = []

    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""
        predicted, true = _instances(prediction, "prediction"), _instances(truth, "truth")
        labels, true_labels = predicted.labels.numpy(), true.labels.numpy()
        if not self.class_aware:
            labels, true_labels = np.zeros_like(labels), np.zeros_like(true_labels)
        scores = finite_scores(predicted, f"prediction for {truth.source or 'an image'}")
        ignore = true.ignore.numpy()
        order = (
            None if scores is None else np.argsort(-scores, kind="stable")[::-1]
        )  # the best is painted last
        inside, true_inside = elements(predicted.masks, order), elements(true.masks)  # type: ignore[arg-type]
        size = truth.size
        ranked = None
        if scores is not None:
            table = element_overlaps(inside, true_inside, len(predicted), len(true), size)
            same_class = labels[table.predicted] == true_labels[table.true]
            ranked = rank_and_match(table, scores, same_class, ignore, self.thresholds)

        kept = np.ones(len(predicted), dtype=bool) if scores is None else scores >= self.score_threshold
        shown = paint(inside.pick(kept[inside.owners]), size)
        region = true_inside.pick(ignore[true_inside.owners])
        void = covered(shown, region, len(predicted), size)
        table = element_overlaps(shown, true_inside, len(predicted), len(true), size)
        found, iou_sum, counted = self._match(table, labels, true_labels, ignore, void)
        self._images.append(
            _ImageScores(
                found=found,
                iou_sum=iou_sum,
                predicted=counted,
                true=np.bincount(true_labels[~ignore], minlength=self._width(labels, true_labels)),
                ranked=ranked,
                scores=np.zeros(len(predicted)) if scores is None else scores,
                labels=labels,
            )
        )

    def _width(self, labels: npt.NDArray[np.int64], true_labels: npt.NDArray[np.int64]) -> int:
        seen = int(max(labels.max(initial=0), true_labels.max(initial=0))) + 1
        return max(seen, self.num_classes or 1 if self.class_aware else 1)

    def _match(
        self,
        table: Overlaps,
        labels: Int[np.ndarray, " predictions"],
        true_labels: Int[np.ndarray, " truths"],
        ignore: Bool[np.ndarray, " truths"],
        void: Int[np.ndarray, " predictions"],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Match at every threshold; the last row is panoptic quality's IoU > 0.5.

        Returns:
            True positives, their summed IoU, and counted predictions, by threshold and class.
        """
        width = self._width(labels, true_labels)
        usable = (labels[table.predicted] == true_labels[table.true]) & ~ignore[table.true]
        rows, columns, counts = table.predicted[usable], table.true[usable], table.counts[usable]
        sizes = table.predicted_sizes - void
        iou = counts / np.maximum(sizes[rows] + table.true_sizes[columns] - counts, 1)
        excused = 2 * void > table.predicted_sizes
        shape = (len(self.thresholds) + 1, width)
        found, counted = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        iou_sum = np.zeros(shape)
        for row in range(shape[0]):
            near = np.flatnonzero(iou >= self.thresholds[row] if row < len(self.thresholds) else iou > 0.5)
            chosen = near[match_pairs(rows[near], columns[near], iou[near])]
            label = labels[rows[chosen]]
            found[row] = np.bincount(label, minlength=width)
            iou_sum[row] = np.bincount(label, iou[chosen], minlength=width)
            real = (table.predicted_sizes > 0) & ~excused
            real[rows[chosen]] = True
            counted[row] = np.bincount(labels[real], minlength=width)
        return found, iou_sum, counted

    def compute(self) -> dict[str, float]:
        """Return the scores of all images so far."""
        images = self._gathered()
        at50, at75 = (int(np.flatnonzero(self.thresholds == value)[0]) for value in (0.5, 0.75))
        found, predicted = _total(images, "found"), _total(images, "predicted")
        iou_sum, true = _total(images, "iou_sum"), _total(images, "true")
        tp, p, t = found.sum(-1)[:-1], predicted.sum(-1)[:-1], true.sum()
        matched = ratio(tp, p + t - tp)
        per_image = np.array([image.matched_ap(at50) for image in images])
        recognition = ratio(2 * found[-1], predicted[-1] + true)
        segmentation = ratio(iou_sum[-1], found[-1])
        quality = ratio(2 * iou_sum[-1], predicted[-1] + true)
        results = {
            "matched_AP": matched.mean(),
            "matched_AP50": matched[at50],
            "matched_AP75": matched[at75],
            "matched_AP50_per_image": defined_mean(per_image),
            "precision_50": ratio(tp[at50], p[at50]),
            "recall_50": ratio(tp[at50], t),
            "F1_50": ratio(2 * tp[at50], p[at50] + t),
            "mean_matched_IoU": ratio(iou_sum[at50].sum(), tp[at50]),
            "PQ": defined_mean(quality),
            "SQ": defined_mean(segmentation),
            "RQ": defined_mean(recognition),
        }
        if self.is_thing is not None:
            things = self.is_thing[: len(quality)]
            results["PQ_things"] = defined_mean(quality[: len(things)][things])
            results["PQ_stuff"] = defined_mean(quality[: len(things)][~things])
        precision = self._precision(images)
        results["AP"], results["AP50"] = defined_mean(precision), defined_mean(precision[at50])
        results["AP75"] = defined_mean(precision[at75])
        return {name: float(value) for name, value in results.items()}

    def _gathered(self) -> list[_ImageScores]:
        """Return the images of all processes, or one without objects when there are none."""
        rows = len(self.thresholds)
        counts, none = np.zeros((rows + 1, 1), dtype=np.int64), np.zeros((rows, 0), dtype=bool)
        nothing = np.zeros(0, dtype=np.int64)
        blank = _ImageScores(
            counts, counts * 0.0, counts, counts[0], RankedMatches(none, none), nothing * 0.0, nothing
        )
        return gather(self._images) or [blank]

    def _precision(self, images: list[_ImageScores]) -> Float[np.ndarray, "thresholds points classes"]:
        true = _total(images, "true").astype(np.int64)
        ranked = [image.ranked for image in images if image.ranked is not None]
        if len(ranked) < len(images):  # without scores there is no ranking
            return np.full((len(self.thresholds), len(RECALLS), len(true)), np.nan)
        scores, labels = [image.scores for image in images], [image.labels for image in images]
        return class_precisions(ranked, scores, labels, true, len(self.thresholds))

    def curves(self) -> list[PrecisionRecallCurve]:
        """Return one ranked precision-recall curve per IoU threshold; none when no class has a truth."""
        precision = self._precision(self._gathered())
        precision = precision[:, :, ~np.isnan(precision[0, 0])]
        if precision.shape[2] == 0:
            return []
        return [
            PrecisionRecallCurve(float(threshold), RECALLS, precision[row].mean(axis=-1))
            for row, threshold in enumerate(self.thresholds)
        ]


def _instances(segmentation: Segmentation, what: str) -> Instances:
    """Return the instances on the CPU, or say that there are none to score."""
    instances = segmentation.instances
    if instances is None or instances.masks is None:
        raise ConfigError(
            f"the {what} of {segmentation.source or 'an image'} holds no instance masks, which this metric "
            "scores; class maps need SemanticScores, boxes alone CocoAveragePrecision(['bbox'])"
        )
    return instances.to("cpu")


def _total(images: Sequence[_ImageScores], name: str) -> npt.NDArray[np.float64]:
    """Add up one field over images whose numbers of classes may differ."""
    values = [getattr(image, name) for image in images]
    total = np.zeros((*values[0].shape[:-1], max(value.shape[-1] for value in values)))
    for value in values:
        total[..., : value.shape[-1]] += value
    return total

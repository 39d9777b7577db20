"""Scores of whole objects, from one table of which predicted and true objects meet: for any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from pixvox.errors import ConfigError
from pixvox.metrics.contingency import ContingencyTable
from pixvox.metrics.matching import match_pairs
from pixvox.metrics.metric import ratio

FIELD_THRESHOLDS = tuple(np.linspace(0.1, 0.9, 9).round(1).tolist())
"""IoU thresholds .1, .2, ... .9."""

_ALWAYS = (0.5, 0.75, 0.9)
"""IoU thresholds whose scores are told whatever others there are."""


def matched_scores(
    table: ContingencyTable, thresholds: Sequence[float] = FIELD_THRESHOLDS
) -> dict[str, float]:
    """Return scores of objects that are matched one to one by IoU.

    At each threshold as many predicted and true objects as possible are paired, and of equally many pairs those with
    the largest total IoU: the optimal assignment. With TP pairs, FP predictions and FN true objects left over:

    - ``matched_AP50`` is TP / (TP + FP + FN) at an IoU of at least 0.5, also called AP of label maps or critical
      success index ("Cell Detection with Star-convex Polygons", Schmidt et al., 2018,
      https://arxiv.org/abs/1806.03535). It knows no ranking, and is not COCO's AP. ``mean_matched_AP`` is the mean
      over the thresholds.
    - ``precision_50``, ``recall_50`` and ``F1_50`` are TP / (TP + FP), TP / (TP + FN) and 2 TP / (2 TP + FP + FN).

    Args:
        table: Objects and their common voxels.
        thresholds: IoU in (0, 1] over which the mean is taken; 0.5, 0.75 and 0.9 are scored in any case.

    Raises:
        ConfigError: If a threshold is out of range.
    """
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ConfigError(f"thresholds are IoU in (0, 1], such as 0.1, 0.2, ... 0.9; got {list(thresholds)}")
    iou = table.overlaps.iou()
    scores, matched = {}, {}
    for threshold in sorted({*thresholds, *_ALWAYS}):
        chosen = _match(table, iou, iou >= threshold)
        found, predicted, true = len(chosen), _counted(table, chosen), len(table.overlaps.true_ids)
        percent = f"{100 * threshold:g}"
        matched[threshold] = float(ratio(found, predicted + true - found))
        scores[f"matched_AP{percent}"] = matched[threshold]
        scores[f"precision_{percent}"] = float(ratio(found, predicted))
        scores[f"recall_{percent}"] = float(ratio(found, true))
        scores[f"F1_{percent}"] = float(ratio(2 * found, predicted + true))
    mean = float(np.mean([matched[threshold] for threshold in thresholds]))
    return {"mean_matched_AP": mean, **scores}


def panoptic_quality(table: ContingencyTable) -> dict[str, float]:
    """Return ``PQ = SQ * RQ`` of objects of one class, matched at IoU above 0.5.

    "Panoptic Segmentation" (Kirillov et al., 2019, https://arxiv.org/abs/1801.00868): SQ is the mean IoU of the
    matched pairs, RQ their F1.
    """
    iou = table.overlaps.iou()
    chosen = _match(table, iou, iou > 0.5)
    objects = _counted(table, chosen) + len(table.overlaps.true_ids)
    total = iou[chosen].sum()
    return {
        "PQ": float(ratio(2 * total, objects)),
        "SQ": float(ratio(total, len(chosen))),
        "RQ": float(ratio(2 * len(chosen), objects)),
    }


def seg(table: ContingencyTable) -> float:
    """Return SEG of the Cell Tracking Challenge: the mean IoU of each true object with what covers most of it.

    A prediction belongs to a true object when it covers more than half of it; a true object without one counts 0.
    Predictions too many cost nothing. "A benchmark for comparison of cell tracking algorithms" (Maška et al., 2014,
    https://doi.org/10.1093/bioinformatics/btu080).
    """
    overlaps = table.overlaps
    covers = 2 * overlaps.counts > overlaps.true_sizes[overlaps.true]
    return float(ratio(overlaps.iou()[covers].sum(), len(overlaps.true_ids)))


def aggregated_jaccard(table: ContingencyTable) -> float:
    """Return AJI: common voxels of true objects and their best predictions, by the voxels of either.

    Each true object takes the prediction of the largest IoU, which may be that of another, too; predictions that none
    took add their voxels below the line. "A Dataset and a Technique for Generalized Nuclear Segmentation for
    Computational Pathology" (Kumar et al., 2017, https://doi.org/10.1109/TMI.2017.2677499).
    """
    overlaps = table.overlaps
    # By true object, the largest IoU first; of equal ones the prediction that stands first.
    order = np.lexsort((overlaps.predicted, -overlaps.iou(), overlaps.true))
    chosen = order[np.unique(overlaps.true[order], return_index=True)[1]]
    return _jaccard(table, chosen)


def aggregated_jaccard_plus(table: ContingencyTable) -> float:
    """Return AJI+: as AJI, but objects are paired one to one, with the largest total IoU.

    "HoVer-Net: Simultaneous Segmentation and Classification of Nuclei in Multi-Tissue Histology Images" (Graham et
    al., 2019, https://arxiv.org/abs/1812.06499, code), against AJI's double punishment.
    """
    overlaps = table.overlaps
    chosen = match_pairs(overlaps.predicted, overlaps.true, overlaps.iou(), most_pairs=False)
    return _jaccard(table, chosen)


def recall_by_size(table: ContingencyTable, edges: Sequence[float] | None = None) -> dict[str, float]:
    """Return the share of true objects that are found at an IoU of at least 0.5, by their size.

    Args:
        table: Objects and their common voxels.
        edges: Sizes that part the bins, ascending, in the unit of the spacing to the power of the axes (um^3), or in
            voxels where it is unknown; None parts the true objects into thirds.

    Returns:
        ``recall_small``, ``recall_medium`` and ``recall_large``, and where the thirds meet as ``size_small_to`` and
        ``size_medium_to`` (the largest object of each); with edges ``recall_size_0_to_50`` and so on.

    Raises:
        ConfigError: If the edges do not ascend from above 0.
    """
    overlaps = table.overlaps
    iou = overlaps.iou()
    found = np.zeros(len(overlaps.true_ids), dtype=bool)
    found[overlaps.true[_match(table, iou, iou >= 0.5)]] = True
    sizes = table.true_extents
    if edges is None:
        return _recall_of_thirds(sizes, found)
    edges = [float(edge) for edge in edges]
    if not edges or any(low >= high for low, high in zip([0.0, *edges], edges, strict=False)):
        raise ConfigError(f"sizes that part bins ascend from above 0, such as 50,200; got {edges}")
    bins = np.searchsorted(edges, sizes, side="right")
    shares = ratio(np.bincount(bins, found, len(edges) + 1), np.bincount(bins, minlength=len(edges) + 1))
    names = [f"{low:g}_to_{high:g}" for low, high in zip([0.0, *edges], edges, strict=False)]
    names.append(f"from_{edges[-1]:g}")
    return {f"recall_size_{name}": float(share) for name, share in zip(names, shares, strict=True)}


def _recall_of_thirds(
    sizes: Float[np.ndarray, " truths"], found: Bool[np.ndarray, " truths"]
) -> dict[str, float]:
    """Return the recall of the smallest third of the true objects, of the middle one and of the largest."""
    order = np.argsort(sizes, kind="stable")
    names = ("small", "medium", "large")
    thirds = np.array_split(order, 3)
    scores = {
        f"recall_{name}": float(ratio(found[third].sum(), len(third)))
        for name, third in zip(names, thirds, strict=True)
    }
    for name, third in zip(names[:2], thirds, strict=False):
        scores[f"size_{name}_to"] = float(sizes[third].max(initial=0)) if len(third) else float("nan")
    return scores


def _match(
    table: ContingencyTable, iou: Float[np.ndarray, " pairs"], near: Bool[np.ndarray, " pairs"]
) -> Int[np.ndarray, " matches"]:
    """Return the pairs that are matched of those that are near enough."""
    pairs = np.flatnonzero(near)
    rows, columns = table.overlaps.predicted[pairs], table.overlaps.true[pairs]
    matched: npt.NDArray[np.int64] = pairs[match_pairs(rows, columns, iou[pairs])]
    return matched


def _counted(table: ContingencyTable, chosen: npt.NDArray[np.int64]) -> int:
    """Return the number of predictions that count: all but those that are excused and match nothing."""
    counted = ~table.excused
    counted[table.overlaps.predicted[chosen]] = True
    return int(counted.sum())


def _jaccard(table: ContingencyTable, chosen: npt.NDArray[np.int64]) -> float:
    """Return common voxels of the chosen pairs by the voxels of either, and of all objects in no pair."""
    overlaps = table.overlaps
    rows, columns, common = overlaps.predicted[chosen], overlaps.true[chosen], overlaps.counts[chosen]
    left = ~table.excused
    left[rows] = False
    missed = np.ones(len(overlaps.true_ids), dtype=bool)
    missed[columns] = False
    either = (overlaps.predicted_sizes[rows] + overlaps.true_sizes[columns] - common).sum()
    rest = overlaps.predicted_sizes[left].sum() + overlaps.true_sizes[missed].sum()
    return float(ratio(common.sum(), either + rest))

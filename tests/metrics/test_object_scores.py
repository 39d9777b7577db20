import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from noisy_objects import noisy_label_maps
from pixvox.errors import ConfigError
from pixvox.metrics.contingency import ContingencyCounter
from pixvox.metrics.matching import LabelMapScores
from pixvox.metrics.object_scores import (
    aggregated_jaccard,
    aggregated_jaccard_plus,
    matched_scores,
    panoptic_quality,
    recall_by_size,
    seg,
)
from pixvox.structures import Instances, Segmentation

SIZES = [(15, 22), (7, 9, 11)]


def table_of(predicted, true, ignore=None, **options):
    counter = ContingencyCounter(**options)
    counter.add(np.asarray(predicted), np.asarray(true), None if ignore is None else np.asarray(ignore))
    return counter.table()


def masks(labels):
    return [labels == i for i in np.unique(labels) if i]


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def slow_seg(predicted, true):
    """From the definition: the Jaccard index with the object that covers more than half, else 0."""
    scores = []
    for truth in masks(true):
        covering = [found for found in masks(predicted) if (found & truth).sum() > truth.sum() / 2]
        scores.append(iou(truth, covering[0]) if covering else 0.0)
    return np.mean(scores)


def slow_aji(predicted, true):
    """Algorithm 1 of Kumar et al."""
    found, used = masks(predicted), set()
    common = union = 0
    for truth in masks(true):
        best = int(np.argmax([iou(truth, each) for each in found]))
        if not (truth & found[best]).any():
            union += truth.sum()
            continue
        common += (truth & found[best]).sum()
        union += (truth | found[best]).sum()
        used.add(best)
    return common / (union + sum(each.sum() for i, each in enumerate(found) if i not in used))


def slow_aji_plus(predicted, true):
    """One to one, with the largest sum of IoU; what is left over counts below the line."""
    found, truths = masks(predicted), masks(true)
    values = np.array([[iou(truth, each) for each in found] for truth in truths])
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(-values), strict=True) if values[i, j] > 0]
    common = sum((truths[i] & found[j]).sum() for i, j in pairs)
    union = sum((truths[i] | found[j]).sum() for i, j in pairs)
    rest = [t for i, t in enumerate(truths) if i not in {i for i, _ in pairs}]
    rest += [f for j, f in enumerate(found) if j not in {j for _, j in pairs}]
    return common / (union + sum(each.sum() for each in rest))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_seg_and_aji_equal_their_definitions(size, seed):
    predicted, true = noisy_label_maps(seed, size, 12)
    table = table_of(predicted, true)
    assert seg(table) == pytest.approx(slow_seg(predicted, true))
    assert aggregated_jaccard(table) == pytest.approx(slow_aji(predicted, true))
    assert aggregated_jaccard_plus(table) == pytest.approx(slow_aji_plus(predicted, true))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ignored", [(), (2, 5)])
def test_matched_scores_equal_those_of_segmentations(size, ignored):
    """Also with ignored objects, whose voxels count nowhere, and which excuse what lies in them."""
    thresholds = (0.1, 0.3, 0.5, 0.75, 0.9)
    for seed in range(3):
        predicted, true = noisy_label_maps(seed, size, 12)
        ids = np.unique(true)[1:]
        metric = LabelMapScores(thresholds)
        truth = Instances(masks=torch.from_numpy(true), ignore=torch.from_numpy(np.isin(ids, ignored)))
        metric.update([Segmentation(Instances(masks=torch.from_numpy(predicted)))], [Segmentation(truth)])
        expected = metric.compute()
        table = table_of(predicted, true, ignore_ids=ignored)
        found = {**matched_scores(table, thresholds), **panoptic_quality(table)}
        names = ("matched_AP50", "matched_AP75", "precision_50", "recall_50", "F1_50", "PQ", "SQ", "RQ")
        assert [found[name] for name in names] == pytest.approx([expected[name] for name in names])
        assert found["mean_matched_AP"] == pytest.approx(expected["matched_AP"])


def test_scores_worked_by_hand():
    """Three true cells, three found: one exact, one of IoU 3/5, one spurious."""
    table = table_of([[1, 1, 1, 3, 0, 2, 2, 2, 2, 0]], [[1, 1, 1, 0, 2, 2, 2, 2, 0, 3]])
    scores = matched_scores(table)
    assert [scores[f"matched_AP{percent}"] for percent in (10, 60, 70, 75, 90)] == [0.5, 0.5, 0.2, 0.2, 0.2]
    assert scores["mean_matched_AP"] == pytest.approx((6 * 0.5 + 3 * 0.2) / 9)
    assert (scores["precision_50"], scores["recall_90"], scores["F1_60"]) == pytest.approx(
        (2 / 3, 1 / 3, 2 / 3)
    )
    assert seg(table) == pytest.approx((1 + 3 / 5 + 0) / 3)
    assert aggregated_jaccard(table) == pytest.approx((3 + 3) / (3 + 5 + 1 + 1))


def test_aji_shares_a_prediction_and_aji_plus_does_not():
    table = table_of([[7, 7, 7, 7]], [[1, 1, 2, 2]])
    assert aggregated_jaccard(table) == (2 + 2) / (4 + 4)
    assert aggregated_jaccard_plus(table) == 2 / (4 + 2)
    assert seg(table) == 0.5


def test_aji_plus_leaves_out_a_pair_that_costs_a_better_one():
    predicted = [[1, 1, 1, 1, 1, 1, 1, 1, 2, 2]]
    true = [[3, 4, 4, 4, 4, 4, 4, 4, 4, 0]]
    scores = matched_scores(table_of(predicted, true))
    assert scores["recall_10"] == 1.0  # as many pairs as possible: 1 with 3, 2 with 4
    assert aggregated_jaccard_plus(table_of(predicted, true)) == 7 / (9 + 2 + 1)


def test_an_ignored_region_takes_its_voxels_out_of_every_score():
    predicted, true = noisy_label_maps(1, (15, 22), 12)
    ignore = np.zeros(true.shape, dtype=bool)
    ignore[:, 15:] = True
    table = table_of(predicted, true, ignore)
    cut = table_of(predicted[:, :15], true[:, :15])
    assert not table.excused[np.isin(table.overlaps.predicted_ids, cut.overlaps.predicted_ids)].any()
    for of_table in (seg, aggregated_jaccard, aggregated_jaccard_plus):
        assert of_table(table) == of_table(cut) > 0
    assert matched_scores(table) == matched_scores(cut)


def test_a_prediction_that_is_mostly_ignored_is_no_error():
    ignore = [[False, False, False, True, True, False]]
    table = table_of([[1, 1, 2, 2, 2, 0]], [[1, 1, 0, 0, 0, 0]], ignore)
    assert panoptic_quality(table)["PQ"] == matched_scores(table)["precision_50"] == 1.0
    assert aggregated_jaccard(table) == aggregated_jaccard_plus(table) == 1.0
    table = table_of([[1, 1, 2, 2, 0, 0]], [[1, 1, 0, 0, 0, 0]], ignore)
    assert matched_scores(table)["precision_50"] == 0.5
    assert aggregated_jaccard(table) == aggregated_jaccard_plus(table) == 2 / 3


def test_recall_by_size_in_thirds_and_in_bins():
    true = np.repeat([0, 1, 2, 3, 4, 5, 6], [5, 1, 2, 3, 4, 5, 6])[None]
    predicted = np.where(np.isin(true, (2, 5, 6)), true, 0)
    table = table_of(predicted, true, spacing=(2.0, 0.5))
    scores = recall_by_size(table)
    assert scores == {
        "recall_small": 0.5, "recall_medium": 0.0, "recall_large": 1.0, "size_small_to": 2.0, "size_medium_to": 4.0
    }  # fmt: skip
    binned = recall_by_size(table_of(predicted, true, spacing=(4.0, 0.5)), edges=(6.0, 11.0))
    assert binned == {
        "recall_size_0_to_6": 0.5, "recall_size_6_to_11": pytest.approx(1 / 3), "recall_size_from_11": 1.0
    }  # fmt: skip
    assert math.isnan(recall_by_size(table, edges=(0.5,))["recall_size_0_to_0.5"])


def test_nothing_to_find_and_nothing_found():
    nothing, one = np.zeros((3, 4), dtype=int), np.eye(3, 4, dtype=int)
    scores = (seg, aggregated_jaccard, aggregated_jaccard_plus)
    empty, missed, spurious = table_of(nothing, nothing), table_of(nothing, one), table_of(one, nothing)
    assert all(math.isnan(value) for value in matched_scores(empty).values())
    assert all(math.isnan(value) for value in panoptic_quality(empty).values())
    assert all(math.isnan(value) for value in recall_by_size(empty).values())
    assert all(math.isnan(score(empty)) for score in scores)
    assert [score(missed) for score in scores] == [0, 0, 0]
    assert [score(spurious) for score in scores[1:]] == [0, 0]
    assert math.isnan(seg(spurious))
    assert matched_scores(missed)["matched_AP10"] == matched_scores(spurious)["matched_AP10"] == 0
    assert recall_by_size(missed)["recall_small"] == 0


def test_wrong_options_are_named():
    table = table_of([[1]], [[1]])
    with pytest.raises(ConfigError, match=r"IoU in \(0, 1\].*got \[0\.5, 1\.5\]"):
        matched_scores(table, (0.5, 1.5))
    with pytest.raises(ConfigError, match=r"ascend from above 0.*got \[3\.0, 2\.0\]"):
        recall_by_size(table, (3, 2))

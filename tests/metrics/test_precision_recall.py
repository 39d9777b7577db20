import numpy as np
import pytest
import torch

from pixvox.metrics.overlaps import element_overlaps, elements
from pixvox.metrics.precision_recall import PrecisionRecallCurve, interpolated_precision, rank_and_match
from pixvox.structures import Masks


def matches(predicted, true, scores, ignore=None, threshold=0.5):
    """Rank and match masks that are given as rows of a 1-pixel-high image."""
    first, second = (torch.tensor(masks, dtype=torch.bool)[:, None] for masks in (predicted, true))
    table = element_overlaps(
        elements(Masks.from_dense(first)),
        elements(Masks.from_dense(second)),
        len(first),
        len(second),
        tuple(first.shape[1:]),
    )
    ignore = np.zeros(len(second), dtype=bool) if ignore is None else np.array(ignore)
    same_class = np.ones(len(table.counts), dtype=bool)
    result = rank_and_match(table, np.array(scores), same_class, ignore, np.array([threshold]))
    return result.matched[0].tolist(), result.ignored[0].tolist()


def test_each_prediction_takes_the_truth_it_overlaps_most():
    """The truths overlap each other; the better prediction leaves the second truth to the other one."""
    true = [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    predicted = [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert matches(predicted, true, [0.9, 0.8])[0] == [True, True]
    predicted = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert matches(predicted, true, [0.9, 0.8])[0] == [True, True]
    assert matches(predicted, true, [0.9, 0.8], threshold=0.75)[0] == [True, False]
    assert matches(predicted, true, [0.8, 0.9], threshold=0.75)[0] == [False, True]


def test_best_score_is_served_first():
    true = [[1, 1, 1, 1, 0]]
    predicted = [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert matches(predicted, true, [0.3, 0.7])[0] == [False, True]
    assert matches(predicted, true, [0.7, 0.7])[0] == [True, False]  # among equals the first


def test_a_real_truth_comes_before_an_ignored_region():
    true = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    predicted = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    found, ignored = matches(predicted, true, [0.9, 0.8, 0.7], ignore=[True, False])
    assert found == [True, False, False]
    assert ignored == [False, True, True]


def test_precision_worked_by_hand():
    """Found, missed, found of four truths: precision 1 up to recall 1/4, 2/3 up to 1/2, then nothing."""
    precision = interpolated_precision(np.array([True, False, True]), num_truths=4)
    assert precision[[0, 25]].tolist() == [1, 1]
    assert precision[[26, 50]] == pytest.approx(2 / 3)
    assert precision[[51, 100]].tolist() == [0, 0]
    curve = PrecisionRecallCurve(0.5, np.linspace(0, 1, 101), precision)
    assert curve.average_precision == pytest.approx((26 + 25 * 2 / 3) / 101)


def test_nothing_predicted_has_no_precision():
    assert not interpolated_precision(np.zeros(0, dtype=bool), num_truths=3).any()

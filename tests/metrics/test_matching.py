import itertools
import math

import numpy as np
import pytest
import torch

from noisy_objects import noisy_label_maps
from pixvox.errors import ConfigError
from pixvox.metrics import matching
from pixvox.metrics.matching import LabelMapScores, match_pairs
from pixvox.structures import Instances, Segmentation


def as_result(label_map, scores=None, labels=None, ignore=None):
    instances = Instances(
        masks=torch.as_tensor(label_map),
        scores=None if scores is None else torch.tensor(scores, dtype=torch.float32),
        labels=None if labels is None else torch.tensor(labels),
        ignore=None if ignore is None else torch.tensor(ignore),
    )
    return Segmentation(instances)


def score(predictions, truths, **options):
    metric = LabelMapScores(**options)
    metric.update(predictions, truths)
    return metric.compute()


def brute_counts(predicted, true, threshold):
    """TP by trying the optimal assignment on the dense IoU matrix, as cost -(iou >= t) - iou / (2 n)."""
    from scipy.optimize import linear_sum_assignment

    first = [predicted == i for i in np.unique(predicted[predicted > 0])]
    second = [true == i for i in np.unique(true[true > 0])]
    if not first or not second:
        return 0, 0.0, len(first), len(second)
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in second] for a in first])
    hit = iou >= threshold
    rows, columns = linear_sum_assignment(-hit.astype(float) - iou / (2 * min(iou.shape)))
    good = hit[rows, columns]
    return int(good.sum()), float(iou[rows, columns][good].sum()), len(first), len(second)


@pytest.mark.parametrize("size", [(15, 22), (7, 9, 11)])
def test_matched_scores_equal_brute_force(size):
    pairs = [noisy_label_maps(seed, size, 9) for seed in range(4)]
    results = score([as_result(p) for p, _ in pairs], [as_result(t) for _, t in pairs])
    aps = []
    for threshold in np.linspace(0.5, 0.95, 10).round(2):
        tp, total, p, t = np.array([brute_counts(*pair, threshold) for pair in pairs]).T
        aps.append(tp.sum() / (p.sum() + t.sum() - tp.sum()))
        if threshold == 0.5:
            assert results["matched_AP50"] == pytest.approx(aps[0])
            assert results["matched_AP50_per_image"] == pytest.approx(np.mean(tp / (p + t - tp)))
            assert results["precision_50"] == pytest.approx(tp.sum() / p.sum())
            assert results["recall_50"] == pytest.approx(tp.sum() / t.sum())
            assert results["F1_50"] == pytest.approx(2 * tp.sum() / (p.sum() + t.sum()))
            assert results["mean_matched_IoU"] == pytest.approx(total.sum() / tp.sum())
    assert results["matched_AP"] == pytest.approx(np.mean(aps))
    assert 0.1 < aps[0] < 0.9
    assert results["PQ"] == pytest.approx(results["SQ"] * results["RQ"])


def test_matched_ap_worked_by_hand():
    """Three true cells, three found: one exact, one of IoU 3/5, one spurious: TP 2, FP 1, FN 1 at 0.5."""
    true = [[1, 1, 1, 0, 2, 2, 2, 2, 0, 3]]
    found = [[1, 1, 1, 0, 0, 2, 2, 2, 2, 0]]
    found[0][3] = 3
    results = score([as_result(found)], [as_result(true)])
    assert results["matched_AP50"] == 2 / 4
    assert results["matched_AP75"] == 1 / 5
    assert results["matched_AP"] == pytest.approx((3 * 2 / 4 + 7 * 1 / 5) / 10)  # 3/5 holds at .5, .55, .6
    assert results["F1_50"] == pytest.approx(2 / 3)
    assert results["SQ"] == pytest.approx((1 + 3 / 5) / 2)
    assert results["PQ"] == pytest.approx((1 + 3 / 5) / 3)


@pytest.mark.parametrize("size", [(15, 22), (7, 9, 11)])
def test_panoptic_quality_equals_torchmetrics(size):
    from torchmetrics.detection import PanopticQuality

    pairs = [noisy_label_maps(seed + 20, size, 8) for seed in range(3)]
    reference = PanopticQuality(things={1}, stuffs={0}, return_per_class=True, return_sq_and_rq=True)
    for predicted, true in pairs:
        reference.update(
            *(
                torch.from_numpy(np.stack([x > 0, x], axis=-1).astype(np.int64)).flatten(0, -2)[None]
                for x in (predicted, true)
            )
        )
    expected = reference.compute()[0]
    results = score([as_result(p) for p, _ in pairs], [as_result(t) for _, t in pairs])
    assert [results[name] for name in ("PQ", "SQ", "RQ")] == pytest.approx(expected.tolist(), abs=1e-6)


def test_panoptic_quality_excludes_iou_of_one_half():
    results = score([as_result([[1, 1, 0, 0]])], [as_result([[1, 0, 0, 0]])])
    assert results["matched_AP50"] == 1.0
    assert results["PQ"] == 0.0


@pytest.mark.parametrize("most_pairs", [True, False])
@pytest.mark.parametrize("dense_elements", [1 << 20, 0])
def test_match_pairs_equals_exhaustive_search(most_pairs, dense_elements, monkeypatch):
    """The full matrix of small groups and the sparse solver of large ones alike."""
    monkeypatch.setattr(matching, "_DENSE_ELEMENTS", dense_elements)
    generator = np.random.default_rng(3)
    for _ in range(40):
        rows, columns = np.nonzero(generator.random((4, 5)) < 0.45)
        iou = generator.random(len(rows)).round(2)
        chosen = match_pairs(rows, columns, iou, most_pairs)
        best = (0, 0.0)
        for size in range(5):
            for subset in itertools.combinations(range(len(rows)), size):
                picked = list(subset)
                if len(set(rows[picked])) == len(set(columns[picked])) == size:
                    best = max(best, (size if most_pairs else 0, float(iou[picked].sum())))
        assert len(set(rows[chosen])) == len(set(columns[chosen])) == len(chosen)
        assert (len(chosen) if most_pairs else 0, iou[chosen].sum()) == pytest.approx(best)


def test_classes_must_agree_unless_class_agnostic():
    found = as_result([[1, 1, 0, 2]], labels=[0, 0], scores=[0.9, 0.8])
    true = as_result([[1, 1, 0, 2]], labels=[0, 1])
    aware, agnostic = score([found], [true]), score([found], [true], class_aware=False)
    assert aware["matched_AP50"] == pytest.approx(1 / 3)
    assert agnostic["matched_AP50"] == agnostic["AP50"] == 1.0
    assert aware["AP50"] == pytest.approx(0.5)  # the mean of class 0 (found first) and class 1 (missed)
    assert aware["PQ"] == pytest.approx((1 / 1.5 + 0) / 2)


def test_low_scores_are_ranked_but_not_painted():
    found = as_result([[1, 1, 0, 2]], scores=[0.9, 0.3])
    true = as_result([[1, 1, 0, 2]])
    results = score([found], [true])
    assert (results["matched_AP50"], results["AP50"]) == (0.5, 1.0)
    assert score([found], [true], score_threshold=0.2)["matched_AP50"] == 1.0


def test_best_score_is_painted_on_top():
    masks = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)[:, None]
    true = as_result([[1, 1, 2, 2, 2, 2]])
    for scores, expected in (([0.6, 0.9], 1.0), ([0.9, 0.6], 1.0)):
        found = Segmentation(Instances(masks=masks, scores=torch.tensor(scores)))
        results = score([found], [true])
        assert results["matched_AP50"] == expected
        assert results["mean_matched_IoU"] == (1.0 if scores[1] > scores[0] else 0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_do_not_matter(axis):
    predicted, true = noisy_label_maps(2, (7, 9, 11), 9)
    order = [(0, 1, 2), (2, 0, 1), (1, 2, 0)][axis]
    plain = score([as_result(predicted)], [as_result(true)])
    turned = score(*([as_result(x.transpose(order).copy())] for x in (predicted, true)))
    assert turned == pytest.approx(plain, nan_ok=True)


def test_one_slice_equals_2d():
    predicted, true = noisy_label_maps(5, (15, 22), 9)
    scores = np.linspace(0.9, 0.55, len(np.unique(predicted)) - 1).tolist()
    flat = score([as_result(predicted, scores)], [as_result(true)])
    assert flat == score([as_result(predicted[None], scores)], [as_result(true[None])])


def test_ignored_regions_are_left_out():
    true = as_result([[1, 1, 0, 2, 2, 2, 2]], ignore=[False, True])
    inside = score([as_result([[1, 1, 0, 2, 2, 0, 0]])], [true])
    assert inside["matched_AP50"] == inside["PQ"] == 1.0  # more than half in the region: no error
    touching = score([as_result([[1, 1, 1, 1, 0, 0, 0]])], [true])
    assert touching["mean_matched_IoU"] == pytest.approx(2 / 3)  # its pixel in the region does not count
    outside = score([as_result([[1, 1, 2, 2, 0, 0, 0]])], [true])
    assert outside["matched_AP50"] == 0.5  # half in the region is not more than half


def test_nothing_to_find_and_nothing_found():
    size = (3, 5)
    nothing, one = Segmentation(Instances.empty(size, scores=True)), torch.zeros(size, dtype=torch.int64)
    one[0, 0] = 1
    results = score([nothing], [nothing])
    assert all(math.isnan(value) for value in results.values())
    results = score([nothing, nothing], [nothing, as_result(one)])
    assert (
        results["matched_AP50"] == results["matched_AP50_per_image"] == results["AP50"] == results["PQ"] == 0
    )
    results = score([as_result(one, [0.9])], [nothing])
    assert results["matched_AP50"] == results["precision_50"] == 0
    assert math.isnan(results["recall_50"])
    assert math.isnan(LabelMapScores().compute()["AP"])
    assert LabelMapScores().curves() == []


def test_predictions_without_scores_have_no_ranked_ap():
    result = as_result([[1, 0, 2]])
    results = score([result], [result])
    assert results["matched_AP"] == 1.0
    assert math.isnan(results["AP"])


def test_images_add_up_whatever_their_classes():
    first, second = as_result([[1, 0]], [0.9], [0]), as_result([[0, 1]], [0.8], [3])
    assert score([first, second], [first, second], num_classes=2)["AP"] == 1.0


def test_wrong_inputs_are_named():
    with pytest.raises(ConfigError, match=r"0\.5 and 0\.75"):
        LabelMapScores(thresholds=(0.5, 0.6))
    class_map = Segmentation(class_map=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="SemanticScores"):
        LabelMapScores().update([class_map], [class_map])


def test_panoptic_quality_of_things_and_of_stuff_worked_by_hand():
    label_map, labels = torch.tensor([[1, 1, 2, 3, 3, 3]]), torch.tensor([0, 0, 1])
    found_map = torch.tensor([[1, 1, 0, 2, 2, 0]])
    truth = Segmentation(Instances(masks=label_map, labels=labels))
    found = Segmentation(
        Instances(masks=found_map, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.2]))
    )
    metric = LabelMapScores(score_threshold=0.0, num_classes=2, is_thing=(True, False))
    metric.update([found], [truth])
    scores = metric.compute()
    assert scores["PQ_things"] == pytest.approx(2 * 1.0 / (1 + 2))  # one of two found, exactly
    assert scores["PQ_stuff"] == pytest.approx(2 / 3)  # found, with two thirds of it
    assert scores["PQ"] == pytest.approx((scores["PQ_things"] + scores["PQ_stuff"]) / 2)
    assert "PQ_things" not in LabelMapScores().compute()

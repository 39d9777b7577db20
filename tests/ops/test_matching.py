import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import sigmoid_focal_loss

from pixvox.errors import TrainingError
from pixvox.ops import hungarian, matching
from pixvox.ops.matching import Candidates, HungarianMatcher, pairwise_mask_costs


def test_assignment_equals_scipy_and_forbids_infinite_pairs():
    cost = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    expected = linear_sum_assignment(cost.numpy())
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(hungarian(cost), expected, strict=True))
    assert hungarian(torch.tensor([[float("inf"), 3.0], [1.0, 0.0]]))[1].tolist() == [1, 0]


def test_assignment_of_nothing_is_empty_and_of_nan_refused():
    for shape in ((0, 3), (3, 0), (0, 0)):
        assert [part.tolist() for part in hungarian(torch.zeros(shape))] == [[], []]
    with pytest.raises(ValueError, match="1 of 4 matching costs are NaN"):
        hungarian(torch.tensor([[float("nan"), 1.0], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="no assignment"):
        hungarian(torch.full((2, 2), float("inf")))


def _given(logits, labels):
    """A class cost that is written down, not computed."""
    return logits[:, : len(labels)]


def _match(cost, groups=1, **options):
    cost = torch.as_tensor(cost, dtype=torch.float32)
    objects = Candidates(torch.zeros(cost.shape[1], dtype=torch.int64))
    rows, columns = HungarianMatcher(_given, {"class": 1.0})(
        Candidates(cost), objects, groups=groups, **options
    )
    return rows.tolist(), columns.tolist()


def test_each_object_gets_the_query_of_the_least_sum_not_its_own_best():
    assert _match([[1.0, 2.0], [3.0, 9.0], [8.0, 8.0]]) == ([0, 1], [1, 0])


def test_more_objects_than_queries_leave_some_unfound_and_none_leave_all():
    assert _match([[5.0, 1.0, 3.0], [1.0, 0.5, 9.0]]) == ([0, 1], [1, 0])
    assert _match(torch.zeros(4, 0)) == ([], [])
    assert _match(torch.zeros(0, 4)) == ([], [])


def test_groups_are_matched_each_on_its_own():
    cost = [[0.0, 1.0], [1.0, 0.0], [5.0, 9.0], [5.0, 1.0]]
    assert _match(cost, groups=2) == ([0, 1, 2, 3], [0, 1, 0, 1])
    with pytest.raises(ValueError, match="4 queries are not 3 groups"):
        _match(cost, groups=3)


def test_an_infinite_cost_is_the_last_choice_and_hides_no_difference():
    infinite = float("inf")
    # One pair must be infinite; between the largest floats scipy would no longer see that 0.52 is less than 0.99.
    cost = [[infinite, infinite, 0.99], [infinite, infinite, 0.52], [0.71, infinite, 0.91]]
    assert _match(cost) == ([0, 1, 2], [1, 2, 0])
    assert _match([[-infinite, 0.0], [0.0, 5.0]]) == ([0, 1], [0, 1])


def test_nan_is_an_error_that_names_the_image():
    with pytest.raises(TrainingError, match=r"1 of 4 matching costs of image 3 .* are NaN"):
        _match([[float("nan"), 1.0], [1.0, 2.0]], where="image 3 of the batch")


def test_box_costs_are_distances_and_overlaps_in_2d_and_3d():
    for dims in (2, 3):
        boxes = torch.full((2, 2 * dims), 0.5)
        boxes[1, 0] = 1.0  # half a side further along x
        boxes[:, dims:] = 0.5
        objects = Candidates(torch.zeros(1, dtype=torch.int64), boxes[:1])
        matcher = HungarianMatcher(_given, {"box": 1.0, "giou": 10.0})
        cost = matcher.cost(Candidates(torch.zeros(2, 1), boxes), objects)
        torch.testing.assert_close(
            cost, torch.tensor([[-10.0], [0.5]])
        )  # they touch: no IoU, no room between


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("focal", [False, True])
def test_mask_costs_equal_the_loss_of_each_pair(monkeypatch, focal, weighted, sparse):
    monkeypatch.setattr(matching, "_SPARSE", 1.0 if sparse else 0.0)
    monkeypatch.setattr(matching, "_CHUNK", 70)  # two queries at a time
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 30, generator=generator) * 4
    true = (torch.rand(3, 30, generator=generator) > 0.6).float()
    true[1] = 0
    weight = (torch.rand(30, generator=generator) > 0.3).float() if weighted else None
    kept = slice(None) if weight is None else weight > 0
    cost, dice = pairwise_mask_costs(logits, true, weight, focal)
    for i in range(4):
        for j in range(3):
            x, t = logits[i, kept], true[j, kept]
            if focal:
                expected = sigmoid_focal_loss(x, t, alpha=0.25, gamma=2.0, reduction="mean")
            else:
                expected = F.binary_cross_entropy_with_logits(x, t)
            torch.testing.assert_close(cost[i, j], expected, rtol=1e-5, atol=1e-6)
            p = x.sigmoid()
            torch.testing.assert_close(dice[i, j], 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))


def test_costs_that_cannot_be_computed_are_errors():
    with pytest.raises(ValueError, match=r"unknown matching costs \['iou'\]"):
        HungarianMatcher(_given, {"iou": 1.0})
    with pytest.raises(ValueError, match="at least one cost"):
        HungarianMatcher(_given, {"class": 0.0})
    some = Candidates(torch.zeros(2, 1)), Candidates(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="'box' and 'giou' need boxes"):
        HungarianMatcher(_given, {"giou": 1.0})(*some)
    with pytest.raises(ValueError, match="'mask' and 'dice' need masks"):
        HungarianMatcher(_given, {"dice": 1.0})(*some)


def test_costs_are_float32_under_autocast():
    boxes = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    queries = Candidates(torch.zeros(5, 2), boxes, masks)
    objects = Candidates(torch.zeros(2, dtype=torch.int64), boxes[3:], (masks[3:] > 0).float())
    matcher = HungarianMatcher(_given, {"box": 1.0, "mask": 1.0, "dice": 1.0})
    seen = []
    cost = matcher.cost
    matcher.cost = lambda *inputs: seen.append(cost(*inputs)) or seen[-1]
    matcher(queries, objects)
    with torch.autocast("cpu", torch.bfloat16):
        matcher(queries, objects)
    assert torch.equal(*seen)

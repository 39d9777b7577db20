"""Matrix NMS against its definition, pair by pair."""

import math
import sys

import pytest
import torch

from pixvox.ops import matrix_nms

SIZES = [(12, 17), (5, 8, 9)]


def _by_pairs(masks, scores, labels, kernel, sigma):
    """Return what the paper says, with loops."""

    def iou(i, j):
        union = (masks[i] | masks[j]).sum().item()
        return (masks[i] & masks[j]).sum().item() / union if union else 0.0

    def f(overlap):
        return math.exp(-sigma * overlap**2) if kernel == "gaussian" else 1 - overlap

    order = sorted(range(len(scores)), key=lambda i: -scores[i].item())
    better = {i: [j for j in order[:rank] if labels[j] == labels[i]] for rank, i in enumerate(order)}
    found = scores.clone()
    for i in order:
        factors = [f(iou(i, j)) / f(max([iou(j, k) for k in better[j]], default=0.0)) for j in better[i]]
        found[i] = scores[i] * min([1.0, *factors]) if factors else scores[i]
    return found


def _random(size, count=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        low = [int(torch.randint(0, n // 2, (), generator=generator)) for n in size]
        high = [
            int(torch.randint(a + 1, n + 1, (), generator=generator)) for a, n in zip(low, size, strict=True)
        ]
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    scores = torch.rand(count, generator=generator)
    return masks, scores, torch.randint(0, 2, (count,), generator=generator)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_scores_are_those_of_the_definition(size, kernel):
    masks, scores, labels = _random(size)
    found = matrix_nms(masks, scores, labels, kernel, 1.5)
    expected = _by_pairs(masks, scores, labels, kernel, 1.5)
    torch.testing.assert_close(found, expected)
    assert (found < scores).sum() > 4, "the test would prove nothing"


def test_few_cells_at_a_time_change_nothing(monkeypatch):
    masks, scores, labels = _random((12, 17))
    whole = matrix_nms(masks, scores, labels)
    monkeypatch.setattr(sys.modules["pixvox.ops.matrix_nms"], "_CELLS", 50)
    torch.testing.assert_close(matrix_nms(masks, scores, labels), whole)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_doubles_of_doubles_and_empty_masks_have_a_score(kernel):
    masks = torch.zeros(4, 3, 3, dtype=torch.bool)
    masks[:3, 1:] = True
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = matrix_nms(masks, scores, torch.zeros(4, dtype=torch.int64), kernel)
    assert found.isfinite().all()
    assert found[0] == scores[0] and found[3] == scores[3]
    assert found[1] < 0.2 and found[2] < 0.2


def test_nothing_gives_nothing():
    nothing = torch.zeros(0)
    assert len(matrix_nms(torch.zeros(0, 4, 4, dtype=torch.bool), nothing, nothing.long())) == 0


def test_mistakes_are_named():
    masks = torch.ones(2, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="2 masks, 1 scores and 2 labels"):
        matrix_nms(masks, torch.ones(1), torch.zeros(2, dtype=torch.int64))

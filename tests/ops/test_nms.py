import pytest
import torch
import torchvision
from monai.data.box_utils import non_max_suppression

from pixvox.ops import batched_nms, nms
from pixvox.ops import boxes as B


def crowd(n: int, dims: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in clusters, with scores of few values, so that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(n // 8, dims, generator=generator) * 100
    centres = centres[torch.randint(0, n // 8, (n,), generator=generator)]
    centres = centres + torch.randn(n, dims, generator=generator) * 2
    sides = torch.rand(n, dims, generator=generator) * 10 + 5
    scores = torch.randint(0, n // 4, (n,), generator=generator) / n
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1), scores


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """The definition, box by box."""
    order = scores.argsort(descending=True, stable=True).tolist()
    iou = B.box_iou(boxes, boxes).double()
    kept: list[int] = []
    for i in order:
        if all(iou[j, i] <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("backend", ["auto", "torch", "numba"])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_backend_is_the_greedy_definition_with_stable_ties(dims, threshold, backend):
    boxes, scores = crowd(300, dims)
    assert nms(boxes, scores, threshold, backend).tolist() == greedy(boxes, scores, threshold)


@pytest.mark.parametrize("backend", ["torchvision", "torch", "numba"])
def test_nms_equals_torchvision(backend):
    boxes, _ = crowd(400, 2)
    scores = torch.rand(400, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nms(boxes, scores, 0.5, backend), torchvision.ops.nms(boxes, scores, 0.5))


def test_nms_equals_monai_in_3d():
    boxes, _ = crowd(200, 3)
    scores = torch.rand(200, generator=torch.Generator().manual_seed(1))
    expected = torch.as_tensor(non_max_suppression(boxes, scores, 0.5))
    assert torch.equal(nms(boxes, scores, 0.5), expected)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_nms_of_one_slice_equals_2d_and_axes_do_not_matter(backend):
    boxes, scores = crowd(200, 2)
    end = torch.ones(200, 1)
    deep = torch.cat([boxes[:, :2], end * 0, boxes[:, 2:], end], dim=1)
    expected = nms(boxes, scores, 0.5)
    assert torch.equal(nms(deep, scores, 0.5, backend), expected)
    assert torch.equal(nms(deep[:, [2, 0, 1, 5, 3, 4]], scores, 0.5, backend), expected)


def test_blocks_of_bounded_memory_change_nothing(monkeypatch):
    import importlib

    boxes, scores = crowd(300, 3)
    expected = nms(boxes, scores, 0.3, "torch")
    monkeypatch.setattr(importlib.import_module("pixvox.ops.nms"), "_BLOCK", 17)
    assert torch.equal(nms(boxes, scores, 0.3, "torch"), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_groups_do_not_suppress_each_other(dims):
    boxes, scores = crowd(300, dims)
    groups = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(1)) * 7
    expected = sorted(
        (i for g in (0, 7, 14, 21) for i in (groups == g).nonzero()[:, 0][
            nms(boxes[groups == g], scores[groups == g], 0.4)
        ].tolist()),
        key=lambda i: (-scores[i].item(), i),
    )  # fmt: skip
    assert batched_nms(boxes, scores, groups, 0.4).tolist() == expected


def test_groups_are_exact_at_large_coordinates():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.701], [1e7, 1e7, 1e7 + 8, 1e7 + 8]])
    keep = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([5, 5, 0]), 0.7)
    assert keep.tolist() == [0, 2]


@pytest.mark.parametrize("backend", ["torch", "numba", "torchvision"])
def test_an_overlap_of_exactly_the_threshold_is_kept(backend):
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])
    assert nms(boxes, torch.tensor([0.5, 0.4]), 0.5, backend).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.5, 0.4]), 0.499, backend).tolist() == [0]


def test_boxes_without_volume_are_kept():
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]])
    for backend in ("torch", "numba", "torchvision"):
        assert nms(boxes, torch.tensor([0.5, 0.4]), 0.5, backend).tolist() == [0, 1]


@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_gives_nothing(dims):
    empty = torch.zeros(0, 2 * dims)
    assert nms(empty, torch.zeros(0), 0.5).tolist() == []
    assert batched_nms(empty, torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).tolist() == []


def test_nan_scores_and_misfits_are_refused():
    boxes, scores = crowd(16, 3)
    scores[3] = float("nan")
    with pytest.raises(ValueError, match="1 of 16 scores are NaN"):
        nms(boxes, scores, 0.5)
    with pytest.raises(ValueError, match=r"\(16, 6\) and \(2,\)"):
        nms(boxes, torch.ones(2), 0.5)
    with pytest.raises(ValueError, match="torchvision"):
        nms(boxes, torch.ones(16), 0.5, "torchvision")
    with pytest.raises(ValueError, match="group indices"):
        batched_nms(boxes, torch.ones(16), torch.zeros(3, dtype=torch.int64), 0.5)

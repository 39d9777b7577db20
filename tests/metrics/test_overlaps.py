import numpy as np
import pytest
import torch

from pixvox.metrics import overlaps as overlaps_module
from pixvox.metrics.overlaps import covered, element_overlaps, elements, label_map_overlaps, paint
from pixvox.structures import Masks

SIZES = [(13, 17), (5, 7, 9)]


def brute_force(predicted, true):
    """Table of {(predicted id, true id): common elements}."""
    pairs = {}
    for p in np.unique(predicted[predicted != 0]):
        for t in np.unique(true[true != 0]):
            common = int(((predicted == p) & (true == t)).sum())
            if common:
                pairs[int(p), int(t)] = common
    return pairs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slab", [1 << 24, 40])
def test_label_map_table_equals_brute_force(size, slab, monkeypatch):
    monkeypatch.setattr(overlaps_module, "SLAB_ELEMENTS", slab)
    generator = np.random.default_rng(0)
    ids = np.array([0, 3, 70000, 2**31 + 5, 9])
    predicted = ids[generator.integers(0, 5, size)]
    true = generator.integers(0, 4, size).astype(np.uint8)
    table = label_map_overlaps(predicted, true)
    ours = {
        (int(table.predicted_ids[p]), int(table.true_ids[t])): int(n)
        for p, t, n in zip(table.predicted, table.true, table.counts, strict=True)
    }
    assert ours == brute_force(predicted, true)
    assert table.predicted_sizes.tolist() == [int((predicted == i).sum()) for i in table.predicted_ids]
    assert table.true_sizes.tolist() == [int((true == i).sum()) for i in table.true_ids]
    for p, t, iou in zip(table.predicted, table.true, table.iou(), strict=True):
        first, second = predicted == table.predicted_ids[p], true == table.true_ids[t]
        assert iou == (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 0)])
def test_empty_label_maps_give_an_empty_table(first, second):
    table = label_map_overlaps(np.full((3, 4), first), np.full((3, 4), second))
    assert len(table.counts) == len(table.iou()) == 0
    assert (len(table.predicted_ids), len(table.true_ids)) == (first, second)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        label_map_overlaps(np.zeros((2, 3), int), np.zeros((3, 2), int))


@pytest.mark.parametrize("size", SIZES)
def test_overlapping_masks_equal_dense_products(size):
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(6, *size, generator=generator) > 0.6
    second = torch.rand(5, *size, generator=generator) > 0.5
    second[3] = False
    table = element_overlaps(
        elements(Masks.from_dense(first)), elements(Masks.from_dense(second)), 6, 5, size
    )
    common = torch.zeros(6, 5, dtype=torch.int64)
    common[table.predicted, table.true] = torch.from_numpy(table.counts)
    assert torch.equal(common, torch.einsum("px,tx->pt", first.flatten(1).long(), second.flatten(1).long()))
    assert table.true_sizes.tolist() == second.flatten(1).sum(1).tolist()
    shares = covered(elements(Masks.from_dense(first)), elements(Masks.from_dense(second)), 6, size)
    assert shares.tolist() == (first & second.any(0)).flatten(1).sum(1).tolist()


@pytest.mark.parametrize("size", SIZES)
def test_painting_equals_the_label_map_of_masks(size):
    generator = torch.Generator().manual_seed(1)
    masks = Masks.from_dense(torch.rand(7, *size, generator=generator) > 0.6)
    order = np.array([3, 0, 6, 1, 5, 2, 4])  # worst first
    shown = paint(elements(masks, order), size)
    painted = np.full(int(np.prod(size)), -1)
    painted[shown.positions] = shown.owners
    expected = masks.label_map(order[::-1].tolist())
    ranked = np.concatenate([[-1], order[::-1]])[expected.numpy()]
    assert len(np.unique(shown.positions)) == len(shown.positions)
    assert np.array_equal(painted.reshape(size), ranked)


def test_elements_of_no_masks():
    inside = elements(Masks.empty((4, 5)))
    assert inside.positions.size == 0
    assert element_overlaps(inside, inside, 0, 0, (4, 5)).counts.size == 0

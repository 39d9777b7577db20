import numpy as np
import pytest
import torch

from pixvox.metrics.overlaps import covered, element_overlaps, elements, paint
from pixvox.structures import Masks

SIZES = [(13, 17), (5, 7, 9)]


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

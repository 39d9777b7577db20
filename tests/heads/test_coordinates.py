"""Coordinates of cells: a function of place alone, the same for each axis, whatever is padded."""

import pytest
import torch

from pixvox.heads.coordinates import Coordinates


def _of_zeros(place, grid, valid, padded):
    return place(torch.zeros(1, 5, *grid), torch.tensor([valid]), padded)


@pytest.mark.parametrize("grid", [(4, 6), (3, 4, 6)])
def test_terms_are_waves_of_the_centres_of_cells(grid):
    torch.manual_seed(0)
    place = Coordinates(5, len(grid), octaves=2)
    size = tuple(8 * n for n in grid)
    found = _of_zeros(place, grid, size, size)
    for cell in [(0,) * len(grid), tuple(n - 1 for n in grid), (1,) * len(grid)]:
        expected = torch.zeros(5)
        for term, index, cells in zip(place.terms, cell, grid, strict=True):
            share = torch.tensor((index + 0.5) / cells)
            angles = torch.stack([torch.pi * share, 2 * torch.pi * share])
            expected = expected + term.weight @ torch.cat([angles.sin(), angles.cos()])
        torch.testing.assert_close(found[(0, slice(None), *cell)], expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_padding_changes_nothing(dims):
    torch.manual_seed(0)
    place = Coordinates(5, dims)
    grid, valid = (3, 4, 6)[-dims:], (12, 16, 24)[-dims:]
    larger = tuple(n + 2 for n in grid)
    padded = _of_zeros(place, larger, valid, tuple(4 * n for n in larger))
    inside = padded[(..., *(slice(0, n) for n in grid))]
    torch.testing.assert_close(inside, _of_zeros(place, grid, valid, valid))


def test_axes_are_treated_alike():
    torch.manual_seed(0)
    place, turned = Coordinates(5, 3), Coordinates(5, 3)
    order = (2, 0, 1)
    for axis, source in enumerate(order):
        turned.terms[axis].load_state_dict(place.terms[source].state_dict())
    size = (4, 8, 12)
    found = _of_zeros(place, (2, 4, 6), size, size).permute(0, 1, *(2 + axis for axis in order))
    other = tuple(size[axis] for axis in order)
    torch.testing.assert_close(_of_zeros(turned, found.shape[2:], other, other), found)


def test_products_tell_apart_places_that_look_alike():
    torch.manual_seed(0)
    place = Coordinates(8)
    queries = torch.nn.Parameter(torch.randn(3, 8))
    corners = torch.tensor([[1, 1], [1, 9], [9, 5]])
    truth = torch.zeros(3, 12, 12)
    for i, (row, column) in enumerate(corners.tolist()):
        truth[i, row : row + 3, column : column + 3] = 1
    optimizer = torch.optim.Adam([*place.parameters(), queries], 0.1)
    for _ in range(150):
        pixels = place(torch.zeros(1, 8, 12, 12), torch.tensor([[12, 12]]), (12, 12))[0]
        logits = torch.einsum("qc,chw->qhw", queries, pixels)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = logits > 0
    overlap = (found & truth.bool()).sum((1, 2)) / (found | truth.bool()).sum((1, 2))
    assert (overlap > 0.7).all(), overlap

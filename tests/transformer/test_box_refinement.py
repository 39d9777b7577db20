"""Both forms of moving a reference: values by hand, identity at zero, gradients, extremes."""

import math

import pytest
import torch

from pixvox.transformer.box_refinement import BoxBranch, inverse_sigmoid, move_in_logits, move_in_proportion


@pytest.mark.parametrize("move", [move_in_logits, move_in_proportion])
@pytest.mark.parametrize("dims", [2, 3])
def test_no_change_leaves_the_reference(move, dims):
    reference = torch.rand(3, 5, 2 * dims) * 0.9 + 0.05
    assert torch.allclose(move(reference, torch.zeros_like(reference)), reference, atol=1e-6)


def test_a_point_moves_in_logits_and_the_sides_come_from_the_deltas_alone():
    boxes = move_in_logits(torch.tensor([[0.25, 0.5]]), torch.tensor([[1.0, 0.0, -2.0, 3.0]]))
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = [sigmoid(math.log(1 / 3) + 1), 0.5, sigmoid(-2), sigmoid(3)]
    assert boxes[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_shares_of_the_sides_move_the_centre_and_exponentials_stretch_the_sides():
    reference = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1, 0.6])
    deltas = torch.tensor([0.5, -1.0, 0.5, math.log(2), 0.0, -math.log(3)])
    expected = [0.5 + 0.5 * 0.2, 0.4 - 0.1, 0.3 + 0.5 * 0.6, 0.4, 0.1, 0.2]
    assert move_in_proportion(reference, deltas).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("move", [move_in_logits, move_in_proportion])
def test_wild_deltas_and_references_at_the_border_stay_finite_with_their_gradients(move):
    reference = torch.tensor([[0.0, 1.0, 0.0, 1.0]], requires_grad=True)
    deltas = torch.tensor([[1e4, -1e4, 1e4, 1e4]], requires_grad=True)
    boxes = move(reference, deltas)
    boxes.sum().backward()
    assert all(torch.isfinite(x).all() for x in (boxes, reference.grad, deltas.grad))


@pytest.mark.parametrize("move", [move_in_logits, move_in_proportion])
def test_boxes_are_moved_in_float32_under_half_precision(move):
    reference = torch.tensor([[0.501, 0.502, 0.1, 0.2]])
    boxes = move(reference, torch.zeros(1, 4, dtype=torch.bfloat16))
    assert boxes.dtype == torch.float32
    assert torch.allclose(boxes, reference, atol=1e-6)


def test_inverse_sigmoid_inverts_and_bounds():
    x = torch.tensor([0.0, 0.2, 0.7, 1.0])
    assert torch.allclose(inverse_sigmoid(x).sigmoid(), x, atol=1.1e-5)
    assert inverse_sigmoid(x).abs().max() == pytest.approx(math.log(1e5), rel=1e-3)


def test_the_box_branch_begins_without_change_or_at_the_side_it_is_given():
    queries = torch.randn(2, 3, 8)
    assert BoxBranch(8, 3)(queries).abs().max() == 0
    start = move_in_logits(torch.full((2, 3, 2), 0.4), BoxBranch(8, 2, side=0.1)(queries))
    assert torch.allclose(start, torch.tensor([0.4, 0.4, 0.1, 0.1]).expand(2, 3, 4), atol=1e-6)

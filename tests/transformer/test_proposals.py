"""Proposals of tokens: boxes as in the reference, who is chosen, any number, anisotropic strides."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pixvox.transformer.box_refinement import move_in_logits, move_in_proportion
from pixvox.transformer.levels import Tokens
from pixvox.transformer.proposals import ProposalBranch, grid_boxes

CHANNELS = 6
STRIDES = [(8, 8), (16, 16), (32, 32)]
SHAPES = ((8, 12), (4, 6), (2, 3))


def _tokens(valid=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, CHANNELS, *shape, generator=generator) for shape in SHAPES]
    return Tokens.of(maps, STRIDES, None if valid is None else torch.tensor(valid))


@pytest.mark.parametrize("valid", [None, [(64, 96), (40, 70)]])
def test_boxes_and_what_lies_inside_equal_transformers(valid):
    reference = pytest.importorskip(
        "transformers.models.deformable_detr.modeling_deformable_detr"
    ).DeformableDetrModel.gen_encoder_output_proposals
    tokens = _tokens(valid)
    padding = torch.zeros(2, 126, dtype=torch.bool) if tokens.padding is None else tokens.padding
    identity = SimpleNamespace(enc_output=nn.Identity(), enc_output_norm=nn.Identity())
    _, expected = reference(identity, tokens.values, padding, SHAPES)
    boxes, inside = grid_boxes(tokens, ProposalBranch(CHANNELS, STRIDES).sides)
    assert torch.equal(inside, torch.isfinite(expected).all(-1))
    assert torch.allclose(boxes[inside].logit(), expected[inside], rtol=1e-5, atol=1e-5)


def _branch(strides=STRIDES):
    torch.manual_seed(1)
    return ProposalBranch(CHANNELS, strides), nn.Linear(CHANNELS, 3), nn.Linear(CHANNELS, 4)


@pytest.mark.parametrize("form", [move_in_logits, move_in_proportion])
def test_the_best_tokens_are_chosen_with_their_boxes(form):
    branch, classify, regress = _branch()
    tokens = _tokens()
    result = branch(tokens, 7, classify, lambda memory, boxes: form(boxes, regress(memory)))
    memory = branch.norm(branch.projection(tokens.values))
    scores = classify(memory).amax(-1)
    everything = form(grid_boxes(tokens, branch.sides)[0], regress(memory))
    for image in range(2):
        chosen = scores[image].argsort(descending=True)[:7]
        assert torch.equal(result.indices[image], chosen)
        assert torch.allclose(result.boxes[image], everything[image, chosen])
        assert torch.allclose(result.class_logits[image], classify(memory)[image, chosen])
        assert torch.equal(result.memory[image], memory[image, chosen])


def test_padding_is_chosen_last():
    branch, classify, _ = _branch()
    tokens = _tokens(valid=[(64, 96), (24, 32)])
    inside = int((~tokens.padding[1]).sum())
    result = branch(tokens, inside + 2, classify, lambda memory, boxes: boxes)
    assert not tokens.padding[1, result.indices[1, :inside]].any()
    assert tokens.padding[1, result.indices[1, inside:]].all()
    assert torch.isfinite(result.boxes).all()


def test_asking_for_more_than_there_are_tokens_gives_all():
    branch, classify, _ = _branch()
    result = branch(_tokens(), 1000, classify, lambda memory, boxes: boxes)
    assert result.boxes.shape == (2, 126, 4)


def test_boxes_grow_with_the_stride_of_each_axis():
    strides = [(1, 4, 4), (1, 8, 8), (2, 16, 16)]
    maps = [torch.zeros(1, CHANNELS, 8 // z, 32 // y, 48 // x) for z, y, x in strides]
    tokens = Tokens.of(maps, strides)
    boxes, inside = grid_boxes(tokens, ProposalBranch(CHANNELS, strides).sides)
    assert inside.all()
    counts = [m[0, 0].numel() for m in maps]
    for level, sides in zip(boxes.split(counts, dim=1), ((1, 1, 1), (2, 2, 1), (4, 4, 2)), strict=True):
        expected = torch.tensor([0.05 * side for side in sides])  # (w, h, d)
        assert torch.allclose(level[..., 3:], expected.expand_as(level[..., 3:]))


def test_no_box_of_a_very_coarse_level_fills_the_image():
    strides = [(2**level,) * 2 for level in range(2, 9)]
    maps = [torch.zeros(1, CHANNELS, 256 // s, 256 // s) for s, _ in strides]
    boxes, _ = grid_boxes(Tokens.of(maps, strides), ProposalBranch(CHANNELS, strides).sides)
    assert boxes[..., 2:].max() == pytest.approx(0.8)


def test_the_classifier_and_the_boxes_of_the_chosen_learn():
    branch, classify, regress = _branch()
    result = branch(_tokens(), 5, classify, lambda memory, boxes: move_in_logits(boxes, regress(memory)))
    (result.class_logits.sum() + result.boxes.sum()).backward()
    for module in (branch, classify, regress):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())

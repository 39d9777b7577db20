"""Tokens, deformable attention and the encoder: places, padding, and one slice."""

import pytest
import torch
from torch import nn

from pixvox.transformer.deformable import DeformableAttention, head_directions
from pixvox.transformer.encoder import DeformableEncoder
from pixvox.transformer.levels import Tokens

STRIDES = {2: ((4, 4), (8, 8)), 3: ((2, 4, 4), (4, 8, 8))}
SIZES = {2: ((6, 10), (3, 5)), 3: ((4, 6, 10), (2, 3, 5))}


def _tokens(dims, channels=8, valid=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, channels, *size, generator=generator) for size in SIZES[dims]]
    return Tokens.of(maps, STRIDES[dims], valid), maps


@pytest.mark.parametrize("dims", [2, 3])
def test_tokens_give_their_maps_back(dims):
    tokens, maps = _tokens(dims)
    assert all(torch.equal(a, b) for a, b in zip(tokens.maps(), maps, strict=True))
    assert tokens.padding is None


def test_references_are_centres_relative_to_the_valid_part():
    tokens, _ = _tokens(2, valid=torch.tensor([[24, 40], [12, 18]]))
    assert tokens.valid_ratios[1].tolist() == [[0.5, 0.5], [pytest.approx(0.6), pytest.approx(2 / 3)]]
    places = tokens.references()
    assert torch.allclose(places[0, 11], torch.tensor([1.5 / 10, 1.5 / 6]))
    assert torch.allclose(places[1, 11], torch.tensor([1.5 / 5, 1.5 / 3]))
    assert torch.allclose(tokens.per_level(places)[1, 11, 0], torch.tensor([1.5 / 10, 1.5 / 6]))
    padding = tokens.padding[1, :60].view(6, 10)
    assert not padding[:3, :5].any() and padding[3:].all() and padding[:, 5:].all()
    assert not tokens.padding[0].any()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("levels", [1, 2])
def test_gradients_of_norms_before_the_tokens_are_right_for_a_batch_of_one(batch, norm, levels):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, 6, 4, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(batch, levels * 20, 6, generator=generator, dtype=torch.float64)
    layer = norm(6, affine=True).double()

    def loss(x):
        normal = layer(x)
        return (Tokens.of([normal] * levels, [(8, 8)] * levels).values * weights).sum()

    maps.requires_grad_()
    loss(maps).backward()
    step = torch.zeros_like(maps)
    step[0, 3, 2, 1] = 1e-5
    with torch.no_grad():
        slope = (loss(maps + step) - loss(maps - step)) / 2e-5
    torch.testing.assert_close(maps.grad[0, 3, 2, 1], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_zero_offsets_read_a_ramp_at_the_reference(dims):
    size = SIZES[dims][0]
    axes = torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij")
    ramp = torch.stack(axes[::-1])[None]  # channels x, y[, z]
    tokens = Tokens.of([ramp], STRIDES[dims][:1])
    attention = DeformableAttention(dims, 1, dims, num_heads=1, points_per_head=3)
    with torch.no_grad():
        for module in (attention.value_proj, attention.output_proj):
            module.weight.copy_(torch.eye(dims))
        attention.sampling_offsets.bias.zero_()
    cells = torch.tensor([[2.25, 1.5, 0.75][:dims], [7.0, 3.0, 2.0][:dims]])
    points = (cells + 0.5) / torch.tensor([float(n) for n in size[::-1]])
    seen = attention(torch.zeros(1, 2, dims), tokens.per_level(points[None]), tokens)
    assert torch.allclose(seen[0], cells, atol=1e-5)


def test_heads_look_into_different_directions():
    flat = head_directions(8, 2)
    assert torch.allclose(flat[1], torch.tensor([1.0, 1.0]), atol=1e-6)
    space = head_directions(8, 3)
    unit = space / space.norm(dim=1, keepdim=True)
    assert (unit @ unit.T - torch.eye(8)).max() < 0.75  # no two within 41 degrees
    assert unit.sum(dim=0).norm() < 0.5


@pytest.mark.parametrize("dims", [2, 3])
def test_padding_changes_nothing_in_the_valid_part(dims):
    torch.manual_seed(0)
    encoder = DeformableEncoder(8, 2, dims, num_layers=2, num_heads=2, feedforward=16).eval()
    tight, maps = _tokens(dims)
    padded_maps = [
        torch.nn.functional.pad(level, (0, 4 >> i) * dims, value=9.0) for i, level in enumerate(maps)
    ]
    valid = torch.tensor([[n * s for n, s in zip(SIZES[dims][0], STRIDES[dims][0], strict=True)]] * 2)
    padded = Tokens.of(padded_maps, STRIDES[dims], valid)
    with torch.no_grad():
        expected = encoder(tight, torch.zeros_like(tight.values)).maps()
        given = encoder(padded, torch.zeros_like(padded.values)).maps()
    for level, other in zip(given, expected, strict=True):
        inside = level[(..., *(slice(n) for n in other.shape[2:]))]
        assert torch.allclose(inside, other, atol=1e-5)

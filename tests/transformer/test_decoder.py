"""The deformable decoder: groups, masks, references and positions; axes and one slice in 3-D."""

import pytest
import torch
from torch import nn

from pixvox.transformer.box_refinement import move_in_logits
from pixvox.transformer.decoder import DeformableDecoder, ReferencePositions
from pixvox.transformer.levels import Tokens

CHANNELS = 8
SIZES = {2: ((6, 8), (3, 4)), 3: ((3, 6, 8), (2, 3, 4))}


def _decoder(dims=2, layers=2, seed=0, **options):
    torch.manual_seed(seed)
    decoder = DeformableDecoder(
        CHANNELS, 2, dims, num_layers=layers, num_heads=2, points_per_head=3, feedforward=12, **options
    )
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder.eval()


def _tokens(dims=2, batch=2, seed=1, valid=None):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, CHANNELS, *size, generator=generator) for size in SIZES[dims]]
    strides = [(4,) * dims, (8,) * dims]
    return Tokens.of(maps, strides, None if valid is None else torch.tensor(valid))


def _queries(number, coordinates, batch=2, seed=2):
    generator = torch.Generator().manual_seed(seed)
    queries, positions = torch.randn(2, batch, number, CHANNELS, generator=generator)
    return queries, positions, torch.rand(batch, number, coordinates, generator=generator) * 0.8 + 0.1


@pytest.mark.parametrize("dims", [2, 3])
def test_groups_do_not_see_each_other(dims):
    decoder, tokens = _decoder(dims), _tokens(dims)
    queries, positions, boxes = _queries(6, 2 * dims)
    together = decoder(queries, positions, boxes, tokens, groups=2)
    for part in (slice(0, 3), slice(3, 6)):
        alone = decoder(queries[:, part], positions[:, part], boxes[:, part], tokens)
        assert torch.allclose(together.queries[-1][:, part], alone.queries[-1], atol=1e-5)
    mixed = decoder(queries, positions, boxes, tokens)
    assert not torch.allclose(mixed.queries[-1], together.queries[-1], atol=1e-3)


def test_a_masked_query_is_not_looked_at():
    decoder, tokens = _decoder(), _tokens()
    queries, positions, points = _queries(5, 2)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[2:, :2] = True
    changed = queries.clone()
    changed[:, :2] += 1
    expected = decoder(queries, positions, points, tokens, mask=mask).queries[-1][:, 2:]
    assert torch.allclose(decoder(changed, positions, points, tokens, mask=mask).queries[-1][:, 2:], expected)
    assert not torch.allclose(decoder(changed, positions, points, tokens).queries[-1][:, 2:], expected)


def test_layers_look_from_refined_references_and_positions_follow_them():
    decoder, tokens = _decoder(layers=3), _tokens()
    queries, _, boxes = _queries(4, 4)
    seen = []

    def positions(references):
        seen.append(references)
        return references.repeat(1, 1, CHANNELS // 4)

    def refine(layer, queries, reference):
        return move_in_logits(reference, queries[..., :4])

    states = decoder(queries, positions, boxes, tokens, refine)
    assert len(states.queries) == 3
    assert len(states.references) == 4
    assert torch.equal(states.references[0], boxes)
    for layer in range(3):
        assert torch.equal(seen[layer], states.references[layer])
        expected = move_in_logits(states.references[layer], states.queries[layer][..., :4])
        assert torch.allclose(states.references[layer + 1], expected)


def test_without_refinement_all_layers_look_from_the_first_reference():
    states = _decoder(layers=3)(*_queries(4, 2), _tokens())
    assert all(reference is states.references[0] for reference in states.references)


def test_refined_references_keep_a_gradient_that_does_not_reach_earlier_layers():
    decoder, tokens = _decoder(layers=2), _tokens()
    queries, positions, boxes = _queries(4, 4)
    branches = [nn.Linear(CHANNELS, 4) for _ in range(2)]
    states = decoder(
        queries, positions, boxes.requires_grad_(), tokens, lambda n, q, r: move_in_logits(r, branches[n](q))
    )
    states.references[2].sum().backward()
    assert branches[1].weight.grad is not None
    assert branches[0].weight.grad is None
    assert boxes.grad is not None  # the first layer looked from it


def test_the_norm_is_of_what_is_given_out_and_not_of_what_goes_on():
    decoder, tokens = _decoder(), _tokens()
    inputs = _queries(4, 2)
    plain = decoder(*inputs, tokens).queries
    decoder.norm = nn.LayerNorm(CHANNELS)
    for state, expected in zip(decoder(*inputs, tokens).queries, plain, strict=True):
        assert torch.allclose(state, decoder.norm(expected), atol=1e-6)


def test_what_lies_in_padding_changes_nothing():
    decoder = _decoder()
    valid = [(16, 24), (24, 20)]
    tokens = _tokens(valid=valid)
    inputs = _queries(4, 2)
    noisy = tokens.replace(torch.where(tokens.padding[..., None], 100.0, tokens.values))
    assert tokens.padding.any()
    assert torch.equal(decoder(*inputs, noisy).queries[-1], decoder(*inputs, tokens).queries[-1])


def _turn(values, order, dims=3):
    """Permute coordinates (x, y, z, w, h, d) as the axes (z, y, x) are permuted."""
    xyz = [2 - o for o in reversed(order)]
    return values[..., [*xyz, *(3 + i for i in xyz)][: values.shape[-1]]]


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("coordinates", [3, 6])
def test_permuting_the_axes_permutes_the_decoder(order, coordinates):
    decoder, turned = _decoder(3), _decoder(3)
    tokens = _tokens(3)
    for layer in turned.layers:  # the offsets are all that has axes
        offsets = layer.cross_attention.sampling_offsets
        for parameter in (offsets.weight, offsets.bias):
            flat = parameter.data.unflatten(0, (-1, 3))
            parameter.data = _turn(flat.movedim(1, -1), order).movedim(-1, 1).flatten(0, 1).contiguous()
    queries, positions, references = _queries(4, coordinates)
    maps = [m.permute(0, 1, *(2 + o for o in order)).contiguous() for m in tokens.maps()]
    permuted = Tokens.of(maps, [(4,) * 3, (8,) * 3])
    expected = decoder(queries, positions, references, tokens).queries[-1]
    result = turned(queries, positions, _turn(references, order), permuted).queries[-1]
    assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("boxes", [False, True])
def test_one_slice_equals_2d(boxes):
    """Neutral: no offsets along z, and references in the middle of the slice."""
    flat, deep = _decoder(2), _decoder(3)
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        if "sampling_offsets" in name:
            lifted = torch.zeros_like(state[name]).unflatten(0, (-1, 3))
            lifted[:, :2] = value.unflatten(0, (-1, 2))
            value = lifted.flatten(0, 1)
        state[name] = value
    deep.load_state_dict(state)
    tokens = _tokens(2)
    queries, positions, references = _queries(4, 4 if boxes else 2)
    middle = torch.full((2, 4, 1), 0.5)
    parts = [torch.cat([part, middle], dim=-1) for part in references.split(2, dim=-1)]
    volume = Tokens.of([m[:, :, None] for m in tokens.maps()], [(1, 4, 4), (1, 8, 8)])
    expected = flat(queries, positions, references, tokens).queries[-1]
    result = deep(queries, positions, torch.cat(parts, dim=-1), volume).queries[-1]
    assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_parameter_and_input_gets_a_gradient(dims):
    decoder, tokens = _decoder(dims).train(), _tokens(dims)
    positions = ReferencePositions(CHANNELS, dims)
    queries, _, boxes = _queries(4, 2 * dims)
    inputs = [queries.requires_grad_(), boxes.requires_grad_(), tokens.values.requires_grad_()]
    states = decoder(queries, positions, boxes, tokens)
    sum(state.square().sum() for state in states.queries).backward()
    for gradient in [p.grad for p in (*decoder.parameters(), *positions.parameters(), *inputs)]:
        assert gradient is not None
        assert torch.isfinite(gradient).all()

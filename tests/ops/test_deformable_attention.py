import math

import pytest
import torch
import torch.nn.functional as F

from pixvox.ops import multi_scale_deformable_attention

LEVELS = {2: [(6, 9), (3, 5)], 3: [(3, 5, 4), (2, 3, 2)]}


def case(dims: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    positions = sum(math.prod(shape) for shape in LEVELS[dims])
    value = torch.randn(2, positions, 3, 4, generator=generator, dtype=dtype)
    locations = torch.rand(2, 7, 3, 2, 5, dims, generator=generator, dtype=dtype) * 1.4 - 0.2
    attention = torch.rand(2, 7, 3, 10, generator=generator, dtype=dtype).softmax(-1).view(2, 7, 3, 2, 5)
    return value, locations, attention


def by_grid_sample(value, shapes, locations, attention):
    """One point of one head at a time, by the operator that the paper's definition names."""
    batch, _, heads, channels = value.shape
    output = value.new_zeros(batch, locations.shape[1], heads, channels)
    start = 0
    for level, shape in enumerate(shapes):
        part = value[:, start : start + math.prod(shape)]
        start += math.prod(shape)
        for head in range(heads):
            features = part[:, :, head].transpose(1, 2).reshape(batch, channels, *shape)
            grid = 2 * locations[:, :, head, level] - 1
            grid = grid.view(*grid.shape[:3], *[1] * (len(shape) - 2), len(shape))
            sampled = F.grid_sample(features, grid, align_corners=False).flatten(3).squeeze(-1)
            sampled = sampled.reshape(batch, channels, *locations.shape[1:2], -1)
            output[:, :, head] += torch.einsum("bcqp,bqp->bqc", sampled, attention[:, :, head, level])
    return output.flatten(2)


@pytest.mark.parametrize("backend", ["auto", "torch", "gather", "numba"])
@pytest.mark.parametrize("dims", [2, 3])
def test_attention_equals_grid_sample_in_value_and_gradients(dims, backend):
    ours = [tensor.clone().requires_grad_() for tensor in case(dims)]
    theirs = [tensor.clone().requires_grad_() for tensor in case(dims)]
    value = multi_scale_deformable_attention(ours[0], LEVELS[dims], ours[1], ours[2], backend)
    expected = by_grid_sample(theirs[0], LEVELS[dims], theirs[1], theirs[2])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    given = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    value.backward(given)
    expected.backward(given)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_a_ramp_is_read_where_it_is_sampled():
    ramp = torch.arange(48.0).view(1, 48, 1, 1)
    locations = torch.tensor([[3.5 / 8, 2.5 / 6], [6.5 / 8, 5.5 / 6]]).view(1, 2, 1, 1, 1, 2)
    sampled = multi_scale_deformable_attention(
        ramp, torch.tensor([[6, 8]]), locations, torch.ones(1, 2, 1, 1, 1)
    )
    assert sampled.flatten().tolist() == [19.0, 46.0]


def test_one_slice_equals_2d():
    value, locations, attention = case(2)
    expected = multi_scale_deformable_attention(value, LEVELS[2], locations, attention)
    deep = torch.cat([locations, torch.full_like(locations[..., :1], 0.5)], dim=-1)
    slices = [(1, *shape) for shape in LEVELS[2]]
    torch.testing.assert_close(multi_scale_deformable_attention(value, slices, deep, attention), expected)


def test_permuted_axes_give_the_same():
    value, locations, attention = case(3)
    expected = multi_scale_deformable_attention(value, LEVELS[3], locations, attention)
    parts = value.split([math.prod(shape) for shape in LEVELS[3]], dim=1)
    turned = torch.cat(
        [
            part.unflatten(1, shape).permute(0, 3, 1, 2, 4, 5).flatten(1, 3)
            for part, shape in zip(parts, LEVELS[3], strict=True)
        ],
        dim=1,
    )
    shapes = [(shape[2], shape[0], shape[1]) for shape in LEVELS[3]]  # (x, z, y): coordinates (y, z, x)
    permuted = multi_scale_deformable_attention(turned, shapes, locations[..., [1, 2, 0]], attention)
    torch.testing.assert_close(permuted, expected)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("dims", [2, 3])
def test_attention_passes_gradcheck(dims, backend):
    value, locations, attention = (tensor[:1] for tensor in case(dims, torch.float64))
    inputs = [tensor.clone().requires_grad_() for tensor in (value, locations[:, :2], attention[:, :2])]
    assert torch.autograd.gradcheck(
        lambda v, p, a: multi_scale_deformable_attention(v, LEVELS[dims], p, a, backend), inputs
    )


def test_autocast_samples_at_exact_locations():
    value, locations, attention = case(2)
    expected = multi_scale_deformable_attention(value, LEVELS[2], locations, attention)
    with torch.autocast("cpu", torch.bfloat16):
        low = multi_scale_deformable_attention(value.bfloat16(), LEVELS[2], locations, attention.bfloat16())
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.05)


def test_levels_that_do_not_add_up_are_refused():
    value, locations, attention = case(2)
    with pytest.raises(ValueError, match="63 positions"):
        multi_scale_deformable_attention(value, [(6, 8), (3, 5)], locations, attention)

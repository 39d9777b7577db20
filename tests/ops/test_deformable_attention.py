import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from pixvox.ops import multi_scale_deformable_attention

BACKENDS = ["torch", "gather", "numba"]
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


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_attention_equals_that_of_transformers_in_value_and_gradients(backend):
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    ours = [tensor.clone().requires_grad_() for tensor in case(2)]
    theirs = [tensor.clone().requires_grad_() for tensor in case(2)]
    shapes, starts = torch.tensor(LEVELS[2]), torch.tensor([0, 54])
    value = multi_scale_deformable_attention(ours[0], shapes, ours[1], ours[2], backend)
    expected = MultiScaleDeformableAttention()(theirs[0], shapes, LEVELS[2], starts, *theirs[1:], 64)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    given = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    value.backward(given)
    expected.backward(given)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_centre_of_every_pixel_of_a_ramp_gives_its_number(dims, backend):
    shape = LEVELS[dims][0]
    count = math.prod(shape)
    axes = [(torch.arange(n) + 0.5) / n for n in shape]
    centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flip(-1)
    sampled = multi_scale_deformable_attention(
        torch.arange(float(count)).view(1, count, 1, 1),
        [shape],
        centres.view(1, count, 1, 1, 1, dims),
        torch.ones(1, count, 1, 1, 1),
        backend,
    )
    torch.testing.assert_close(sampled.flatten(), torch.arange(float(count)), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_outside_is_zero_and_half_outside_half(backend):
    value = torch.full((1, 6, 1, 1), 8.0)
    places = [(-0.5, 0.5), (0.5, 1.6), (0.0, 0.5), (1.0, 1.0), (-1e30, 0.5)]
    locations = torch.tensor(places).view(1, 5, 1, 1, 1, 2).requires_grad_()
    sampled = multi_scale_deformable_attention(value, [(2, 3)], locations, torch.ones(1, 5, 1, 1, 1), backend)
    assert sampled.flatten().tolist() == [0.0, 0.0, 4.0, 2.0, 0.0]
    sampled.sum().backward()
    assert locations.grad[0, 2].flatten().tolist() == [24.0, 0.0]  # 8 over the width of a pixel


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_location_that_is_no_number_is_seen_in_its_query_alone(backend):
    value, locations, attention = case(2)
    locations[1, 3, 0, 0, 0, 1] = float("nan")
    output = multi_scale_deformable_attention(value, LEVELS[2], locations, attention, backend)
    broken = torch.zeros(2, 7, 12, dtype=torch.bool)
    broken[1, 3, :4] = True
    assert torch.equal(output.isnan(), broken)


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


@pytest.mark.parametrize("backend", ["torch", "gather", "numba"])
@pytest.mark.parametrize("dims", [2, 3])
def test_attention_passes_gradcheck(dims, backend):
    value, locations, attention = case(dims, torch.float64)
    inputs = [value[:1, :, :1, :2], locations[:1, :2, :1, :, :2], attention[:1, :2, :1, :, :2]]
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(
        lambda v, p, a: multi_scale_deformable_attention(v, LEVELS[dims], p, a, backend), inputs
    )


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_autocast_samples_at_exact_locations(backend):
    value, locations, attention = case(2)
    locations.requires_grad_()
    expected = multi_scale_deformable_attention(value, LEVELS[2], locations, attention)
    with torch.autocast("cpu", torch.bfloat16):
        low = multi_scale_deformable_attention(value.bfloat16(), LEVELS[2], locations, attention, backend)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.05)
    (slope,) = torch.autograd.grad(expected.sum(), locations)
    (low_slope,) = torch.autograd.grad(low.float().sum(), locations)
    assert low_slope.dtype == torch.float32
    torch.testing.assert_close(low_slope, slope, rtol=0.05, atol=0.05 * float(slope.abs().max()))


def test_the_compiled_form_sums_half_precision_in_float32():
    value, locations, attention = case(2)
    low = multi_scale_deformable_attention(value.half(), LEVELS[2], locations, attention, "numba")
    exact = multi_scale_deformable_attention(value.half().float(), LEVELS[2], locations, attention, "numba")
    assert torch.equal(low, exact.half())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_queries_give_nothing_and_zero_gradients(backend):
    value, locations, attention = case(3)
    inputs = [
        tensor.requires_grad_() for tensor in (value, locations[:, :0].clone(), attention[:, :0].clone())
    ]
    output = multi_scale_deformable_attention(inputs[0], LEVELS[3], *inputs[1:], backend)
    assert output.shape == (2, 0, 12)
    output.sum().backward()
    assert torch.equal(value.grad, torch.zeros_like(value))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_the_inputs_do_not_matter(backend):
    inputs = [tensor.requires_grad_() for tensor in case(2)]
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in turned)
    given = torch.randn(2, 12, 7, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    results = []
    for value, locations, attention in (inputs, turned):
        output = multi_scale_deformable_attention(value, LEVELS[2], locations, attention, backend)
        results.append([output, *torch.autograd.grad(output, inputs, given)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_threads_share_the_work_and_agree_to_the_last_bit():
    inputs = [tensor.requires_grad_() for tensor in case(3)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 4):  # 4 threads own 6 heads of 2 images unevenly
            torch.set_num_threads(count)
            output = multi_scale_deformable_attention(inputs[0], LEVELS[3], *inputs[1:], "numba")
            results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


class Attend(torch.nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.shapes = LEVELS[dims]

    def forward(self, value, locations, attention):
        return multi_scale_deformable_attention(value, self.shapes, locations, attention)


@pytest.mark.parametrize("dims", [2, 3])
def test_export_takes_the_gather_form_and_gives_the_same_values(dims):
    inputs = case(dims)
    program = torch.export.export(Attend(dims), inputs)
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("embedding_bag" in name or "pixvox" in name for name in names)
    torch.testing.assert_close(program.module()(*inputs), Attend(dims)(*inputs))


def test_the_gather_form_can_be_differentiated_twice_and_the_compiled_one_says_that_it_cannot():
    inputs = [tensor[:1].clone().requires_grad_() for tensor in case(2, torch.float64)]
    inputs[1:] = [tensor[:, :1, :1].detach().requires_grad_() for tensor in inputs[1:]]
    inputs[0] = inputs[0][:, :, :1].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda v, p, a: multi_scale_deformable_attention(v, LEVELS[2], p, a, "gather"), inputs
    )
    output = multi_scale_deformable_attention(inputs[0], LEVELS[2], *inputs[1:], "numba").square().sum()
    (slope,) = torch.autograd.grad(output, inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match="deformable_attention_backward"):
        slope.sum().backward()


def test_without_numba_the_stock_operator_is_taken(monkeypatch):
    from pixvox.ops import deformable_attention

    monkeypatch.setattr(deformable_attention, "has_numba", lambda: False)
    value, locations, attention = case(2)
    expected = multi_scale_deformable_attention(value, LEVELS[2], locations, attention, "torch")
    assert torch.equal(multi_scale_deformable_attention(value, LEVELS[2], locations, attention), expected)
    with pytest.raises(ValueError, match="pip install numba"):
        multi_scale_deformable_attention(value, LEVELS[2], locations, attention, "numba")


def test_a_backend_of_another_device_is_refused():
    value, locations, attention = case(2)
    with pytest.raises(ValueError, match="triton backend is for cuda, value is on cpu"):
        multi_scale_deformable_attention(value, LEVELS[2], locations, attention, "triton")
    with pytest.raises(ValueError, match="got 'grid'"):
        multi_scale_deformable_attention(value, LEVELS[2], locations, attention, "grid")


def test_levels_that_do_not_add_up_are_refused():
    value, locations, attention = case(2)
    with pytest.raises(ValueError, match="63 positions"):
        multi_scale_deformable_attention(value, [(6, 8), (3, 5)], locations, attention)


def test_locations_of_another_dimension_are_refused():
    value, locations, attention = case(2)
    with pytest.raises(ValueError, match="locations of 3 coordinates"):
        multi_scale_deformable_attention(
            value, LEVELS[2], torch.cat([locations, locations[..., :1]], -1), attention
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("misfit", ["images", "heads", "queries", "points"])
def test_tensors_that_do_not_fit_each_other_are_refused_before_memory_is_read(misfit, backend):
    value, locations, attention = case(2)
    if misfit == "images":
        value = value[:1]
    elif misfit == "heads":
        value = value[:, :, :1]
    elif misfit == "queries":
        locations = locations.repeat(1, 9, 1, 1, 1, 1)
    else:
        attention = attention[..., :-1]
    attend = inspect.unwrap(multi_scale_deformable_attention)  # without the tests' own check of shapes
    with pytest.raises(ValueError, match="the sampling locations are"):
        attend(value, LEVELS[2], locations, attention, backend)


def test_a_level_without_positions_is_refused():
    value, locations, attention = case(2)
    with pytest.raises(ValueError, match="at least one position per axis"):
        multi_scale_deformable_attention(value[:, :54], [(6, 9), (0, 5)], locations, attention)


def test_a_line_is_attended_by_the_stock_operator_alone():
    value, locations, attention = case(2)
    lines = [(54,), (15,)]
    along = multi_scale_deformable_attention(value, lines, locations[..., :1], attention)
    flat = torch.cat([locations[..., :1], torch.full_like(locations[..., :1], 0.5)], dim=-1)
    torch.testing.assert_close(
        along, multi_scale_deformable_attention(value, [(1, 54), (1, 15)], flat, attention)
    )
    with pytest.raises(ValueError, match="images and volumes, not 1 axes"):
        multi_scale_deformable_attention(value, lines, locations[..., :1], attention, "numba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_location_makes_the_compiled_form_read_beyond_a_level(dtype):
    extremes = torch.tensor([1e38, -1e38, 3e9, -3e9, math.inf, -math.inf], dtype=dtype)
    for length in (1, 2, 3, 7, 8, 64, 127, 4096):
        # The last numbers before the outermost places that still touch a pixel, where rounding could carry one over.
        edges = torch.tensor([(length + 0.5) / length, -0.5 / length, 1.0, 0.0], dtype=dtype)
        near = [edges]
        for _ in range(3):
            near.append(torch.nextafter(near[-1], torch.full_like(edges, 0.5)))
        x = torch.cat([*near, extremes])
        locations = torch.full((2, len(x), 1, 1, 1, 2), 0.5, dtype=dtype)
        locations[..., 0] = x[:, None, None, None]
        value = torch.cat([torch.ones(1, length, 1, 1), torch.full((1, length, 1, 1), 1e9)]).to(dtype)
        first, second = multi_scale_deformable_attention(
            value, [(1, length)], locations, torch.ones(2, len(x), 1, 1, 1, dtype=dtype), "numba"
        )
        assert first.max() <= 1.0
        assert torch.equal(second, second.clamp(min=0)) and not second[-6:].any()

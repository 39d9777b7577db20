import pytest
import torch
import torch.nn.functional as F

from pixvox.ops.sampling import channels_last_table, corner_taps, multilinear_sampling

SIZES = [(5, 7), (3, 5, 4)]


def case(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 6, *size, generator=generator, dtype=dtype)
    spread = torch.tensor(size, dtype=dtype) + 3
    return features, torch.rand(11, len(size), generator=generator, dtype=dtype) * spread - 2


def grid_sample(features: torch.Tensor, coordinates: torch.Tensor, padding: str) -> torch.Tensor:
    dims = features.ndim - 2
    lengths = torch.tensor(features.shape[2:], dtype=coordinates.dtype)
    grid = (2 * coordinates + 1) / lengths - 1
    grid = grid.flip(-1).view(1, -1, *[1] * (dims - 1), dims)
    sampled = F.grid_sample(features, grid, padding_mode=padding, align_corners=False)
    return sampled.reshape(features.shape[1], -1).T


@pytest.mark.parametrize("backend", ["torch", "gather", "numba"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", SIZES)
def test_sampling_equals_grid_sample_in_value_and_gradients(size, padding, backend):
    features, coordinates = case(size)
    inputs = [features.clone().requires_grad_(), coordinates.clone().requires_grad_()]
    expected_inputs = [features.clone().requires_grad_(), coordinates.clone().requires_grad_()]
    index, weight = corner_taps(inputs[1], size, padding)
    value = multilinear_sampling(channels_last_table(inputs[0]), index, weight, backend)
    expected = grid_sample(*expected_inputs, padding)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    given = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    value.backward(given)
    expected.backward(given)
    for ours, theirs in zip(inputs, expected_inputs, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "gather", "numba"])
@pytest.mark.parametrize("size", SIZES)
def test_sampling_passes_gradcheck(size, backend):
    features, coordinates = case(size, torch.float64)

    def sample(features, coordinates):
        table = channels_last_table(features)
        return multilinear_sampling(table, *corner_taps(coordinates, size), backend)

    inputs = (features[:, :2].clone().requires_grad_(), coordinates[:4].clone().requires_grad_())
    assert torch.autograd.gradcheck(sample, inputs)


def test_gather_can_be_differentiated_twice():
    table = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 1], [5, 5], [2, 0]])
    assert torch.autograd.gradgradcheck(
        lambda t, w: multilinear_sampling(t, index, w, "gather"), (table, weight)
    )


def test_permuted_axes_give_the_same_samples():
    features, coordinates = case((3, 5, 4))
    plain = multilinear_sampling(channels_last_table(features), *corner_taps(coordinates, (3, 5, 4)))
    turned = features.permute(0, 1, 4, 2, 3)
    permuted = multilinear_sampling(
        channels_last_table(turned), *corner_taps(coordinates[:, [2, 0, 1]], (4, 3, 5))
    )
    torch.testing.assert_close(plain, permuted)


def test_one_slice_equals_2d():
    features, coordinates = case((5, 7))
    plain = multilinear_sampling(channels_last_table(features), *corner_taps(coordinates, (5, 7)))
    deep = F.pad(coordinates, (1, 0))
    sliced = multilinear_sampling(channels_last_table(features[:, :, None]), *corner_taps(deep, (1, 5, 7)))
    torch.testing.assert_close(plain, sliced)


@pytest.mark.parametrize("backend", ["auto", "torch", "gather"])
def test_autocast_keeps_coordinates_in_float32_and_takes_the_type_of_the_table(backend):
    features, coordinates = case((5, 7))
    coordinates = coordinates.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        index, weight = corner_taps(coordinates, (5, 7))
        value = multilinear_sampling(channels_last_table(features.bfloat16()), index, weight, backend)
    assert weight.dtype == torch.float32
    assert value.dtype == torch.bfloat16
    expected = grid_sample(features, coordinates, "zeros")
    torch.testing.assert_close(value.float(), expected, rtol=0.05, atol=0.05)
    value.sum().backward()
    assert coordinates.grad.isfinite().all()


def test_half_precision_coordinates_are_lifted():
    _, weight = corner_taps(torch.tensor([[300.5, 300.25]], dtype=torch.float16), (512, 512))
    assert weight.dtype == torch.float32


def test_export_takes_the_gather_form_and_gives_the_same_values():
    class Sample(torch.nn.Module):
        def forward(self, features, coordinates):
            return multilinear_sampling(channels_last_table(features), *corner_taps(coordinates, (5, 7)))

    features, coordinates = case((5, 7))
    program = torch.export.export(Sample(), (features, coordinates))
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("embedding_bag" in name for name in names)
    torch.testing.assert_close(program.module()(features, coordinates), Sample()(features, coordinates))


def test_no_samples_give_zero_gradients_of_every_input():
    table = torch.randn(6, 2, requires_grad=True)
    weight = torch.zeros(0, 4, requires_grad=True)
    value = multilinear_sampling(table, torch.zeros(0, 4, dtype=torch.int64), weight)
    assert value.shape == (0, 2)
    value.sum().backward()
    assert torch.equal(table.grad, torch.zeros(6, 2))


def test_several_threads_of_the_compiled_backward_agree_with_one():
    table, weight = torch.randn(40, 8, requires_grad=True), torch.rand(30, 4, requires_grad=True)
    index = torch.randint(0, 40, (30, 4), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    gradients = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            value = multilinear_sampling(table, index, weight, "numba").square().sum()
            gradients.append(torch.autograd.grad(value, (table, weight)))
    finally:
        torch.set_num_threads(threads)
    for one, many in zip(*gradients, strict=True):
        torch.testing.assert_close(one, many)


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="gather"):
        multilinear_sampling(torch.ones(2, 1), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), "cuda")
    with pytest.raises(ValueError, match='backend="torch"'):
        multilinear_sampling(
            torch.ones(2, 1, dtype=torch.bfloat16), torch.zeros(1, 1).long(), torch.ones(1, 1), "numba"
        )
    with pytest.raises(ValueError, match="border"):
        corner_taps(torch.zeros(1, 2), (4, 4), "reflection")
    with pytest.raises(ValueError, match="2 axes"):
        corner_taps(torch.zeros(1, 2), (4, 4, 4))


def test_without_numba_everything_takes_the_stock_operator(monkeypatch):
    from pixvox.ops import sampling

    monkeypatch.setattr(sampling, "has_numba", lambda: False)
    weight = torch.ones(1, 1, requires_grad=True)
    assert multilinear_sampling(torch.ones(2, 1), torch.zeros(1, 1).long(), weight).item() == 1
    with pytest.raises(ValueError, match="pip install numba"):
        multilinear_sampling(torch.ones(2, 1), torch.zeros(1, 1).long(), weight, "numba")

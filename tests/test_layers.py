import pytest
import torch

from pixvox.layers import ConvNormAct, conv, norm, per_axis, resize


@pytest.mark.parametrize("size", [(9, 14), (5, 9, 14)])
def test_stride_one_keeps_odd_and_even_sizes(size):
    x = torch.zeros(1, 2, *size)
    assert conv(len(size), 2, 3, kernel_size=5, dilation=2)(x).shape[2:] == size


def test_per_axis_refuses_another_number_of_axes():
    with pytest.raises(ValueError, match=r"stride must be one number or 3 .* got \[1, 2\]"):
        per_axis((1, 2), 3, "stride")


def test_unknown_norm_lists_the_known_ones():
    with pytest.raises(ValueError, match="'batch', 'group'"):
        norm("bach", 2, 4)


def test_group_norm_groups_divide_the_channels():
    assert norm("group", 3, 48)(torch.zeros(1, 48, 2, 2, 2)).shape[1] == 48


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
def test_channel_norm_looks_at_the_channels_of_each_pixel_alone(size):
    x = torch.randn(2, 6, *size)
    normalised = norm("channel", len(size), 6)(x)
    assert torch.allclose(normalised.mean(dim=1), torch.zeros(2, *size), atol=1e-6)
    moved = x.clone()
    moved[..., 0] += 1.0 + torch.arange(6.0).reshape(6, *[1] * (len(size) - 1))
    assert torch.equal(norm("channel", len(size), 6)(moved)[..., 1:], normalised[..., 1:])


def test_convolution_has_a_bias_only_without_norm():
    assert ConvNormAct(2, 1, 2, norm_name="batch")[0].bias is None
    assert ConvNormAct(2, 1, 2, norm_name="none")[0].bias is not None


@pytest.mark.parametrize("dims", [2, 3])
def test_resize_to_the_same_size_is_identity(dims):
    x = torch.randn(1, 2, *range(3, 3 + dims))
    assert resize(x, x.shape[2:]) is x


@pytest.mark.parametrize("dims", [2, 3])
def test_instance_norm_of_a_single_pixel_is_its_bias_and_of_more_torchs(dims):
    layer = norm("instance", dims, 3)
    reference = {2: torch.nn.InstanceNorm2d, 3: torch.nn.InstanceNorm3d}[dims](3, affine=True)
    torch.nn.init.normal_(layer.bias)
    torch.nn.init.normal_(layer.weight)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, *(4,) * dims)
    assert torch.equal(layer(x), reference(x))
    one = torch.randn(2, 3, *(1,) * dims, requires_grad=True)
    out = layer(one)
    assert torch.equal(out.flatten(1), layer.bias.expand(2, 3))
    # Two equal pixels have the same answer, which torch gives.
    torch.testing.assert_close(out, reference(one.repeat_interleave(2, 2))[:, :, :1], atol=1e-3, rtol=0)
    out.sum().backward()
    assert not one.grad.any() and not layer.weight.grad.any() and layer.bias.grad.eq(2).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norm_learns_from_one_value_by_running_statistics_and_from_more_as_torchs(dims):
    layer = norm("batch", dims, 3)
    reference = {2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}[dims](3)
    for x in (torch.randn(1, 3, *(4,) * dims), torch.randn(2, 3, *(1,) * dims)):
        assert torch.equal(layer(x), reference(x))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    one = torch.randn(1, 3, *(1,) * dims, requires_grad=True)
    out = layer(one)
    assert torch.equal(out, reference.eval()(one))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    out.sum().backward()
    assert one.grad.ne(0).all() and layer.weight.grad.ne(0).all()

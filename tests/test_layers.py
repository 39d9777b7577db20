import pytest
import torch
from torch import nn

from pixvox.layers import ConvNormAct, conv, lift_to_3d, norm, per_axis, resize


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


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
        nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(4, 3, 1),
    ).eval()


@pytest.mark.parametrize("depth_stride", [1, 2])
def test_lifted_network_on_one_slice_equals_the_2d_network(depth_stride):
    x = torch.randn(2, 2, 19, 26)
    expected = _network()(x)
    lifted = lift_to_3d(_network(), depth_stride=depth_stride).eval()
    assert torch.allclose(lifted(x[:, :, None])[:, :, 0], expected, atol=1e-6)


def test_lifted_network_on_equal_slices_equals_the_2d_network_on_each():
    x = torch.randn(1, 2, 19, 26)
    expected = _network()(x)
    lifted = lift_to_3d(_network(), depth_stride=1).eval()
    out = lifted(x[:, :, None].expand(-1, -1, 5, -1, -1))
    assert out.shape[2] == 5
    assert torch.allclose(out, expected[:, :, None].expand_as(out), atol=1e-6)


def test_lifting_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="AdaptiveAvgPool2d has no 3-D twin"):
        lift_to_3d(nn.Sequential(nn.AdaptiveAvgPool2d(1)))

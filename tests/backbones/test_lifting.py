import pytest
import timm
import torch
from torch import nn

from pixvox.backbones.lifting import lift_to_3d
from small_backbones import randomised


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


@pytest.mark.parametrize("depth_strides", [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_lifted_network_on_one_slice_equals_the_2d_network(depth_strides):
    x = torch.randn(2, 2, 24, 32)
    expected = _network()(x)
    lifted = lift_to_3d(_network(), 2, depth_strides).eval()
    assert torch.allclose(lifted(x[:, :, None])[:, :, 0], expected, atol=1e-6)


def test_lifted_network_on_equal_slices_equals_the_2d_network_on_each():
    x = torch.randn(1, 2, 24, 32)
    expected = _network()(x)
    lifted = lift_to_3d(_network(), 2, (1, 1, 1)).eval()
    out = lifted(x[:, :, None].expand(-1, -1, 5, -1, -1))
    assert out.shape[2] == 5
    assert torch.allclose(out, expected[:, :, None].expand_as(out), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        *((name, 32) for name in ("convnext_atto", "convnextv2_atto", "repvgg_a0", "mobilenetv3_small_050",
                                  "vgg11_bn", "xception41", "efficientnet_b0", "hgnetv2_b0", "hgnet_tiny",
                                  "seresnet18", "densenet121", "resnet18d", "tf_efficientnet_b0")),
        ("convnext_atto", 16),
        ("convnextv2_atto", 8),
    ],
)  # fmt: skip
def test_networks_of_timm_keep_their_maps_on_one_slice_and_on_equal_slices(name, output_stride):
    options = {} if output_stride == 32 else {"output_stride": output_stride}
    plane = randomised(
        timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(-2, -1), **options)
    )
    image = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plane(image)
        volume = lift_to_3d(plane, 3, (1, 2, 1, 2, 2)).eval()
        one, equal = volume(image[:, :, None]), volume(image[:, :, None].expand(-1, -1, 8, -1, -1))
    for level, flat, deep in zip(expected, one, equal, strict=True):
        scale = level.abs().max()
        assert (flat[:, :, 0] - level).abs().max() <= 1e-5 * scale
        assert (deep - level[:, :, None]).abs().max() <= 1e-5 * scale


def test_strides_and_kernels_along_depth_are_those_asked_for():
    network = timm.create_model("convnext_atto", features_only=True, feature_cls="getter")
    lifted = lift_to_3d(network, 3, (1, 2, 1, 2, 2), (1, 1, 3, 7, 3)).model
    assert lifted.stem[0].stride == lifted.stem[0].kernel_size == (2, 4, 4)
    assert [stage.downsample[1].stride for stage in lifted.stages[1:]] == [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
    kernels = [stage.blocks[0].conv_dw.kernel_size for stage in lifted.stages]
    assert kernels == [(1, 7, 7), (3, 7, 7), (7, 7, 7), (3, 7, 7)]


@pytest.mark.parametrize(
    ("network", "strides", "kernels", "message"),
    [
        (nn.Sequential(nn.AdaptiveAvgPool2d(1)), (), None, r"AdaptiveAvgPool2d \(0\) has no twin"),
        (
            nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")),
            (),
            None,
            "Conv2d with padding='same' has no twin",
        ),
        (_network(), (2, 2), None, r"one entry for each of 3 halvings of the plane, got \[2, 2\]"),
        (_network(), (2, 2, 2), (1, 3), r"as many entries as depth_strides, 3, got \[1, 3\]"),
    ],
)
def test_what_has_no_twin_is_refused(network, strides, kernels, message):
    with pytest.raises(ValueError, match=message):
        lift_to_3d(network, 2, strides, kernels)

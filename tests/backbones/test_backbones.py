import pytest
import torch
from torchvision.models import resnet18

from pixvox.backbones.simple import Simple
from pixvox.backbones.timm_backbone import TimmBackbone


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: Simple(2, 3, (4, 8, 8, 16)), (64, 96)),
        (lambda: Simple(3, 1, (4, 8, 8), ((1, 2, 2), (2, 4, 4), (4, 8, 8))), (8, 16, 24)),
        (lambda: Simple(2, 1, (4, 8), (1, 2), blocks=2, norm="group"), (10, 14)),
        (lambda: TimmBackbone("resnet18", 2, 1), (64, 96)),
        (lambda: TimmBackbone("resnet18", 2, 3, out_levels=(1, 2, 5), output_stride=8), (64, 96)),
        (lambda: TimmBackbone("resnet18", 3, 2, depth_strides=(1, 1, 2, 2, 2)), (8, 32, 64)),
        (lambda: TimmBackbone("resnet18", 3, 1), (32, 32, 64)),
    ],
)
def test_levels_have_the_declared_channels_and_strides(build, size):
    backbone = build().eval()
    levels = backbone(torch.zeros(1, backbone.in_channels, *size))
    for level, channels, stride in zip(levels, backbone.channels, backbone.strides, strict=True):
        assert level.shape[1] == channels
        assert tuple(level.shape[2:]) == tuple(n // s for n, s in zip(size, stride, strict=True))


def test_resnet_equals_torchvisions_with_its_weights():
    reference = resnet18(weights=None).eval()
    ours = TimmBackbone("resnet18").eval()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc")}
    ours.network.load_state_dict(state)
    x = torch.randn(1, 3, 61, 83)
    expected = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
    for i, level in enumerate(ours(x)):
        expected = getattr(reference, f"layer{i + 1}")(expected)
        assert torch.allclose(level, expected, atol=1e-5)


def test_volume_of_one_slice_equals_the_image():
    plane = TimmBackbone("resnet18", 2, 1).eval()
    volume = TimmBackbone("resnet18", 3, 1).eval()
    lifted = {}
    for key, value in plane.state_dict().items():
        own = volume.state_dict()[key]
        if own.dim() == 5:
            inflated = torch.zeros_like(own)
            inflated[:, :, own.shape[2] // 2] = value
            value = inflated
        lifted[key] = value
    volume.load_state_dict(lifted)
    x = torch.randn(1, 1, 45, 64)
    for flat, deep in zip(plane(x), volume(x[:, :, None]), strict=True):
        assert torch.allclose(deep[:, :, 0], flat, atol=1e-5)


def test_frozen_levels_keep_weights_and_statistics():
    backbone = TimmBackbone("resnet18", freeze=2).train()
    assert not backbone.network.conv1.weight.requires_grad
    assert not backbone.network.layer1[0].conv1.weight.requires_grad
    assert backbone.network.layer2[0].conv1.weight.requires_grad
    before = backbone.network.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 32, 32) + 5)
    assert torch.equal(backbone.network.bn1.running_mean, before)


def test_simple_refuses_strides_that_do_not_nest():
    with pytest.raises(ValueError, match=r"stride \(6, 6\) is not a multiple"):
        Simple(2, 1, (4, 4), (4, 6))


def test_simple_refuses_another_number_of_strides():
    with pytest.raises(ValueError, match="3 channels but 2 strides"):
        Simple(2, 1, (4, 4, 4), (4, 8))

import pytest
import torch
from torchvision.models import mobilenet_v3_small

from pixvox.backbones.mobilenet_v3 import MobileNetV3
from pixvox.errors import WeightsError


def test_levels_are_torchvisions_at_any_size_and_its_weights_load(tmp_path):
    torch.manual_seed(0)
    reference = mobilenet_v3_small(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "small.pth")
    backbone = MobileNetV3("small", pretrained=str(tmp_path / "small.pth"), out_levels=(1, 2, 3, 4, 5)).eval()
    images = torch.rand(1, 3, 61, 83)
    with torch.no_grad():
        levels = backbone(images)
        assert torch.equal(levels[-1], reference.features(images))
    assert backbone.strides == tuple((2**level, 2**level) for level in range(1, 6))
    for level, stride, channels in zip(levels, backbone.strides, backbone.channels, strict=True):
        assert level.shape[1:] == (channels, -(-61 // stride[0]), -(-83 // stride[1]))
    grey = MobileNetV3("small", in_channels=1, pretrained=str(tmp_path / "small.pth")).eval()
    with torch.no_grad():
        expected = backbone(images[:, :1].expand(-1, 3, -1, -1))[1]
        assert torch.allclose(grey(images[:, :1])[0], expected, atol=1e-5)


def test_what_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="variant must be one of large, small, got 'tiny'"):
        MobileNetV3("tiny")
    with pytest.raises(ValueError, match=r"out_levels=\[0, 5\]: there are levels 1 to 5"):
        MobileNetV3("small", out_levels=(0, 5))
    with pytest.raises(ValueError, match=r"MobileNetV3 exists for spatial_dims in \(2,\), got 3"):
        MobileNetV3("small", spatial_dims=3)
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match="other.pth: these are not the weights of torchvision's mobilenet_v3_small"
    ):
        MobileNetV3("small", pretrained=str(tmp_path / "other.pth"))

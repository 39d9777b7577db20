from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pixvox.necks.fpn import FPN

CHANNELS = (4, 8, 12)


def _reference(fpn: FPN, channels) -> FeaturePyramidNetwork:
    reference = FeaturePyramidNetwork(channels, 6, extra_blocks=LastLevelMaxPool())
    for ours, theirs in ((fpn.lateral, reference.inner_blocks), (fpn.output, reference.layer_blocks)):
        for own, other in zip(ours, theirs, strict=True):
            other[0].load_state_dict(own.state_dict())
    return reference


def test_equals_torchvisions_on_odd_sizes():
    fpn = FPN(CHANNELS, ((4, 4), (8, 8), (16, 16)), out_channels=6)
    levels = [torch.randn(2, c, *s) for c, s in zip(CHANNELS, ((13, 21), (7, 11), (4, 6)), strict=True)]
    expected = _reference(fpn, CHANNELS)(OrderedDict((str(i), level) for i, level in enumerate(levels)))
    for ours, theirs in zip(fpn(levels), expected.values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def _volume_levels(depths):
    planes = ((13, 21), (7, 11), (4, 6))
    return [torch.randn(2, c, d, *plane) for c, d, plane in zip(CHANNELS, depths, planes, strict=True)]


def _weights(fpn, change):
    """Return the state of ``fpn`` with every weight of a convolution changed."""
    return {name: change(value) if value.dim() > 1 else value for name, value in fpn.state_dict().items()}


def test_one_slice_of_a_volume_equals_an_image_with_the_centre_of_the_kernels():
    volume = FPN(CHANNELS, ((1, 4, 4), (1, 8, 8), (1, 16, 16)), spatial_dims=3, out_channels=6)
    image = FPN(CHANNELS, ((4, 4), (8, 8), (16, 16)), out_channels=6)
    image.load_state_dict(_weights(volume, lambda w: w[:, :, w.shape[2] // 2]))
    levels = _volume_levels((1, 1, 1))
    expected = image([level[:, :, 0] for level in levels])
    for ours, theirs in zip(volume(levels), expected, strict=True):
        assert torch.allclose(ours[:, :, 0], theirs, atol=1e-6)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_permuted_axes_permute_the_pyramid(order):
    axes = (0, 1, *(axis + 2 for axis in order))
    strides = ((2, 4, 4), (4, 8, 8), (8, 16, 16))
    fpn = FPN(CHANNELS, strides, spatial_dims=3, out_channels=6)
    turned = FPN(CHANNELS, [[s[axis] for axis in order] for s in strides], spatial_dims=3, out_channels=6)
    turned.load_state_dict(_weights(fpn, lambda w: w.permute(axes)))
    levels = _volume_levels((9, 5, 3))
    outputs = turned([level.permute(axes) for level in levels])
    for ours, theirs in zip(outputs, fpn(levels), strict=True):
        assert torch.allclose(ours, theirs.permute(axes), atol=1e-5)
    assert turned.strides == tuple(tuple(s[axis] for axis in order) for s in fpn.strides)


@pytest.mark.parametrize("extra", [False, True])
def test_tells_its_levels(extra):
    fpn = FPN((4, 8), ((1, 2, 2), (2, 4, 4)), spatial_dims=3, out_channels=6, extra_level=extra)
    out = fpn((torch.zeros(1, 4, 4, 8, 12), torch.zeros(1, 8, 2, 4, 6)))
    assert len(out) == len(fpn.channels) == len(fpn.strides) == 2 + extra
    assert fpn.strides[-1] == ((4, 8, 8) if extra else (2, 4, 4))

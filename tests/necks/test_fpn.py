from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pixvox.necks.fpn import FPN


def _reference(fpn: FPN, channels) -> FeaturePyramidNetwork:
    reference = FeaturePyramidNetwork(channels, 6, extra_blocks=LastLevelMaxPool())
    for ours, theirs in ((fpn.lateral, reference.inner_blocks), (fpn.output, reference.layer_blocks)):
        for own, other in zip(ours, theirs, strict=True):
            other[0].load_state_dict(own.state_dict())
    return reference


def test_equals_torchvisions_on_odd_sizes():
    channels = (4, 8, 12)
    fpn = FPN(channels, ((4, 4), (8, 8), (16, 16)), out_channels=6)
    levels = [torch.randn(2, c, *s) for c, s in zip(channels, ((13, 21), (7, 11), (4, 6)), strict=True)]
    expected = _reference(fpn, channels)(OrderedDict((str(i), level) for i, level in enumerate(levels)))
    for ours, theirs in zip(fpn(levels), expected.values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("extra", [False, True])
def test_tells_its_levels(extra):
    fpn = FPN((4, 8), ((1, 2, 2), (2, 4, 4)), spatial_dims=3, out_channels=6, extra_level=extra)
    out = fpn((torch.zeros(1, 4, 4, 8, 12), torch.zeros(1, 8, 2, 4, 6)))
    assert len(out) == len(fpn.channels) == len(fpn.strides) == 2 + extra
    assert fpn.strides[-1] == ((4, 8, 8) if extra else (2, 4, 4))

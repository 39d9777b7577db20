import pytest
import torch
import torch.nn.functional as F

from pixvox.models import create_model
from pixvox.necks.concat_fpn import ConcatFPN

CHANNELS = (4, 8, 12)
PLANES = ((13, 21), (7, 11), (4, 6))


def _neck(dims, strides=(4, 8, 16), seed=0):
    torch.manual_seed(seed)
    per_axis = [(s,) * dims if isinstance(s, int) else s for s in strides]
    neck = ConcatFPN(CHANNELS, per_axis, dims, out_channels=5, coarsest_channels=7)
    state = neck.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and value.dim() == 1:
            state[name] = 0.5 + torch.rand(value.shape)
    neck.load_state_dict(state)
    return neck.eval()


def _levels(depths=None):
    generator = torch.Generator().manual_seed(1)
    sizes = PLANES if depths is None else [(d, *plane) for d, plane in zip(depths, PLANES, strict=True)]
    return [torch.randn(2, c, *size, generator=generator) for c, size in zip(CHANNELS, sizes, strict=True)]


def test_the_coarser_map_is_upsampled_and_concatenated():
    neck, levels = _neck(2), _levels()
    p5 = neck.mix[2](levels[2])
    p4 = neck.mix[1](torch.cat([levels[1], F.interpolate(p5, PLANES[1])], 1))
    p3 = neck.mix[0](torch.cat([levels[0], F.interpolate(p4, PLANES[0])], 1))
    for own, expected in zip(neck(levels), (p3, p4, p5), strict=True):
        assert torch.allclose(own, expected, atol=1e-6)


def test_darknet_gets_the_channels_256_256_512():
    with torch.device("meta"):
        neck = create_model(head="fcn", backbone="darknet18", neck="concat_fpn", num_classes=2).neck
    assert neck.channels == (256, 256, 512)
    assert neck.strides == ((8, 8), (16, 16), (32, 32))


def test_one_level_is_convolved():
    neck = ConcatFPN((4,), ((8, 8),), coarsest_channels=6)
    assert [tuple(level.shape) for level in neck([torch.zeros(2, 4, 5, 3)])] == [(2, 6, 5, 3)]


def test_one_slice_of_a_volume_equals_an_image():
    flat, deep = _neck(2), _neck(3, ((1, 4, 4), (1, 8, 8), (1, 16, 16)))
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        if value.dim() == 4:
            state[name].zero_()[:, :, state[name].shape[2] // 2] = value
        else:
            state[name] = value
    deep.load_state_dict(state)
    for own, expected in zip(deep([x[:, :, None] for x in _levels()]), flat(_levels()), strict=True):
        assert torch.allclose(own[:, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_permuted_axes_permute_the_pyramid(order):
    axes = (0, 1, *(axis + 2 for axis in order))
    neck, turned = _neck(3), _neck(3, seed=1)
    turned.load_state_dict({k: v.permute(axes) if v.dim() == 5 else v for k, v in neck.state_dict().items()})
    levels = _levels((9, 5, 3))
    for own, expected in zip(turned([x.permute(axes) for x in levels]), neck(levels), strict=True):
        assert torch.allclose(own, expected.permute(axes), atol=1e-5)


def test_every_weight_learns():
    neck = _neck(3)
    sum(level.square().mean() for level in neck(_levels((9, 5, 3)))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())

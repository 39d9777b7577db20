import pytest
import torch
import torch.nn.functional as F

from pixvox.necks.panet import PANet

CHANNELS = (4, 8, 12)
PLANES = ((13, 21), (7, 11), (4, 6))


def _neck(dims, strides=(4, 8, 16), seed=0):
    torch.manual_seed(seed)
    return PANet(
        CHANNELS, [(s,) * dims if isinstance(s, int) else s for s in strides], dims, out_channels=6
    ).eval()


def _levels(depths=None):
    generator = torch.Generator().manual_seed(1)
    sizes = PLANES if depths is None else [(d, *plane) for d, plane in zip(depths, PLANES, strict=True)]
    return [torch.randn(2, c, *size, generator=generator) for c, size in zip(CHANNELS, sizes, strict=True)]


def test_levels_are_made_smaller_added_and_convolved():
    neck, levels = _neck(2), _levels()

    def by(name, x, **options):
        layer = neck.get_submodule(name)
        return F.conv2d(x, layer.weight, layer.bias, **options)

    m5 = by("lateral.2", levels[2])
    m4 = by("lateral.1", levels[1]) + F.interpolate(m5, PLANES[1])
    m3 = by("lateral.0", levels[0]) + F.interpolate(m4, PLANES[0])
    p3, p4, p5 = (by(f"output.{i}", m, padding=1) for i, m in enumerate((m3, m4, m5)))
    s4 = p4 + by("down.0", p3, stride=2, padding=1)
    s5 = p5 + by("down.1", s4, stride=2, padding=1)
    expected = [p3, by("mix.0", s4, padding=1), by("mix.1", s5, padding=1)]
    given = neck(levels)
    for own, reference in zip(given, expected, strict=False):
        assert torch.allclose(own, reference, atol=1e-5)
    assert torch.equal(given[3], given[2][..., ::2, ::2]) and neck.strides[3] == (32, 32)


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

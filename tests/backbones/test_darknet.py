from types import SimpleNamespace

import pytest
import timm
import torch

from pixvox.backbones.darknet import DARKNET53, DarkNet
from pixvox.models import create_model

SMALL = {"depths": (1, 1, 2, 1, 1), "width": 4}


def _wide_random(module, seed=0):
    """Make every weight and statistic count: scales, biases, means and variances are away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        fan = value[0].numel() if value.dim() > 1 else 1
        state[name] = 0.5 + noise.abs() if "running_var" in name else noise * (2 / fan) ** 0.5
    module.load_state_dict(state)
    return module.eval()


@pytest.fixture(scope="module")
def reference():
    return _wide_random(timm.create_model("darknet53", features_only=True))


def _state_of(reference):
    """The state under the names of the whole network: the extractor numbers the stages in its own way."""
    whole = timm.create_model("darknet53", num_classes=0).state_dict()
    return dict(zip(whole, reference.state_dict().values(), strict=True))


def test_darknet53_equals_timms_on_every_level_of_an_odd_size(reference):
    ours = DarkNet(out_levels=(0, 1, 2, 3, 4, 5)).eval()
    ours.load_timm(_state_of(reference))
    x = torch.randn(1, 3, 61, 83, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for own, expected in zip(ours(x), reference(x), strict=True):
            assert own.shape == expected.shape
            assert (own - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_pretrained_takes_timms_weights_with_the_channels_of_the_images(monkeypatch):
    asked = {}

    def create(name, pretrained, in_chans):
        asked.update(name=name, pretrained=pretrained, in_chans=in_chans)
        return SimpleNamespace(state_dict=network.state_dict)

    network = timm.create_model("darknet53", num_classes=7, in_chans=1)
    monkeypatch.setattr("timm.create_model", create)
    ours = DarkNet(in_channels=1, pretrained=True)
    assert asked == {"name": "darknet53", "pretrained": True, "in_chans": 1}
    assert torch.equal(ours.stem[0].weight, network.stem.conv1.conv.weight)
    assert torch.equal(
        ours.stages[4].blocks[3].conv2[0].weight, network.stages[4].blocks[3].conv2.conv.weight
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": True, **SMALL}, "there are weights for darknet53"),
        ({"depths": (1, 2)}, "depths needs one entry for each of the 5 stages"),
        ({"depth_strides": (1, 2)}, "depth_strides needs one entry"),
        ({"out_levels": (3, 6)}, "out_levels are numbers from 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DarkNet(**options)


def test_weights_of_another_network_are_refused():
    state = timm.create_model("darknet17", num_classes=0).state_dict()
    with pytest.raises(ValueError, match="lack .* entries, the first is stages"):
        DarkNet().load_timm(state)
    with pytest.raises(ValueError, match=r"stem.0.weight: timm's weight has shape \(32, 3, 3, 3\)"):
        DarkNet(in_channels=1, depths=(1, 1, 1, 1, 1)).load_timm(state)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: DarkNet(2, 3, **SMALL), (64, 96)),
        (lambda: DarkNet(2, 1, **SMALL, out_levels=(0, 2, 4)), (32, 48)),
        (lambda: DarkNet(3, 2, **SMALL, depth_strides=(1, 1, 2, 2, 1)), (8, 32, 64)),
        (lambda: DarkNet(3, 1, **SMALL, norm="group"), (32, 32, 64)),
    ],
)
def test_levels_have_the_declared_channels_and_strides(build, size):
    backbone = build()
    levels = backbone(torch.randn(2, backbone.in_channels, *size))
    for level, channels, stride in zip(levels, backbone.channels, backbone.strides, strict=True):
        assert level.shape[1] == channels
        assert tuple(level.shape[2:]) == tuple(n // s for n, s in zip(size, stride, strict=True))
    sum(level.square().mean() for level in levels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_darknet53_gives_256_512_and_1024_channels_at_strides_8_16_and_32():
    with torch.device("meta"):
        backbone = DarkNet()
    assert backbone.channels == (256, 512, 1024)
    assert backbone.strides == ((8, 8), (16, 16), (32, 32))
    assert len(backbone.blocks()) == sum(DARKNET53) + 5


@pytest.mark.parametrize(("name", "blocks"), [("18", 7), ("21", 8), ("24", 9), ("53", 23)])
def test_each_configuration_builds_its_depth(name, blocks):
    with torch.device("meta"):
        backbone = create_model(backbone=f"darknet{name}", head="fcn", num_classes=2).backbone
    assert len(backbone.blocks()) == blocks + 5
    assert backbone.strides == ((8, 8), (16, 16), (32, 32))


def test_coarser_stages_that_no_level_needs_are_not_built():
    assert len(DarkNet(**SMALL, out_levels=(1, 3)).stages) == 3


def test_volume_of_one_slice_equals_the_image():
    plane, volume = _wide_random(DarkNet(2, 1, **SMALL)), DarkNet(3, 1, **SMALL).eval()
    volume.load_timm(plane.state_dict())  # our names are accepted too, and the kernels centred
    x = torch.randn(1, 1, 45, 64)
    for flat, deep in zip(plane(x), volume(x[:, :, None]), strict=True):
        assert torch.allclose(deep[:, :, 0], flat, atol=1e-5 * flat.detach().abs().max().item())


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_permuted_axes_permute_the_levels(order):
    axes = (0, 1, *(axis + 2 for axis in order))
    backbone = _wide_random(DarkNet(3, 1, **SMALL))
    turned = DarkNet(3, 1, **SMALL).eval()
    turned.load_state_dict(
        {k: v.permute(axes) if v.dim() == 5 else v for k, v in backbone.state_dict().items()}
    )
    x = torch.randn(1, 1, 32, 40, 51)
    for own, expected in zip(turned(x.permute(axes)), backbone(x), strict=True):
        expected = expected.permute(axes)
        assert torch.allclose(own, expected, atol=1e-5 * expected.detach().abs().max().item())

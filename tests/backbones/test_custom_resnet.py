import os

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from pixvox.backbones.custom_resnet import CustomResNet
from pixvox.backbones.timm_backbone import TimmBackbone
from pixvox.errors import WeightsError
from pixvox.weights.backbones import resnet_from_detectron2, resnet_from_timm, resnet_from_transformers
from small_backbones import randomised

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.mark.parametrize(
    ("kind", "stem", "widths", "depths", "early", "in_1x1", "size"),
    [
        ("basic", 6, [8, 12, 16], [2, 1, 2], False, False, (45, 70)),
        ("bottleneck", 8, [16, 24, 32, 40], [1, 2, 1, 1], False, False, (64, 97)),
        ("bottleneck", 4, [8, 16], [2, 2], True, True, (61, 48)),
    ],
)
def test_equals_transformers_with_its_weights(kind, stem, widths, depths, early, in_1x1, size):
    from transformers import ResNetBackbone, ResNetConfig

    stages = list(range(1, len(widths) + 1))
    theirs = randomised(ResNetBackbone(ResNetConfig(
        embedding_size=stem, hidden_sizes=widths, depths=depths, layer_type=kind, downsample_in_first_stage=early,
        downsample_in_bottleneck=in_1x1, out_features=[f"stage{stage}" for stage in stages],
    )))  # fmt: skip
    ours = CustomResNet(2, 3, stem, widths, depths, kind, None, early, in_1x1).eval()
    ours.load_state_dict(resnet_from_transformers(theirs.state_dict()))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(images).feature_maps
        levels = ours(images)
    for level, reference in zip(levels, expected, strict=True):
        assert level.shape == reference.shape
        assert (level - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_usual_widths_have_the_names_and_values_of_resnet():
    reference = resnet18(weights=None)
    depths = [len(getattr(reference, f"layer{stage}")) for stage in (1, 2, 3, 4)]
    custom = CustomResNet(2, 3, 64, (64, 128, 256, 512), depths, "basic").eval()
    usual = TimmBackbone("resnet18").eval()
    for backbone in (custom, usual):
        backbone.load_state_dict(resnet_from_timm(reference.state_dict()))
    images = torch.randn(1, 3, 39, 64)
    for ours, theirs in zip(custom(images), usual(images), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def detectron2_names(state):
    """Write torchvision's names as detectron2 does."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        name = key.removeprefix("network.")
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}.", f"res{stage + 1}.")
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        for i in (1, 2, 3):
            name = name.replace(f"bn{i}.", f"conv{i}.norm.")
        renamed[f"stem.{name}" if name.startswith("conv1") else name] = value
    return renamed


def test_detectron2s_weights_load_completely():
    source = randomised(CustomResNet(2, 3, 4, (8, 16), (1, 2), "bottleneck"))
    state = detectron2_names(source.state_dict())
    assert "stem.conv1.norm.running_var" in state and "res2.0.shortcut.norm.weight" in state
    target = CustomResNet(2, 3, 4, (8, 16), (1, 2), "bottleneck", freeze_norms=True).train()
    target.load_state_dict(resnet_from_detectron2(state))
    images = torch.randn(1, 3, 32, 40)
    for ours, theirs in zip(target(images), source(images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("convert", [resnet_from_detectron2, resnet_from_transformers, resnet_from_timm])
def test_an_unknown_key_is_named(convert):
    with pytest.raises(WeightsError, match=r"layer9\.strange\.weight"):
        convert({"layer9.strange.weight": torch.zeros(1)})


def test_volume_of_one_slice_equals_the_image():
    plane = randomised(CustomResNet(2, 2, 4, (8, 12), (1, 2), "bottleneck"))
    volume = CustomResNet(3, 2, 4, (8, 12), (1, 2), "bottleneck").eval()
    lifted = {}
    for key, value in plane.state_dict().items():
        own = volume.state_dict()[key]
        if own.dim() == 5:
            value = torch.zeros_like(own).index_copy_(2, torch.tensor([own.shape[2] // 2]), value[:, :, None])
        lifted[key] = value
    volume.load_state_dict(lifted)
    x = torch.randn(1, 2, 45, 64)
    for flat, deep in zip(plane(x), volume(x[:, :, None]), strict=True):
        assert torch.allclose(deep[:, :, 0], flat, atol=1e-5)


def test_permuted_axes_permute_the_maps():
    backbone = randomised(CustomResNet(3, 1, 4, (8, 12), (1, 1), "basic", (1, 2, 3)))
    x = torch.randn(1, 1, 16, 24, 33)
    expected = [level.permute(0, 1, 4, 2, 3) for level in backbone(x)]
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() == 5:
                parameter.copy_(parameter.permute(0, 1, 4, 2, 3).clone())
    for level, reference in zip(backbone(x.permute(0, 1, 4, 2, 3)), expected, strict=True):
        assert torch.allclose(level, reference, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_have_the_declared_channels_and_strides(dims):
    backbone = CustomResNet(dims, 1, 4, (8, 12), (1, 1), "basic", (1, 3, 4), stride_in_first_stage=True,
                            depth_strides=(1, 2, 1, 2))  # fmt: skip
    size = (8, 32, 48)[-dims:]
    levels = backbone(torch.randn(2, 1, *size))
    for level, channels, stride in zip(levels, backbone.channels, backbone.strides, strict=True):
        assert tuple(level.shape[1:]) == (channels, *(n // s for n, s in zip(size, stride, strict=True)))
    sum(level.sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("kind", [TimmBackbone, CustomResNet])
def test_frozen_norms_keep_weights_and_statistics(kind):
    small = {"channels": (8,), "depths": (1,)} if kind is CustomResNet else {"name": "resnet18"}
    backbone = kind(**small, freeze_norms=True).train()
    norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [part.running_mean.clone() for part in norms]
    backbone(torch.randn(2, 3, 32, 32) + 5)
    assert all(torch.equal(part.running_mean, mean) for part, mean in zip(norms, before, strict=True))
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert all("conv" in name or "downsample.0" in name for name in trained) and trained


def test_striding_in_1x1_moves_the_stride():
    network = CustomResNet(channels=(8, 8), depths=(1, 2), stride_in_1x1=True).network
    assert (network.layer2[0].conv1.stride, network.layer2[0].conv2.stride) == ((2, 2), (1, 1))
    assert (network.layer2[1].conv1.stride, network.layer1[0].conv2.stride) == ((1, 1), (1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 2)}, "one entry per stage each"),
        ({"block": "bottle"}, "block must be 'basic' or 'bottleneck', got 'bottle'"),
        ({"out_levels": (6,)}, r"out_levels must be of \[1, 2, 3, 4, 5\], got \[6\]"),
        ({"freeze": 6}, "freeze=6: it is a level from 1 to 5"),
        ({"spatial_dims": 3, "depth_strides": (1, 2)}, "one entry for each of"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        CustomResNet(**{"channels": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "block": "basic", **options})

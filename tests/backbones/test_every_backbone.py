"""What holds for every backbone, by the configurations that there are."""

import pytest
import torch

from pixvox.configuration import compose, instantiate
from pixvox.overrides import override
from small_backbones import OPTIONS, small_families

QUICK = (
    "simple",
    "convnext",
    "darknet18",
    "dino",
    "enet",
    "regseg",
    "residual_encoder",
    "swin",
    "windowed_vit",
)
"""Whose volumes are in the quick tests; ``test_lifting`` has the layers of the others."""

CASES = [pytest.param(name, 2, id=f"{name}-2") for name in small_families(2)]
CASES += [
    pytest.param(name, 3, id=f"{name}-3", marks=() if name in QUICK else pytest.mark.slow)
    for name in small_families(3)
]


def build(name, dims, in_channels=2, **options):
    chosen = {**OPTIONS.get(name, {}), **options}
    overrides = [override(f"backbone.{key}", value) for key, value in chosen.items()]
    config = compose(
        "model", [f"backbone={name}", f"spatial_dims={dims}", f"in_channels={in_channels}", *overrides]
    )
    return instantiate(config.backbone)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_maps_of_any_size_have_the_declared_channels_and_strides_and_every_weight_learns(name, dims):
    backbone = build(name, dims).train()
    size = (64, 96) if dims == 2 else (32, 32, 64)
    levels = backbone(torch.randn(2, 2, *size))
    assert len(levels) == len(backbone.channels) == len(backbone.strides)
    for level, channels, stride in zip(levels, backbone.channels, backbone.strides, strict=True):
        assert tuple(level.shape) == (2, channels, *(n // s for n, s in zip(size, stride, strict=True)))
    sum(level.square().mean() for level in levels).backward()
    assert not [key for key, value in backbone.named_parameters() if value.grad is None]
    if name == "windowed_vit":
        return  # Segmenter pads for it
    for shape in ((61, 83), (17, 120)):
        size = shape if dims == 2 else (5, *shape)
        with torch.no_grad():
            levels = backbone.eval()(torch.randn(1, 2, *size))
        for level, stride in zip(levels, backbone.strides, strict=True):
            assert tuple(level.shape[2:]) == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
            assert level.isfinite().all()


WITHOUT = ("simple", "windowed_vit", "bisenetv2", "enet", "pidnet", "regseg")
"""Which have no published weights, or none that are kept."""

FREEZING = [(name, 2) for name in small_families(2) if name not in WITHOUT]
FREEZING += [("swin", 3), ("dino", 3), ("darknet18", 3)]


@pytest.mark.parametrize(("name", "dims"), FREEZING)
def test_frozen_backbones_keep_weights_and_statistics(name, dims):
    backbone = build(name, dims, freeze=-1).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    levels = backbone(torch.randn(2, 2, *((64, 64) if dims == 2 else (32, 32, 32))) + 3)
    if any(level.requires_grad for level in levels):
        sum(level.sum() for level in levels).backward()
    learning = [key for key, value in backbone.named_parameters() if value.requires_grad]
    assert all(key.startswith("pyramid.") for key in learning)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())

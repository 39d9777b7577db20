import os
from types import MethodType

import pytest
import torch
from torch import nn

from pixvox.backbones.swin import VARIANTS, Swin
from pixvox.errors import WeightsError
from pixvox.gradient_checkpointing import _forward_twice
from pixvox.weights.backbones import lift_swin, swin_from_official, swin_from_timm, swin_from_transformers

os.environ["HF_HUB_OFFLINE"] = "1"
SMALL = {
    "channels": 8,
    "depths": (2, 3),
    "num_heads": (2, 4),
    "window": 3,
    "out_levels": (2, 3),
    "drop_path": 0.0,
}


def randomised(module: nn.Module, std: float = 0.3, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, so that nothing hides behind ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def transformers_backbone(depths, heads, window, width, stages):
    from transformers import SwinBackbone, SwinConfig

    config = SwinConfig(
        embed_dim=width, depths=depths, num_heads=heads, window_size=window,
        out_features=[f"stage{stage}" for stage in stages],
    )  # fmt: skip
    return randomised(SwinBackbone(config))


@pytest.mark.parametrize(
    ("depths", "heads", "window", "width", "stages", "size"),
    [
        ([2, 3], [2, 4], 3, 8, [1, 2], (45, 62)),
        ([1, 2, 2], [1, 2, 4], 4, 16, [1, 3], (96, 64)),
        ([2, 2, 2, 2], [1, 2, 4, 8], 7, 8, [1, 2, 3, 4], (33, 70)),
        ([2, 2], [2, 2], 12, 8, [2], (16, 100)),
    ],
)
def test_equals_transformers_with_its_weights(depths, heads, window, width, stages, size):
    theirs = transformers_backbone(depths, heads, window, width, stages)
    ours = Swin(
        channels=width, depths=depths, num_heads=heads, window=window, out_levels=[s + 1 for s in stages]
    ).eval()
    ours.load_state_dict(swin_from_transformers(theirs.state_dict()))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(images).feature_maps
        levels = ours(images)
    assert len(levels) == len(expected)
    for level, reference in zip(levels, expected, strict=True):
        assert level.shape == reference.shape
        assert close(level, reference)


def test_files_and_modules_of_transformers_convert_alike(tmp_path):
    from safetensors.torch import load_file

    theirs = transformers_backbone([1, 2], [2, 2], 3, 8, [1, 2])
    theirs.save_pretrained(tmp_path)
    by_file = swin_from_transformers(load_file(tmp_path / "model.safetensors"))
    by_module = swin_from_transformers(theirs.state_dict())
    assert by_file.keys() == by_module.keys()
    assert all(torch.equal(by_file[key], by_module[key]) for key in by_file)


def test_official_names_are_ours_but_for_buffers():
    state = randomised(Swin(**SMALL)).state_dict()
    file = {**state, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9)}
    assert swin_from_official(file).keys() == state.keys()


def test_an_unknown_key_is_named():
    with pytest.raises(WeightsError, match="encoder_layers"):
        swin_from_transformers({"encoder_layers.0.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"lacks k and v of query"):
        swin_from_transformers({"encoder.layers.0.blocks.0.attention.self.query.bias": torch.zeros(1)})


@pytest.mark.parametrize("size", [(48, 96), (96, 48)])
def test_equals_timm_with_its_weights(size):
    import timm

    # timm moves before it pads, the authors pad before they move: alike where every level is whole windows.
    theirs = randomised(timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, img_size=size, window_size=3, embed_dim=8,
        depths=(2, 2, 1), num_heads=(1, 2, 4), always_partition=True, out_indices=(0, 1, 2),
    ))  # fmt: skip
    ours = Swin(
        channels=8, depths=(2, 2, 1), num_heads=(1, 2, 4), window=3, out_levels=(2, 3, 4), out_norms=False
    )
    ours.eval().load_state_dict(swin_from_timm(theirs.state_dict()))
    images = torch.randn(1, 3, *size)
    for level, reference in zip(ours(images), theirs(images), strict=True):
        assert close(level, reference.permute(0, 3, 1, 2))


def test_pretrained_weights_come_from_timm_in_every_dimension(monkeypatch):
    import timm

    create = timm.create_model
    source = create("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), in_chans=1)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, in_chans: source)
    monkeypatch.setitem(VARIANTS, "tiny", (96, (1, 1, 1, 1), (3, 6, 12, 24)))
    plane = Swin(in_channels=1, pretrained=True, out_levels=(2, 3)).eval()
    assert torch.equal(plane.patch_embed.proj.weight, source.patch_embed.proj.weight)
    assert torch.equal(plane.layers[0].downsample.norm.weight, source.layers[1].downsample.norm.weight)
    volume = Swin(spatial_dims=3, in_channels=1, pretrained=True, out_levels=(2, 3), window=7).eval()
    x = torch.randn(1, 1, 56, 56)
    deep = volume(x[:, :, None].expand(-1, -1, 16, -1, -1))
    assert torch.allclose(deep[1][:, :, 0], plane(x)[1], atol=1e-4)


def test_equals_video_swin_with_its_weights():
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    theirs = randomised(SwinTransformer3d([2, 4, 4], 8, [2, 2], [1, 2], [4, 3, 3], stochastic_depth_prob=0.0))
    ours = Swin(spatial_dims=3, window=(4, 3, 3), channels=8, depths=(2, 2), num_heads=(1, 2), out_levels=(2, 3),
                depth_strides=(2, 1), out_norms=False).eval()  # fmt: skip
    renamed = {}
    for key, value in theirs.state_dict().items():
        name = key.replace("features.0.", "layers.0.blocks.").replace("features.2.", "layers.1.blocks.")
        name = name.replace("features.1.", "layers.0.downsample.")
        name = name.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        if not name.startswith(("norm.", "head.")) and not name.endswith("relative_position_index"):
            renamed[name] = value
    ours.load_state_dict(renamed)
    for size in [(7, 31, 50), (22, 33, 40)]:  # windows shrink along depth, then they do not
        images = torch.randn(2, 3, *size)
        tokens = theirs.patch_embed(images)
        for level, stage in zip(ours(images), (theirs.features[0], theirs.features[1:]), strict=True):
            tokens = stage(tokens)
            assert close(level, tokens.permute(0, 4, 1, 2, 3))


def lifted(plane, **options):
    volume = Swin(spatial_dims=3, **SMALL, **options).eval()
    volume.load_state_dict(lift_swin(plane.state_dict(), volume))
    return volume


@pytest.mark.parametrize("size", [(30, 41), (8, 44)])
def test_volume_of_one_slice_equals_the_image(size):
    plane = randomised(Swin(**SMALL, fit_windows=True))
    volume = lifted(plane, depth_strides=(1, 1))
    x = torch.randn(2, 3, *size)
    for flat, deep in zip(plane(x), volume(x[:, :, None]), strict=True):
        assert close(deep[:, :, 0], flat)


@pytest.mark.parametrize("depth_strides", [(4, 2), (2, 1)])
def test_volume_of_equal_slices_equals_the_image(depth_strides):
    plane = randomised(Swin(**SMALL, fit_windows=True))
    volume = lifted(plane, depth_strides=depth_strides)
    x = torch.randn(1, 3, 30, 41)
    # Whole patches, windows and merges along depth: 24 / 4 = 6 tokens, two windows of 3, moved in the second block.
    deep = volume(x[:, :, None].expand(-1, -1, 24, -1, -1))
    for flat, level in zip(plane(x), deep, strict=True):
        for i in range(level.shape[2]):
            assert close(level[:, :, i], flat)


def test_permuted_axes_permute_the_maps():
    windows, order = (2, 3, 4), (2, 0, 1)  # the new axes are the old x, z, y
    options = {**SMALL, "spatial_dims": 3, "in_channels": 2}
    backbone = randomised(Swin(**{**options, "window": windows}))
    turned = Swin(**{**options, "window": [windows[i] for i in order]}).eval()
    state = {}
    for key, value in backbone.state_dict().items():
        if key == "patch_embed.proj.weight":
            value = value.permute(0, 1, *(2 + i for i in order))
        elif key.endswith("relative_position_bias_table"):
            value = value.reshape(*(2 * side - 1 for side in windows), -1).permute(*order, 3).flatten(0, 2)
        elif ".downsample." in key:  # groups by x, y, z, the last fastest
            groups = value.unflatten(-1, (2, 2, 2, -1))
            spots = [groups.dim() - 2 - i for i in reversed(order)]
            value = groups.permute(*range(groups.dim() - 4), *spots, groups.dim() - 1).flatten(-4)
        state[key] = value
    turned.load_state_dict(state)
    x = torch.randn(1, 2, 19, 44, 57)
    moved = [0, 1, *(2 + i for i in order)]
    for level, reference in zip(turned(x.permute(moved)), backbone(x), strict=True):
        assert close(level, reference.permute(moved))


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_have_the_declared_sizes_and_every_weight_a_gradient(dims):
    backbone = Swin(spatial_dims=dims, **{**SMALL, "drop_path": 0.5}, depth_strides=(1, 2)).train()
    size = (6, 32, 48)[-dims:]
    levels = backbone(torch.randn(8, 3, *size))
    for level, channels, stride in zip(levels, backbone.channels, backbone.strides, strict=True):
        assert tuple(level.shape[1:]) == (channels, *(n // s for n, s in zip(size, stride, strict=True)))
    sum(level.square().sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_blocks_computed_twice_have_the_same_gradients():
    backbone = randomised(Swin(**SMALL)).train()
    gradients = []
    for twice in (False, True):
        backbone.zero_grad()
        if twice:
            for block in backbone.blocks():
                block.forward = MethodType(_forward_twice, block)
        sum(level.square().mean() for level in backbone(torch.ones(1, 3, 30, 44))).backward()
        gradients.append(backbone.layers[0].blocks[1].attn.relative_position_bias_table.grad.clone())
    assert len(backbone.blocks()) == 5
    assert torch.allclose(*gradients)


def test_frozen_levels_keep_their_weights():
    backbone = Swin(**SMALL, freeze=2).train()
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("layers.0.") for name in frozen)
    assert all(name.startswith(("patch_embed.", "layers.0.")) for name in frozen)
    assert not backbone.layers[0].training and backbone.layers[1].training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "huge"}, "one of tiny, small, base, large, got 'huge'"),
        ({"depths": (1, 2), "num_heads": (1,)}, "one entry per level each"),
        ({"num_heads": (5, 6, 12, 24)}, r"num_heads\[0\]=5 must divide the 96 channels"),
        ({"out_levels": (0, 5)}, "out_levels must be of 2 to 5"),
        ({"spatial_dims": 3, "depth_strides": (2, 2)}, "depth_strides needs 4 entries"),
        ({"pretrained": True, "window": 5}, "window of 7 and the variant's sizes"),
        ({"pretrained": True, "channels": 48}, "own channels; set pretrained=false"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Swin(**options)

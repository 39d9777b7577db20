"""The windowed transformer equals transformers' two, and works for volumes."""

import pytest
import torch

from pixvox.backbones.windowed_vit import PositionTable, WindowedViT
from pixvox.weights.lw_detr import convert_vit
from pixvox.weights.rf_detr import convert_dinov2

SMALL = {"channels": 8, "num_heads": 2, "out_blocks": (1, 3), "windowed_blocks": (1, 2), "position_size": 3}


def wide(module, seed=0):
    """Give every parameter values that hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def _small(dims=2, **options):
    torch.manual_seed(0)
    return wide(WindowedViT(dims, 2, **{**SMALL, "windows": 2, "patch_size": 2, **options}))


@pytest.mark.parametrize("size", [(32, 48), (64, 32)])
def test_equals_lw_detrs_backbone(size):
    transformers = pytest.importorskip("transformers")
    config = transformers.LwDetrViTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=8, num_windows=4,
        window_block_indices=[0, 2], out_indices=[1, 2, 4], pretrain_image_size=32,
    )  # fmt: skip
    reference = wide(transformers.LwDetrViTBackbone(config))
    ours = WindowedViT(
        channels=16,
        num_heads=2,
        out_blocks=(1, 2, 4),
        windowed_blocks=(1, 3),
        windows=2,
        patch_size=8,
        position_size=4,
    ).eval()
    ours.load_state_dict(convert_vit(reference.state_dict(), ours.out_blocks))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        for level, expected in zip(ours(images), reference(images).feature_maps, strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)


# transformers cuts images that are not square into scrambled windows, so only one window is comparable there.
@pytest.mark.parametrize(("size", "windows"), [((32, 32), 2), ((48, 48), 2), ((24, 40), 1)])
def test_equals_rf_detrs_backbone(size, windows):
    pytest.importorskip("transformers")
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config
    from transformers.models.rf_detr.modeling_rf_detr import RfDetrDinov2Backbone

    config = RfDetrDinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, num_windows=windows,
        out_indices=[2, 4],
    )  # fmt: skip
    reference = wide(RfDetrDinov2Backbone(config))
    ours = WindowedViT(
        channels=16, num_heads=2, out_blocks=(2, 4), windowed_blocks=(1, 2, 4), windows=windows, patch_size=8,
        position_size=4, class_token=True, key_bias=True, final_norm=True, antialias=True,
    ).eval()  # fmt: skip
    ours.load_state_dict(convert_dinov2(reference.state_dict(), ours.out_blocks))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        for level, expected in zip(ours(images), reference(images).feature_maps, strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("class_token", [False, True])
def test_volume_of_one_slice_equals_the_image(class_token):
    flat = _small(class_token=class_token)
    deep = _small(
        3, class_token=class_token, windows=(1, 2, 2), patch_size=(1, 2, 2), position_size=(1, 3, 3)
    )
    state = flat.state_dict()
    state["embedding.weight"] = state["embedding.weight"][:, :, None]
    state["positions.axes.0"] = torch.zeros(1, 8, 1)  # the depth term is neutral
    deep.load_state_dict(state)
    images = torch.randn(2, 2, 8, 12)
    for level, expected in zip(deep(images[:, :, None]), flat(images), strict=True):
        torch.testing.assert_close(level[:, :, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_permuting_the_axes_permutes_the_maps_without_positions(order):
    straight, turned = _small(3, windows=(2, 1, 2)), _small(3, windows=tuple((2, 1, 2)[o] for o in order))
    axes = (0, 1, *(2 + o for o in order))
    with torch.no_grad():
        for model in (straight, turned):
            for parameter in model.positions.parameters():  # tables of plane and depth do not permute
                parameter.zero_()
    state = straight.state_dict()
    state["embedding.weight"] = state["embedding.weight"].permute(axes)
    turned.load_state_dict(state)
    volume = torch.randn(1, 2, 4, 6, 8)
    for level, expected in zip(turned(volume.permute(axes)), straight(volume), strict=True):
        torch.testing.assert_close(level, expected.permute(axes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_parameter_gets_a_gradient_and_blocks_are_told(dims):
    model = _small(dims, class_token=True, final_norm=True).train()
    sum(level.square().mean() for level in model(torch.randn(1, 2, *(4, 8, 12)[-dims:]))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(model.blocks()) == 3


def test_windowed_blocks_see_their_window_only():
    model = _small(out_blocks=(1,), windowed_blocks=(1,))
    images = torch.randn(1, 2, 8, 8)
    changed = images.clone()
    changed[..., :4, :4] += 1.0
    difference = (model(images)[0] - model(changed)[0]).abs().amax(dim=1)[0]
    assert difference[:2, :2].min() > 0 and difference[2:].max() == 0 and difference[:, 2:].max() == 0


def test_depth_positions_are_resized_and_added():
    table = PositionTable(1, (2, 3, 3), antialias=False)
    with torch.no_grad():
        table.plane.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
        table.axes[0].copy_(torch.tensor([[[0.0, 4.0]]]))
    positions = table((4, 3, 3))
    assert positions.shape == (1, 1, 4, 3, 3)
    assert (positions[0, 0] - table.plane[0]).amax(dim=(1, 2)).tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_blocks": (3, 1)}, "ascending numbers from 1 on"),
        ({"windowed_blocks": (1, 4)}, r"windowed_blocks \[4\] do not exist"),
        ({"num_heads": 3}, "channels=8 is no multiple of num_heads=3"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WindowedViT(**{**SMALL, **options})


def test_a_size_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match=r"pad them to multiples of \(4, 4\)"):
        _small()(torch.zeros(1, 2, 8, 10))

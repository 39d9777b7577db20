"""The projector equals transformers' two, takes pyramids and volumes, and refuses what does not fit."""

import pytest
import torch

from parity import assert_near, randomise
from pixvox.backbones.simple import Simple
from pixvox.necks.multi_scale_projector import MultiScaleProjector
from pixvox.weights.lw_detr import convert_projector

FLAT = ((16, 16), (16, 16))


@pytest.mark.parametrize(("factors", "channels"), [([1.0], 16), ([2.0, 0.5], 16), ([2.0, 1.0], 520)])
@pytest.mark.parametrize("training", [False, True])
def test_equals_lw_detrs(factors, channels, training):
    transformers = pytest.importorskip("transformers")
    from transformers.models.lw_detr.modeling_lw_detr import LwDetrMultiScaleProjector

    backbone = transformers.LwDetrViTConfig(
        hidden_size=channels, num_hidden_layers=2, num_attention_heads=2, image_size=64, out_indices=[1, 2]
    )
    config = transformers.LwDetrConfig(
        backbone_config=backbone,
        projector_scale_factors=factors,
        d_model=12,
        c2f_num_blocks=2,
        hidden_expansion=0.75,
    )
    reference = randomise(LwDetrMultiScaleProjector(config)).train(training)
    ours = MultiScaleProjector(
        (channels,) * 2, FLAT, scale_factors=factors, out_channels=12, num_blocks=2, expansion=0.75
    ).train(training)
    ours.load_state_dict(convert_projector(reference.state_dict()))
    levels = [torch.randn(2, channels, 6, 10) for _ in FLAT]
    with torch.no_grad():
        for level, expected in zip(ours(levels), reference(levels), strict=True):
            assert_near(level, expected)


def test_equals_rf_detrs():
    transformers = pytest.importorskip("transformers")
    from transformers.models.rf_detr.modeling_rf_detr import RfDetrScaleProjector

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "out_indices": [1, 2]}
    config = transformers.RfDetrConfig(backbone_config={"model_type": "rf_detr_dinov2", **sizes}, d_model=12)
    reference = randomise(RfDetrScaleProjector(config)).eval()
    ours = MultiScaleProjector((16, 16), FLAT, out_channels=12, norm="channel").eval()
    ours.load_state_dict(convert_projector(reference.state_dict()))
    levels = [torch.randn(2, 16, 6, 10) for _ in FLAT]
    with torch.no_grad():
        assert_near(ours(levels)[0], reference(levels))


@pytest.mark.parametrize(
    ("dims", "strides", "factors", "expected"),
    [
        (2, (4, 8, 16), None, ((4, 4), (8, 8), (16, 16))),
        (2, (4, 8, 16), (2.0, 1.0, 0.5, 0.25), ((2, 2), (4, 4), (8, 8), (16, 16))),
        (3, ((1, 4, 4), (2, 8, 8), (2, 16, 16)), None, ((1, 4, 4), (2, 8, 8), (2, 16, 16))),
        (3, ((1, 4, 4), (2, 8, 8), (4, 16, 16)), (2.0, 0.5), ((1, 2, 2), (2, 8, 8))),
    ],
)
def test_pyramids_are_brought_to_each_scale(dims, strides, factors, expected):
    backbone = Simple(dims, 1, (4, 8, 8), strides)
    neck = MultiScaleProjector(backbone.channels, backbone.strides, dims, factors, out_channels=6)
    assert neck.strides == expected and neck.channels == (6,) * len(expected)
    size = (8, 32, 48)[-dims:]
    maps = neck(backbone(torch.randn(2, 1, *size)))
    assert [tuple(m.shape) for m in maps] == [
        (2, 6, *(n // s for n, s in zip(size, stride, strict=True))) for stride in expected
    ]
    sum(m.square().mean() for m in maps).backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_scale_sees_every_level():
    neck = MultiScaleProjector((4, 4), ((4, 4), (8, 8)), out_channels=4).eval()
    levels = [torch.randn(1, 4, 4, 6), torch.randn(1, 4, 2, 3)]
    before = neck(levels)
    for changed in range(2):
        moved = [level + (i == changed) for i, level in enumerate(levels)]
        assert all(not torch.allclose(a, b) for a, b in zip(before, neck(moved), strict=True))


def test_volume_of_one_slice_equals_the_image():
    flat = randomise(MultiScaleProjector((4, 6), ((4, 4), (8, 8)), 2, None, 4)).eval()
    deep = MultiScaleProjector((4, 6), ((1, 4, 4), (1, 8, 8)), 3, None, 4).eval()
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        lifted = torch.zeros_like(state[name])
        if value.dim() == 4:
            lifted[:, :, lifted.shape[2] // 2] = value  # the neighbouring slices are neutral
        else:
            lifted.copy_(value)
        state[name] = lifted
    deep.load_state_dict(state)
    levels = [torch.randn(2, 4, 8, 12), torch.randn(2, 6, 4, 6)]
    with torch.no_grad():
        for level, expected in zip(deep([x[:, :, None] for x in levels]), flat(levels), strict=True):
            assert_near(level[:, :, 0], expected)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_permuting_the_axes_permutes_the_scales(order):
    strides = ((2, 4, 4), (4, 8, 4))
    axes = (0, 1, *(2 + o for o in order))
    straight = randomise(MultiScaleProjector((4, 6), strides, 3, (2.0, 0.5), 4)).eval()
    turned = MultiScaleProjector(
        (4, 6), [tuple(stride[o] for o in order) for stride in strides], 3, (2.0, 0.5), 4
    ).eval()
    turned.load_state_dict(
        {name: v.permute(axes) if v.dim() == 5 else v for name, v in straight.state_dict().items()}
    )
    levels = [torch.randn(1, 4, 4, 4, 6), torch.randn(1, 6, 2, 2, 6)]
    with torch.no_grad():
        found = turned([level.permute(axes) for level in levels])
        for level, expected in zip(found, straight(levels), strict=True):
            assert_near(level, expected.permute(axes))


@pytest.mark.parametrize(
    ("strides", "options", "message"),
    [
        (((4, 4), (12, 12)), {}, "are no powers of 2 times the finest"),
        (FLAT, {"scale_factors": (0.5, 2.0)}, "descending powers of 2"),
        (FLAT, {"scale_factors": (3.0,)}, "descending powers of 2"),
        (((1, 1), (2, 2)), {"scale_factors": (2.0, 1.0)}, "1 is the finest that there is"),
        (FLAT, {"activation": "tanh"}, "one of \\['gelu', 'relu', 'silu'\\], got 'tanh'"),
        (((14, 14),) * 2, {"scale_factors": (4.0, 1.0)}, "whole strides only"),
        (((3, 3),) * 2, {"scale_factors": (4.0, 1.0)}, "whole strides only"),
    ],
)
def test_impossible_options_are_refused(strides, options, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleProjector((4, 4), strides, **options)

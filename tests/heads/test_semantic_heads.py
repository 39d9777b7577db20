"""What must hold for every head over levels of features that gives classes to pixels, in images and volumes."""

import pytest
import torch

from parity import assert_near, randomise
from pixvox.heads.deeplabv3 import DeepLabV3
from pixvox.heads.deeplabv3plus import DeepLabV3Plus
from pixvox.heads.fcn import FCN
from pixvox.heads.lraspp import LRASPP
from pixvox.heads.pspnet import PSPNet
from pixvox.heads.segformer import SegFormer
from pixvox.heads.semantic_head import level_of_stride
from pixvox.heads.unet import UNet
from pixvox.heads.upernet import UPerNet
from semantic_cases import as_volume, features, lift

CHANNELS = (8, 12, 16, 24)
STRIDES = ((4, 4), (8, 8), (16, 16), (32, 32))
RATES = {"atrous_rates": (1, 2, 3), "channels": 8}
OPTIONS = {
    FCN: {"aux_level": -2}, DeepLabV3: {**RATES, "aux_level": -2}, DeepLabV3Plus: {**RATES, "aux_level": -2},
    LRASPP: {"channels": 8}, PSPNet: {"aux_level": -2}, UPerNet: {"channels": 8, "aux_channels": 6, "aux_level": -2},
    SegFormer: {"channels": 8}, UNet: {},
}  # fmt: skip
HEADS = pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)


def build(kind, dims=2, **options):
    torch.manual_seed(0)
    strides = [(*(1,) * (dims - 2), *stride) for stride in STRIDES]
    return kind(CHANNELS, strides, 3, dims, **{**OPTIONS[kind], **options})


@HEADS
def test_volume_of_equal_slices_has_the_scores_of_the_image(kind):
    flat = randomise(build(kind)).eval()
    deep = lift(flat, build(kind, 3)).eval()
    case = features()
    with torch.no_grad():
        expected = flat(case)["logits"]
        for slices in (1, 3):
            logits = deep(as_volume(case, slices))["logits"]
            for i in range(slices):
                assert_near(logits[:, :, i], expected, 1e-4)


@HEADS
@pytest.mark.parametrize("size", [(61, 63), (65, 67), (31, 33)])
def test_odd_sizes_keep_theirs_and_one_image_alone_teaches_every_weight(kind, size):
    head = build(kind).train()
    case = features(size=size, batch=1)
    labels = torch.randint(0, 3, (1, *size))
    outputs = head(case, labels)
    assert outputs["logits"].shape == (1, 3, *size)
    assert all(maps.shape == (1, 3, *size) for maps in outputs.get("aux_logits", {}).values())
    losses = head.loss(outputs, labels)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    without = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert ("aux_level" in OPTIONS[kind]) == ("aux_cross_entropy" in losses)


@HEADS
def test_auxiliary_scores_are_left_out_of_predictions(kind):
    head = build(kind).eval()
    assert "aux_logits" not in head(features())


@HEADS
def test_permuted_axes_permute_the_scores(kind):
    strides = ((2, 4, 4), (4, 8, 8), (8, 16, 16), (16, 32, 32))
    order = (2, 0, 1)
    torch.manual_seed(0)
    straight = randomise(kind(CHANNELS, strides, 3, 3, **OPTIONS[kind])).eval()
    turned_strides = [tuple(stride[axis] for axis in order) for stride in strides]
    turned = kind(CHANNELS, turned_strides, 3, 3, **OPTIONS[kind]).eval()
    axes = (0, 1, *(axis + 2 for axis in order))
    turned.load_state_dict(
        {key: v.permute(axes) if v.dim() == 5 else v for key, v in straight.state_dict().items()}
    )
    case = features(strides=strides, size=(16, 32, 48), batch=1)
    other = features(strides=turned_strides, size=(48, 16, 32), batch=1)
    other.levels = tuple(level.permute(axes) for level in case.levels)
    with torch.no_grad():
        assert_near(turned(other)["logits"], straight(case)["logits"].permute(axes), 1e-4)


@pytest.mark.parametrize("kind", [DeepLabV3, DeepLabV3Plus, LRASPP, PSPNet])
def test_a_level_that_is_not_there_is_refused(kind):
    with pytest.raises(ValueError, match="in_level=4: there are 4 levels, 0 to 3 or -4 to -1"):
        build(kind, in_level=4)


def test_fine_level_is_found_by_its_stride():
    dilated = ((4, 4), (8, 8), (8, 8), (8, 8))
    assert level_of_stride(dilated, 8) == 1
    assert level_of_stride(dilated, 4) == 0
    full = tuple((n, n) for n in (1, 2, 4, 8, 16, 32))
    assert level_of_stride(full, 4) == 2
    assert level_of_stride(((8, 8), (16, 16)), 4) == 0

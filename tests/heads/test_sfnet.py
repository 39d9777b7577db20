"""SFNet and SFNet-Lite compute what their authors' computed (see tests/fixtures/semantic_networks), in volumes too."""

import pytest
import torch

from formula import fill, recorded, uniform
from parity import assert_near, randomise
from pixvox.heads.semantic_flow import warp
from pixvox.heads.sfnet import SFNet
from pixvox.heads.sfnet_lite import SFNetLite
from pixvox.structures import Features

CHANNELS = (8, 12, 16, 24)
STRIDES = tuple((stride, stride) for stride in (4, 8, 16, 32))
SIZE = (96, 160)


def features(levels, strides=STRIDES, size=SIZE):
    return Features(tuple(levels), strides, torch.zeros(2, 3, *size), size, torch.tensor([size] * 2))


def maps():
    sizes = [tuple(n // stride for n in SIZE) for stride, _ in STRIDES]
    return [
        uniform(f"level{i}", (2, width, *size))
        for i, (width, size) in enumerate(zip(CHANNELS, sizes, strict=True))
    ]


def test_scores_of_sfnet_and_of_its_levels_equal_the_reference():
    wanted, names = recorded("sfnet")
    head = SFNet(CHANNELS, STRIDES, 3, channels=8)
    parts = ["context", "laterals", "smooth", "alignments", "aux_classifiers", "classifier"]
    with torch.no_grad():
        scores, aux = fill(head, parts, names).scores(features(maps()), True)
    for name, found in {"logits": scores, **aux}.items():
        assert_near(found, wanted.pop(name))
    assert not wanted


@pytest.mark.parametrize(("gate", "pooled"), [("spatial", False), ("spatial_atten", True)])
def test_scores_of_sfnet_lite_equal_the_reference(gate, pooled):
    wanted, names = recorded(f"sfnet_lite_{gate}")
    head = SFNetLite(CHANNELS, STRIDES, 3, channels=8, pool_gate=pooled)
    names = [name for name in names if not name.startswith("fpn_in.2.")]  # never used there
    with torch.no_grad():
        scores, aux = fill(head, ["context", "fine", "middle", "alignment", "classifier"], names).scores(
            features(maps()), True
        )
    assert_near(scores, wanted["logits"])
    assert not aux


@pytest.mark.parametrize("kind", [SFNet, SFNetLite])
def test_axes_of_a_volume_may_be_exchanged(kind):
    head = randomise(kind((4, 6, 8), ((2,) * 3, (4,) * 3, (8,) * 3), 2, spatial_dims=3, channels=4)).eval()
    size, order = (8, 16, 24), (2, 0, 1)
    levels = [
        torch.randn(2, width, *(n // 2 ** (i + 1) for n in size), generator=torch.Generator().manual_seed(i))
        for i, width in enumerate((4, 6, 8))
    ]
    strides = ((2,) * 3, (4,) * 3, (8,) * 3)

    def turned(x):
        return x.permute(0, 1, *(axis + 2 for axis in order))

    with torch.no_grad():
        expected = turned(head.scores(features(levels, strides, size), False)[0])
        for name, value in head.named_parameters():
            if value.dim() == 5:
                if "flow" in name:  # offsets are (x, y, z): the other way round than the axes
                    kept = [2 - order[2 - i] for i in range(3)]
                    fields = value.view(-1, 3, *value.shape[1:])[:, kept]
                    value.copy_(fields.reshape(value.shape))
                value.copy_(turned(value).clone())
        found = head.scores(
            features([turned(x) for x in levels], strides, tuple(size[i] for i in order)), False
        )[0]
    assert_near(found, expected)


def test_flow_moves_by_half_pixels_in_x_then_y():
    image = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = 2 * 5 / 4  # grids from corner to corner have one step less than pixels
    assert_near(warp(image, flow)[..., :4], image[..., 1:])
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 1] = 2 * 4 / 3
    assert_near(warp(image, flow)[..., :3, :], image[..., 1:, :])


def test_deep_supervision_is_a_choice_of_both_and_too_few_levels_are_refused():
    head = SFNetLite(CHANNELS, STRIDES, 3, channels=8, deep_supervision=True)
    assert head.scores(features(maps()), True)[1]["aux"].shape == (2, 3, 24, 40)
    assert (
        SFNet(CHANNELS, STRIDES, 3, channels=8, deep_supervision=False).scores(features(maps()), True)[1]
        == {}
    )
    with pytest.raises(ValueError, match="SFNet-Lite joins the finest and the two coarsest levels, got 2"):
        SFNetLite((4, 4), STRIDES[:2], 2)

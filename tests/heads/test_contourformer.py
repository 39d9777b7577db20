"""Outlines as instances: polygons, masks, frames, targets, and what is refused."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from parity import randomise
from pixvox import create_model, list_heads
from pixvox.errors import ConfigError
from pixvox.heads.contourformer import ContourFormer
from pixvox.structures import Features, Geometry, Instances
from small_heads import SMALL

STRIDES = ((8, 8), (16, 16))
OPTIONS = {key: value for key, value in SMALL["contourformer"].items() if "__" not in key}


def _head(**options):
    torch.manual_seed(0)
    head = ContourFormer((8, 8), STRIDES, 3, **{**OPTIONS, "score_threshold": 0.0, **options})
    return randomise(head)


def _features(size=(32, 48), valid=None, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(
        torch.randn(batch, 8, *(-(-n // step) for n in size), generator=generator) for step in (8, 16)
    )
    return Features(
        levels, STRIDES, torch.zeros(batch, 1, *size), size, torch.tensor([valid or size] * batch)
    )


def _instances(head, features, geometry):
    with torch.no_grad():
        return head.postprocess(head.eval()(features), [geometry])[0].instances


def test_masks_are_what_cocos_tools_make_of_the_polygons():
    found = _instances(_head(), _features(), Geometry.identity((32, 48)))
    assert len(found) > 1 and len(found.polygons) == len(found.masks)
    for i, polygon in enumerate(found.polygons):
        assert len(polygon) == 1 and len(polygon[0]) == 2 * 16
        theirs = coco.decode(coco.merge(coco.frPyObjects(polygon, 32, 48)))
        np.testing.assert_array_equal(found.masks.dense()[i].numpy(), theirs.astype(bool))


def test_outlines_lie_in_the_original_frame():
    head, features = _head(), _features()
    small = _instances(head, features, Geometry.identity((32, 48)))
    large = _instances(head, features, Geometry((32, 48), (32, 48), (64, 144)))
    assert large.size == (64, 144)
    pairs = {
        round(score, 6): polygon for score, polygon in zip(small.scores.tolist(), small.polygons, strict=True)
    }
    shared = 0
    for score, polygon in zip(large.scores.tolist(), large.polygons, strict=True):
        if round(score, 6) in pairs:
            ours = np.array(polygon[0]).reshape(-1, 2)
            np.testing.assert_allclose(
                ours, np.array(pairs[round(score, 6)][0]).reshape(-1, 2) * (3, 2), atol=1e-3
            )
            shared += 1
    assert shared > 1


def test_padding_changes_no_prediction():
    head, features = _head().eval(), _features()
    padded_levels = tuple(torch.randn(1, 8, h + 2, w + 2) for h, w in ((4, 6), (2, 3)))
    for padded, level in zip(padded_levels, features.levels, strict=True):
        padded[:, :, : level.shape[2], : level.shape[3]] = level
    sizes = torch.tensor([[32, 48]])
    # Both levels are padded by two cells: the finer by 16 pixels, and so is the canvas.
    padded_levels = (padded_levels[0], padded_levels[1][:, :, :3, :4])
    padded = Features(padded_levels, STRIDES, torch.zeros(1, 1, 48, 64), (48, 64), sizes)
    with torch.no_grad():
        expected, found = head(features), head(padded)
    torch.testing.assert_close(found["contours"], expected["contours"], rtol=1e-4, atol=1e-4)


def test_objects_learn_their_largest_part_and_boxes_alone_are_refused():
    head = _head()
    canvas = torch.zeros(1, 32, 48, dtype=torch.bool)
    canvas[0, 4:12, 8:24], canvas[0, 20:22, 40:42] = True, True
    target = head._target(Instances(masks=canvas), torch.tensor([32, 48]))
    low, high = target.points[0].amin(0), target.points[0].amax(0)
    torch.testing.assert_close(low, torch.tensor([8 / 48, 4 / 32]))
    torch.testing.assert_close(high, torch.tensor([24 / 48, 12 / 32]))
    with pytest.raises(ValueError, match="learns outlines, but the targets have boxes only"):
        head._target(Instances(torch.tensor([[0.0, 0, 4, 4]]), size=(32, 48)), torch.tensor([32, 48]))


def test_denoising_takes_part_in_training_alone():
    head, features = _head(), _features()
    canvas = torch.zeros(1, 32, 48, dtype=torch.bool)
    canvas[0, 4:20, 8:24] = True
    targets = [Instances(masks=canvas)]
    assert "denoising_points" in head.train().loss(head(features, targets), targets)
    outputs = head.eval()(features, targets)
    assert outputs["noised"] is None and outputs["contours"].shape == (1, 9, 16, 2)
    assert "denoising_points" not in head.loss(outputs, targets)
    assert _head(denoising_queries=0).denoising is None


def test_volumes_are_refused_with_the_heads_that_exist():
    with pytest.raises(ConfigError, match=r"exists for spatial_dims in \(2,\), got 3; pixvox.list_heads"):
        create_model("contourformer", "simple", spatial_dims=3, in_channels=1)
    assert "contourformer" not in list_heads(spatial_dims=3)
    assert "contourformer" in list_heads(task="instance", spatial_dims=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 18}, "num_points must be a multiple of 4 and of points_per_part=4, got 18"),
        ({"num_bins": 5}, "num_bins must be even"),
        ({"num_bins": 4, "points_per_part": 8}, "at least 2 \\* points_per_part - 1 = 15"),
        ({"points_per_head": [2, 2, 2]}, "points_per_head has 3 numbers for the 2 levels"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        _head(**options)


def test_levels_of_unequal_channels_are_refused():
    with pytest.raises(ValueError, match=r"got \[8, 16\]; put neck=hybrid_encoder"):
        ContourFormer((8, 16), STRIDES, 3, **OPTIONS)

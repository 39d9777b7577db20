import numpy as np
import pytest
import torch
from scipy import ndimage

from pixvox.errors import ConfigError, DataError
from pixvox.inference.clean_up import CleanUp, close_gaps, drop_small, fill_holes, open_spurs
from pixvox.structures import Geometry, Instances, Segmentation


def scattered(size, seed=0, share=0.6):
    return np.random.default_rng(seed).random(size) < share


@pytest.mark.parametrize("size", [(23, 31), (9, 12, 15)])
def test_filling_holes_without_limit_equals_scipy(size):
    mask = scattered(size)
    assert np.array_equal(fill_holes(mask, mask.size), ndimage.binary_fill_holes(mask))
    assert np.array_equal(fill_holes(mask, 0), mask)


@pytest.mark.parametrize("radius", [1.0, 1.5, 3.2])
@pytest.mark.parametrize("size", [(23, 31), (9, 12, 15)])
def test_closing_and_opening_equal_scipy_with_a_ball(size, radius):
    reach = int(radius)
    grid = np.indices((2 * reach + 1,) * len(size)) - reach
    ball = (grid**2).sum(0) <= radius**2
    mask = ndimage.gaussian_filter(scattered(size).astype(float), 1) > 0.6
    framed = np.pad(mask, reach)
    inner = (slice(reach, -reach),) * len(size)
    closed = ndimage.binary_closing(framed, ball)[inner] | mask
    assert np.array_equal(close_gaps(mask, radius, (1.0,) * len(size)), closed)
    beyond = np.pad(mask, 2 * reach, mode="constant", constant_values=True)  # the image goes on
    eroded = ndimage.binary_erosion(beyond, ball)[(slice(2 * reach, -2 * reach),) * len(size)]
    assert np.array_equal(
        open_spurs(mask, radius, (1.0,) * len(size)), ndimage.binary_dilation(eroded, ball) & mask
    )


def test_lengths_follow_the_spacing():
    bars = np.zeros((7, 7), dtype=bool)
    bars[2, 3] = bars[4, 3] = bars[3, 2] = bars[3, 4] = True
    assert close_gaps(bars, 1.0, (1.0, 4.0))[3, 3]  # the gap between rows is short
    assert not close_gaps(bars, 0.9, (1.0, 4.0))[3, 3]
    assert not close_gaps(bars & (np.arange(7) != 3), 1.0, (1.0, 4.0))[3, 3]  # that between columns is not


def test_small_regions_go_and_those_that_touch_at_a_corner_are_one():
    mask = np.eye(4, 6, dtype=bool)
    mask[0, 5] = True
    assert drop_small(mask, 2).sum() == 4
    assert drop_small(mask, 5).sum() == 0
    assert drop_small(np.zeros((3, 4), dtype=bool), 2).sum() == 0


def street():
    """A road (1) below a sky (0), a speck of sky in the road, and a car (2) with a hole of road."""
    labels = torch.zeros(12, 16, dtype=torch.int64)
    labels[6:] = 1
    labels[9, 2] = 0
    labels[7:11, 6:12] = 2
    labels[8, 8] = 1
    labels[1, 14] = 2
    return Segmentation(class_map=labels, class_names=("sky", "road", "car"))


def test_removed_regions_take_the_class_around_them():
    mended = CleanUp(min_area=3, class_names=street().class_names)(street()).class_map
    assert mended[9, 2] == 1
    assert mended[8, 8] == 2
    assert mended[1, 14] == 0
    assert (mended == street().class_map).sum() == 12 * 16 - 3


def test_only_named_classes_are_mended_and_each_by_its_own_area():
    names = street().class_names
    mended = CleanUp(fill_holes=1, classes=["car"], class_names=names)(street()).class_map
    assert mended[8, 8] == 2
    assert mended[9, 2] == 0
    mended = CleanUp(min_area={"car": 5, "sky": 1}, class_names=names)(street()).class_map
    assert mended[1, 14] == 0
    assert mended[9, 2] == 0


def test_a_result_of_small_regions_alone_stays_as_it_is():
    board = torch.tensor([[0, 1, 0, 1]])
    assert torch.equal(CleanUp(min_area=9)(Segmentation(class_map=board)).class_map, board)


def test_volumes_are_mended_in_physical_units():
    labels = torch.zeros(4, 8, 8, dtype=torch.int64)
    labels[1:3, 2:6, 2:6] = 1  # 32 voxels of 0.5 cubic micrometres
    geometry = Geometry.identity(labels.shape, (2.0, 0.5, 0.5))
    volume = Segmentation(class_map=labels, geometry=geometry)
    assert CleanUp(min_area=16.5, unit="physical", classes=[1])(volume).class_map.sum() == 0
    assert CleanUp(min_area=15.5, unit="physical", classes=[1])(volume).class_map.sum() == 32
    with pytest.raises(DataError, match="no spacing"):
        CleanUp(min_area=1, unit="physical")(Segmentation(class_map=labels))


def test_objects_are_mended_one_by_one_and_small_ones_go():
    masks = torch.zeros(3, 12, 14, dtype=torch.bool)
    masks[0, 1:7, 1:7] = True
    masks[0, 3, 3] = False
    masks[1, 3, 3] = True  # inside the hole of the first
    masks[2, 8:11, 4:13] = True
    masks[2, 8:11, 8] = False
    instances = Instances(masks=masks, labels=torch.tensor([0, 0, 1]), scores=torch.tensor([0.9, 0.8, 0.7]))
    mended = CleanUp(closing=1.5, fill_holes=2, min_area=2)(Segmentation(instances)).instances
    assert mended.scores.tolist() == pytest.approx([0.9, 0.7])
    assert mended.masks.areas().tolist() == [36, 27]
    assert mended.masks.dense()[0, 3, 3]
    kept = CleanUp(min_area=2, classes=[1])(Segmentation(instances)).instances
    assert torch.equal(kept.masks.dense(), masks)
    none = CleanUp(min_area=99)(Segmentation(instances)).instances
    assert len(none) == 0 and none.size == (12, 14)


def test_wrong_options_are_named():
    for options, message in (
        ({"closing": -1}, "clean_up.closing must be 0 or above"),
        ({"min_area": {"a": -1}}, "clean_up.a must be 0 or above"),
        ({"classes": ["cat"]}, "no class 'cat'; the classes are a, b"),
        ({"classes": [2]}, "no class 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            CleanUp(**options, class_names=("a", "b"))

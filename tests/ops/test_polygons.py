import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy import ndimage

from pixvox.errors import DataError
from pixvox.ops.masks import decode_rle, mask_to_polygons, polygons_to_rle
from pixvox.ops.polygons import polygon_area, polygon_problem


def test_rasterisation_equals_pycocotools_also_beyond_the_frame():
    generator = np.random.default_rng(0)
    compared = 0
    for trial in range(300):
        height, width = (int(n) for n in generator.integers(2, 60, 2))
        corners = generator.integers(3, 12)
        points = generator.random((corners, 2)) * [width, height] * 1.6 - np.array([width, height]) * 0.3
        points = np.round(points * [0.2, 1, 2, 1e6][trial % 4]) / [0.2, 1, 2, 1e6][trial % 4]
        part = points.ravel().tolist()
        if polygon_problem(part, (height, width)) is None:
            compared += 1
            expected = coco.frPyObjects([part], height, width)[0]["counts"].decode()
            assert polygons_to_rle([part], (height, width))["counts"] == expected
    assert compared > 200


def test_parts_are_united():
    parts = [[0, 0, 5, 0, 5, 5, 0, 5], [3, 3, 8, 3, 8, 9, 3, 9], [1, 6, 2, 6, 2, 7, 1, 7]]
    expected = coco.merge(coco.frPyObjects(parts, 10, 9))["counts"].decode()
    assert polygons_to_rle(parts, (10, 9))["counts"] == expected


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ([0, 0, float("nan"), 4, 4, 4], "not a finite number"),
        ([0, 0, float("inf"), 4, 4, 4], "not a finite number"),
        ([0, 0, 1e9, 0, 5, 5], "coordinate 1e\\+09"),
        ([0, 0, 4, 4], "4 numbers; 3 corners need at least 6"),
        ([0, 0, 4, 4, 4, 0, 1], "odd count of 7"),
        ([0, 0, 2, 2, 4, 4], "no area"),
        ([3, 3, 3, 3, 3, 3], "no area"),
        ([20, 20, 30, 20, 30, 30], "outside the image of 9 x 8 pixels"),
        ([[0, 0], [4, 0], [4, 4]], "flat list"),
        (["a", "b", "c", "d", "e", "f"], "not a list of numbers"),
    ],
)
def test_bad_polygons_are_refused_or_dropped(part, message):
    with pytest.raises(DataError, match=message):
        polygons_to_rle([part], (8, 9))
    good = [1, 1, 4, 1, 4, 4, 1, 4]
    with pytest.raises(DataError, match=f"polygon 1 .*{message}"):
        polygons_to_rle([good, part], (8, 9))
    assert polygons_to_rle([good, part], (8, 9), "drop") == polygons_to_rle([good], (8, 9))
    assert not decode_rle(polygons_to_rle([part], (8, 9), "drop")).any()


def test_the_work_depends_on_the_frame_and_not_on_the_polygon():
    part = [-9e5, -9e5, 9e5, -9e5, 9e5, 9e5, -9e5, 9e5]
    assert decode_rle(polygons_to_rle([part], (6, 7))).all()


def test_self_crossing_polygons_are_rasterised():
    part = [0, 0, 6, 6, 6, 0, 0, 6]
    expected = coco.frPyObjects([part], 7, 7)[0]["counts"].decode()
    assert polygons_to_rle([part], (7, 7))["counts"] == expected


def test_no_polygon_and_wrong_options_are_refused():
    with pytest.raises(DataError, match="no polygon"):
        polygons_to_rle([], (4, 4))
    with pytest.raises(ValueError, match="2-D only"):
        polygons_to_rle([[0, 0, 1, 0, 1, 1]], (4, 4, 4))
    with pytest.raises(ValueError, match="on_invalid"):
        polygons_to_rle([[0, 0, 1, 0, 1, 1]], (4, 4), "ignore")


def test_outlines_rasterise_back_to_the_mask_but_for_holes():
    generator = np.random.default_rng(0)
    for density in (0.1, 0.4, 0.6, 0.95):
        for _ in range(8):
            mask = generator.random((13, 17)) < density
            crop, size = torch.from_numpy(mask), (20, 25)
            canvas = np.zeros(size, bool)
            canvas[4:17, 3:20] = ndimage.binary_fill_holes(mask)
            rle = polygons_to_rle(mask_to_polygons(crop, (4, 3)), size)
            assert np.array_equal(decode_rle(rle).numpy(), canvas)


def test_outline_of_a_rectangle_has_its_area_and_four_corners():
    (outline,) = mask_to_polygons(torch.ones(3, 5), (10, 20))
    assert len(outline) == 8
    assert abs(polygon_area(outline)) == 15
    assert min(outline[0::2]) == 20
    assert max(outline[1::2]) == 13


def test_an_empty_mask_has_no_outline_and_a_volume_none_at_all():
    assert mask_to_polygons(torch.zeros(3, 4), (0, 0)) == []
    assert mask_to_polygons(torch.zeros(0, 0), (0, 0)) == []
    with pytest.raises(ValueError, match="2-D only"):
        mask_to_polygons(torch.ones(2, 3, 4), (0, 0, 0))

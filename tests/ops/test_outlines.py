"""Outlines as points that mean the same place on every outline."""

import numpy as np
import pytest
import torch

from pixvox.masks import Masks
from pixvox.ops.outlines import outlines_of, resample_outline
from pixvox.ops.polygons import polygon_area

SQUARE = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])


def _ellipse(count, centre=(20.0, 30.0), radii=(8.0, 5.0), turn=0.3):
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + turn
    return np.stack([centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)], axis=1)


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("backwards", [False, True])
def test_neither_first_corner_nor_direction_change_the_points(turn, backwards):
    corners = np.roll(_ellipse(50), turn * 11, axis=0)
    corners = corners[::-1].copy() if backwards else corners
    np.testing.assert_allclose(resample_outline(corners, 16), resample_outline(_ellipse(50), 16), atol=1e-9)


def test_points_begin_below_and_run_to_the_right():
    points = resample_outline(_ellipse(400), 8)
    expected = [(20, 35), (28, 30), (20, 25), (12, 30)]
    np.testing.assert_allclose(points[::2], expected, atol=0.05)


def test_quarters_have_equal_numbers_at_equal_distances():
    # A wedge: its quarters have different lengths.
    wedge = np.array([[0.0, 0.0], [12.0, 0.0], [0.0, 6.0]])
    points = resample_outline(wedge, 32)
    for quarter in range(4):
        line = np.concatenate([points, points[:1]])[8 * quarter : 8 * quarter + 9]
        along = np.linalg.norm(np.diff(line, axis=0), axis=1)
        assert along.max() <= along.mean() * 1.6, "chords across a corner are shorter, no step is longer"
    assert (polygon_area(points.reshape(-1).tolist()) - -36.0) / 36 < 0.03


def test_more_points_enclose_nearly_all_of_the_mask():
    corners = _ellipse(300)
    areas = [
        abs(polygon_area(resample_outline(corners, count).reshape(-1).tolist())) for count in (8, 32, 128)
    ]
    assert areas[0] < areas[1] < areas[2] < np.pi * 40
    assert areas[2] > 0.995 * np.pi * 40


def test_a_hook_whose_middle_lies_outside_has_an_outline():
    hook = np.array([[0.0, 0], [2, 0], [2, 8], [10, 8], [10, 10], [0, 10]])
    points = resample_outline(hook, 64)
    assert abs(polygon_area(points.reshape(-1).tolist())) > 0.8 * 36
    assert points.min() >= 0 and points.max() <= 10


@pytest.mark.parametrize("shape", ["disc", "bar", "pixel", "corner"])
def test_masks_come_back_from_their_outlines(shape):
    canvas = np.zeros((1, 40, 50), dtype=bool)
    rows, columns = np.mgrid[:40, :50]
    canvas[0] = {
        "disc": (rows - 20) ** 2 + (columns - 22) ** 2 < 150,
        "bar": (rows > 5) & (rows < 9) & (columns > 4) & (columns < 45),
        "pixel": (rows == 3) & (columns == 4),
        "corner": (rows < 12) & (columns < 7),
    }[shape]
    masks = Masks.from_dense(torch.from_numpy(canvas))
    points, share = outlines_of(masks, 128)
    again = Masks.from_polygons([[points[0].reshape(-1).tolist()]], (40, 50)).dense()[0].numpy()
    assert share.tolist() == [1.0]
    assert (again & canvas[0]).sum() / (again | canvas[0]).sum() > 0.93


def test_the_largest_part_is_outlined_and_the_share_tells_what_is_lost():
    canvas = torch.zeros(3, 20, 30, dtype=torch.bool)
    canvas[0, 2:6, 2:10], canvas[0, 10:12, 20:24] = True, True  # 32 and 8 pixels
    canvas[1, 2:12, 2:12] = True
    canvas[1, 5:9, 5:9] = False  # a hole of 16 in 100
    points, share = outlines_of(Masks.from_dense(canvas), 8)
    assert share.tolist() == pytest.approx([32 / 40, 84 / 100, 0.0])
    assert points[0].amin(0).tolist() == [2, 2] and points[0].amax(0).tolist() == [10, 6]
    assert (points[2] == 0).all(), "an empty mask has no outline"


def test_nothing_has_no_outlines():
    points, share = outlines_of(Masks.empty((5, 6)), 8)
    assert points.shape == (0, 8, 2) and share.shape == (0,)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="multiple of 4 points, got 6"):
        resample_outline(SQUARE, 6)
    with pytest.raises(ValueError, match="enclose an area"):
        resample_outline(np.array([[0.0, 0], [1, 1], [2, 2]]), 8)
    with pytest.raises(ValueError, match="2-D only"):
        outlines_of(Masks.empty((4, 5, 6)), 8)

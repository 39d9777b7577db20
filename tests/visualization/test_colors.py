import numpy as np
import pytest

from pixvox.data.label_space import get_label_space
from pixvox.visualization.colors import IGNORE_COLOR, class_colors, color_table, instance_colors, palette


def test_palette_is_distinct_and_stable():
    colors = palette(200)
    assert len(np.unique(colors, axis=0)) == 200
    assert np.array_equal(palette(7), colors[:7])
    assert palette(0).shape == (0, 3)
    assert IGNORE_COLOR not in {tuple(color) for color in colors.tolist()}
    distance = np.abs(colors[:12, None].astype(int) - colors[None, :12]).sum(-1) + 999 * np.eye(12, dtype=int)
    assert distance.min() > 60


@pytest.mark.parametrize("dims", [2, 3])
def test_neighbours_differ(dims):
    """Boxes on a grid of touching cells, in an order in which numbers of neighbours are far apart."""
    side = 6
    corners = np.stack(np.meshgrid(*[np.arange(side) * 10.0] * dims), -1).reshape(-1, dims)
    corners = corners[np.random.default_rng(0).permutation(len(corners))]
    boxes = np.concatenate([corners, corners + 10], axis=1)
    colors = instance_colors(boxes, margin=0.5)
    touching = (np.abs(corners[:, None] - corners[None]) <= 10).all(-1) & ~np.eye(len(corners), dtype=bool)
    same = (colors[:, None] == colors[None]).all(-1)
    shared = (touching & same).sum()
    assert shared == 0 if dims == 2 else shared < 0.02 * touching.sum()  # 26 neighbours, 24 colours
    assert np.array_equal(colors, instance_colors(boxes, margin=0.5))


def test_no_boxes_have_no_colors():
    assert instance_colors(np.zeros((0, 6))).shape == (0, 3)


def test_background_is_see_through():
    colors, drawn = class_colors(("Background", "cell", "_background_"), 4)
    assert drawn.tolist() == [False, True, False, True]
    assert len(colors) == 4


def test_color_table_repeats_and_keeps_zero_black():
    table = color_table(palette(2), 5)
    assert table[0].tolist() == [0, 0, 0]
    assert np.array_equal(table[1], table[3])
    assert color_table(palette(0), 3).shape == (4, 3)


def test_classes_of_a_public_dataset_have_its_usual_colours():
    voc = get_label_space("VOC")
    colors, drawn = class_colors(voc.class_names, 22)
    assert colors[:21].tolist() == [list(color) for color in voc.colors]
    assert drawn.tolist() == [False, *[True] * 21]
    assert class_colors(voc.class_names[:20], 20)[0].tolist() == palette(20).tolist()

import numpy as np
import pytest

from pixvox.data.fingerprint import Fingerprint
from pixvox.data.metadata import Metadata
from pixvox.heads.anchors import AnchorGenerator
from pixvox.heads.maskrcnn_suggestions import suggest_maskrcnn

STRIDES = {2: [[2, 2], [4, 4], [8, 8]], 3: [[1, 2, 2], [2, 4, 4]]}


def facts(dims, sides, counts=(20,), spacing=None, overlaps=(0.0,)):
    return Fingerprint(
        Metadata("instance", dims, ("cell",), 1),
        num_images=10,
        image_sizes=np.full((len(counts), dims), 64),
        objects_per_image=np.array(counts),
        object_sides=np.array(sides, dtype=float),
        box_overlaps=np.array(overlaps),
        spacing=spacing,
    )


def options(*arguments, **keywords):
    found = suggest_maskrcnn(facts(*arguments, **keywords), STRIDES[arguments[0]], (64,) * arguments[0])
    assert all(suggestion.read and suggestion.why for suggestion in found)
    return {suggestion.key: suggestion.value for suggestion in found}


def test_one_side_per_level_in_equal_ratios_over_the_objects():
    assert options(2, [[10, 10]] * 50 + [[40, 40]] * 50)["anchor_sizes"] == [[10.0], [20.0], [40.0]]


def test_an_anchor_spans_three_cells_of_its_level():
    assert options(2, [[7, 7]] * 10)["anchor_sizes"] == [[7.0], [12.0], [24.0]]


def test_alike_objects_get_one_shape_and_others_three():
    assert options(2, [[20, 10]] * 9)["aspect_ratios"] == [2.0]
    assert options(2, [[40, 10], [10, 40]] * 9)["aspect_ratios"] == [0.25, 1.0, 4.0]


def test_anchors_of_a_volume_have_the_shape_of_its_objects():
    sides = [[6, 12, 12]] * 20
    found = options(3, sides, spacing=(2.0, 0.5, 0.5))
    assert (found["anisotropy"], found["depth_ratios"], found["aspect_ratios"]) == (0.25, [2.0], [1.0])
    anchors = AnchorGenerator(
        found["anchor_sizes"], found["aspect_ratios"], found["depth_ratios"], found["anisotropy"]
    ).cell_anchors(0, 3)
    assert (2 * anchors[0, 3:]).tolist() == pytest.approx([12, 12, 6], rel=0.05)


def test_proposals_follow_the_most_crowded_image():
    assert options(2, [[10, 10]], counts=[900])["num_proposals"] == [4500, 4500]
    assert options(2, [[10, 10]], counts=[3])["num_proposals"] == [300, 300]


def test_samples_follow_the_objects_and_stay_in_bounds():
    assert [options(2, [[9, 9]], counts=[count])["box_samples"] for count in (1, 32, 900)] == [128, 256, 512]


def test_suppression_spares_true_neighbours():
    assert [options(2, [[9, 9]], overlaps=[overlap])["nms_threshold"] for overlap in (0.0, 0.4, 0.9)] == [
        0.3,
        0.5,
        0.7,
    ]


def test_volumes_ask_for_less_overlap():
    assert options(3, [[9, 9, 9]])["rpn_iou"] == [0.5, 0.2]
    assert "rpn_iou" not in options(2, [[9, 9]])


def test_no_object_suggests_nothing():
    empty = facts(2, np.zeros((0, 2)))
    assert suggest_maskrcnn(empty, STRIDES[2], (64, 64)) == []

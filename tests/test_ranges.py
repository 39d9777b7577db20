"""Numbers that make no sense are refused when a head is built, in words that name the option."""

import pytest

from pixvox.heads.deformable_detr import DeformableDETR
from pixvox.heads.hybrid import Hybrid
from pixvox.heads.lw_detr import LWDETR
from pixvox.heads.mask2former import Mask2Former
from pixvox.heads.maskdino import MaskDINO
from pixvox.necks.concat_fpn import ConcatFPN
from pixvox.ranges import check_at_least, check_shares, check_weights


def test_not_a_number_is_neither_large_enough_nor_a_share():
    with pytest.raises(ValueError, match="num_layers must be at least 1, got nan"):
        check_at_least(1, num_layers=float("nan"))
    with pytest.raises(ValueError, match="dropout must be from 0 to 1, got nan"):
        check_shares(dropout=float("nan"))


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan"), "abc", []])
def test_weights_are_finite_numbers_that_are_not_negative(weight):
    with pytest.raises(ValueError, match="the weight of the loss box must be a number of at least 0"):
        check_weights({"class": 1.0, "box": weight}, "loss")


@pytest.mark.parametrize("head", [DeformableDETR, LWDETR, Mask2Former, MaskDINO, Hybrid])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"num_layers": -1}, "num_layers must be at least"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_heads": 7}, "cannot be shared by 7 heads; choose a divisor"),
        ({"feedforward": 0}, "feedforward must be at least 1, got 0"),
        ({"num_points": 0}, "num_points must be at least 1"),
        ({"oversample_ratio": float("inf")}, "oversample_ratio must be at least 1"),
        ({"score_threshold": 5.0}, "score_threshold must be from 0 to 1"),
        ({"mask_nms_threshold": -0.5}, "mask_nms_threshold must be from 0 to 1"),
        ({"costs": {"class": 1.0, "mask": -1.0}}, "weight of the matching cost mask must be"),
        ({"weights": {"class": float("nan")}}, "weight of the loss class must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_heads_name_the_option_that_makes_no_sense(head, options, said):
    small = {"num_queries": 3, "num_layers": 1, "num_heads": 2, "feedforward": 8}
    small |= {"channels": 16} if head in (Mask2Former, Hybrid) else {}
    with pytest.raises(ValueError, match=said):
        head((16, 16), ((4, 4), (8, 8)), 2, **{**small, **options})


def test_a_mask_grid_of_no_pixels_is_refused():
    with pytest.raises(ValueError, match="mask_stride must be at least 1, got 0"):
        LWDETR((16, 16), ((4, 4), (8, 8)), 2, num_heads=2, num_cross_heads=2, mask_stride=[4, 0])


def test_a_head_that_learns_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one loss whose weight is not 0"):
        Hybrid((16,), ((4, 4),), 2, channels=16, num_heads=2, weights={"class": 0.0, "mask": 0.0, "dice": 0})


@pytest.mark.parametrize("options", [{"out_channels": 0}, {"coarsest_channels": -8}])
def test_a_neck_without_channels_is_refused(options):
    with pytest.raises(ValueError, match="every level of a neck needs at least 1 channel"):
        ConcatFPN((8, 16), ((4, 4), (8, 8)), **options)

"""Options that make each head small enough for tests that run over all of them."""

import pytest

from pixvox.models import list_heads, part_class

_PIXEL_DECODER = {
    "neck__channels": 64, "neck__mask_channels": 16, "neck__num_layers": 1, "neck__num_heads": 4,
    "neck__feedforward": 32,
}  # fmt: skip
_DECODER = {"num_queries": 9, "num_layers": 2, "num_heads": 4, "feedforward": 32, "num_points": 64}

_LOCATIONS = {"neck__out_channels": 16, "channels": 16, "num_convs": 1, "num_candidates": 20}

SMALL = {
    "maskrcnn": {
        "neck__out_channels": 16, "box_features": 16, "mask_channels": 8, "detections_per_image": 9,
    },
    "deformable_detr": {**_PIXEL_DECODER, **_DECODER, "neck__dropout": 0.0, "dropout": 0.0},
    "lw_detr": {**_DECODER, "neck__out_channels": 64, "neck__num_blocks": 1, "num_cross_heads": 4, "groups": 2,
                "mask_feedforward": 32},
    "mask2former": {**_PIXEL_DECODER, **_DECODER, "channels": 64},
    "maskdino": {**_PIXEL_DECODER, **_DECODER},
    "hybrid": {**_DECODER, "neck__out_channels": 16, "neck__coarsest_channels": 16, "channels": 64, "dropout": 0.0},
    "contourformer": {
        "neck__channels": 16, "neck__num_heads": 2, "neck__feedforward": 16, "neck__num_blocks": 1,
        "neck__norm": "group", "num_queries": 9, "num_points": 16, "points_per_part": 4, "num_layers": 2,
        "num_heads": 2, "points_per_head": 2, "feedforward": 16, "num_bins": 8, "denoising_queries": 6,
    },
    "solo": _LOCATIONS,
    "decoupled_solo": _LOCATIONS,
    "deeplabv3": {"channels": 8, "aux_level": -2},
    "deeplabv3plus": {"channels": 8, "low_channels": 8},
    "lraspp": {"channels": 8},
    "pspnet": {"channels": 8, "aux_level": -2},
    "upernet": {"channels": 8, "aux_level": -2, "aux_channels": 8},
    "segformer": {"channels": 8},
    "unet": {"convs": 1},
    "solov2": {**_LOCATIONS, "mask_channels": 16, "kernel_channels": 16},
    "bisenet": {"channels": 8, "spatial_channels": 4},
    "bisenetv2": {"hidden_channels": 8, "aux_channels": 4},
    "pidnet": {"hidden_channels": 8},
    "regseg": {"channels": 8, "fine_channels": 4},
    "sfnet": {"channels": 8},
    "sfnet_lite": {"channels": 8},
}  # fmt: skip


def over_any_backbone(spatial_dims=None):
    """Return the heads that take a pyramid; those for the branches of one network have tests of their own."""
    return [head for head in list_heads(spatial_dims=spatial_dims) if not part_class("head", head).branches]


ALIKE = {*list_heads("semantic")} - {*list_heads("instance"), "fcn", "unet"}
"""Heads that ask of other parts what FCN and U-Net ask; they have quick tests of their own."""


def slow_if_alike(head, *rest):
    """Return a case of a test of all heads; those of heads that are alike are slow tests."""
    return pytest.param(head, *rest, marks=[pytest.mark.slow] if head in ALIKE else [])


def small(head, **options):
    """Return options of ``create_model``; instances of any score are given out."""
    given = SMALL.get(head)
    return options if given is None else {"score_threshold": 0.0, **given, **options}

"""BiSeNet computes what CoinCheung's computed (see tests/fixtures/semantic_networks)."""

import pytest
import torch

from formula import assert_every_second_pixel, fill, recorded, uniform
from pixvox.heads.bisenet import BiSeNet
from pixvox.structures import Features

PARTS = [
    *("context_path.refine.0", "context_path.refine.1"),
    *("context_path.smooth.1", "context_path.smooth.0", "context_path.mean"),
    *("spatial_path", "fusion", "classifier", "aux_classifiers"),
]
STRIDES = ((16, 16), (32, 32))


def test_scores_and_auxiliary_scores_equal_the_reference():
    wanted, names = recorded("bisenet")
    head = fill(BiSeNet((256, 512), STRIDES, 3), PARTS, names)
    head.gives_aux = True
    levels = [uniform(f"level{stride}", (1, 16 * stride, 64 // stride, 96 // stride)) for stride in (16, 32)]
    size = (64, 96)
    with torch.no_grad():
        outputs = head(
            Features(tuple(levels), STRIDES, uniform("image", (1, 3, *size)), size, torch.tensor([size]))
        )
    for name, maps in {"logits": outputs["logits"], **outputs["aux_logits"]}.items():
        assert_every_second_pixel(maps, wanted.pop(name))
    assert not wanted


@pytest.mark.parametrize(
    ("strides", "steps", "names"),
    [
        (((4, 4), (16, 16), (32, 32)), [(2, 2), (2, 2), (2, 2)], ["aux_16", "aux_32"]),
        (((2, 2), (4, 4), (8, 8)), [(2, 2), (1, 1), (1, 1)], ["aux_4", "aux_8"]),
        (((1, 8, 8), (4, 16, 16)), [(1, 2, 2), (1, 2, 2), (1, 1, 1)], ["aux_8", "aux_16"]),
        (((14, 14), (28, 28)), [(2, 2), (2, 2), (1, 1)], ["aux_14", "aux_28"]),
    ],
)
def test_the_path_over_the_image_goes_down_to_half_the_stride_of_the_context(strides, steps, names):
    head = BiSeNet((4,) * len(strides), strides, 2, len(strides[0]), channels=8)
    assert [tuple(layer[0].stride) for layer in list(head.spatial_path)[:3]] == steps
    assert head.aux_names == names


def test_dilated_levels_are_refused_with_the_repair():
    with pytest.raises(ValueError, match=r"different strides, such as 16 and 32, got .*output_stride at 32"):
        BiSeNet((4, 4), ((16, 16), (16, 16)), 2)

import math

import numpy as np
import pytest

from pixvox.backbones.custom_resnet import CustomResNet
from pixvox.backbones.darknet import DarkNet
from pixvox.backbones.swin import Swin
from pixvox.backbones.timm_backbone import TimmBackbone
from pixvox.backbones.vit import ViT
from pixvox.backbones.windowed_vit import WindowedViT
from pixvox.data.fingerprint import Fingerprint
from pixvox.data.metadata import Metadata
from pixvox.data.suggestions import (
    Budget,
    StepMemory,
    halving,
    notes,
    pyramid_strides,
    query_count,
    suggest_batch,
    suggest_reading,
    suggest_size,
)

CPU, GPU = Budget("cpu", 16 * 2**30, "stated"), Budget("cuda", 16 * 2**30, "stated")


def facts(dims=2, size=(256, 256), sides=((20, 20),), images=100, task="instance", channels=1, **changes):
    names = ("cell",) if task == "instance" else ("background", "part")
    values = {
        "metadata": Metadata(task, dims, names, channels),
        "num_images": images,
        "image_sizes": np.array([size]),
        "objects_per_image": np.array([10]),
        "object_sides": np.array(sides, dtype=float).reshape(-1, dims),
        "foreground": np.array([0.1]),
        "channel_ranges": ((0.0, 1.0, 200.0, 255.0),) * channels,
        "dtypes": ("uint8",),
    }
    return Fingerprint(**{**values, **changes})


def by_key(suggestions):
    return {suggestion.key: suggestion.value for suggestion in suggestions}


def test_photographs_get_a_fixed_scale_and_whole_pictures_with_large_objects():
    pictures = facts(size=(480, 640), sides=((30, 30), (200, 250)), channels=3, coloured=True)
    found = by_key(suggest_reading(pictures, [1.0, 99.8], adam_from_scratch=True))
    assert (found["normalizer"], found["transforms"], found["learning_rate"]) == ("imagenet", "fit", 1e-3)


def test_coloured_images_of_small_objects_are_cut_into_patches():
    pictures = facts(size=(480, 640), sides=((30, 30), (40, 25)), channels=3, coloured=True)
    assert by_key(suggest_reading(pictures, None, False))["transforms"] == "crops"


def test_measured_intensities_are_normalised_by_percentiles():
    found = by_key(suggest_reading(facts(dtypes=("uint16",)), [1.0, 99.8], adam_from_scratch=False))
    assert found == {"normalizer": "percentile", "transforms": "crops"}


def test_upper_percentile_lies_inside_sparse_objects():
    found = by_key(suggest_reading(facts(foreground=np.array([0.001])), [1.0, 99.8], False))
    assert found["data.options.percentiles"] == [1.0, 99.975]
    assert "data.options.percentiles" not in by_key(suggest_reading(facts(), [1.0, 99.8], False))


def test_patch_is_the_median_image_when_that_fits():
    size, factor = suggest_size(facts(size=(200, 250)), (32, 32), CPU, whole_pictures=False)
    assert (size.value, factor) == ([224, 256], 1.0)


def test_patch_loses_its_physically_longest_axis_first():
    volume = facts(3, (51, 128, 122), sides=((14, 18, 16),), spacing=(1.75, 0.8, 0.8))
    size, _ = suggest_size(volume, (4, 8, 8), CPU, whole_pictures=False)
    assert size.value == [48, 104, 104]
    assert math.prod(size.value) <= CPU.patch_pixels(3)


def test_patch_keeps_twice_the_large_objects_whatever_the_budget():
    volume = facts(3, (8, 2000, 2000), sides=((4, 700, 300),))
    size, _ = suggest_size(volume, (4, 32, 32), CPU, whole_pictures=False)
    assert size.value[1] >= 1400
    assert size.value[2] >= 600


def test_whole_pictures_are_resized_within_the_budget_and_say_by_how_much():
    size, factor = suggest_size(facts(size=(3000, 4000)), (32, 32), GPU, whole_pictures=True)
    assert (size.value, factor) == (1024, 0.256)
    size, factor = suggest_size(facts(size=(300, 400)), (32, 32), GPU, whole_pictures=True)
    assert (size.value, factor) == (384, 0.96)


@pytest.mark.parametrize(
    ("images", "step", "batch"),
    [
        (1000, None, 8),  # eight full patches of work
        (60, None, 3),  # 5 % of the data
        (4, None, 2),  # at least two
        (1000, StepMemory(2**30, 2 * 2**30, "stated"), 4),  # (0.6 * 16 - 1) / 2
        (1000, StepMemory(2**30, 6 * 2**30, "stated"), 1),  # a second one does not fit
    ],
)
def test_batch_is_the_least_of_work_data_and_memory(images, step, batch):
    assert suggest_batch(facts(images=images), (256, 256), CPU, step).value == batch


def test_a_coarse_axis_is_left_alone_until_the_plane_has_caught_up():
    thick = facts(3, (64, 256, 256), sides=(), spacing=(4.0, 1.0, 1.0))
    assert pyramid_strides(thick, 2, 4) == [[1, 2, 2], [1, 4, 4], [2, 8, 8], [4, 16, 16]]
    equal = facts(3, (64, 256, 256), sides=())
    assert pyramid_strides(equal, 2, 3) == [[2, 2, 2], [4, 4, 4], [8, 8, 8]]


def test_an_axis_of_few_planes_is_not_halved_away():
    assert halving(facts(3, (6, 256, 256), sides=()), [1, 1, 1]) == [1, 2, 2]
    assert pyramid_strides(facts(3, (16, 64, 64), sides=()), 1, 4)[-1] == [4, 8, 8]


def test_strides_stop_where_every_axis_has_too_few_cells():
    assert pyramid_strides(facts(size=(8, 8)), 4, 3) == [[2, 2], [2, 2], [2, 2]]


def test_notes_tell_of_saturation_rare_classes_and_small_objects():
    told = " ".join(
        notes(
            facts(
                sides=((5, 5),), saturated=0.2, touching=0.5, broken=2, class_shares={"a": 0.999, "b": 0.001}
            )
        )
    )
    for word in (
        "saturated",
        "2 images cannot be read",
        "less than 1% each (b)",
        "touch another",
        "narrower than 8",
    ):
        assert word in told
    assert "queries needs about" in " ".join(notes(facts()))
    assert len(notes(facts())) == 1


def test_queries_exceed_the_objects_of_the_most_crowded_image():
    counts = (3, 5, 400)
    told = notes(facts(objects_per_image=np.array(counts)))[0]
    assert f"about {query_count(399.21)}" in told and query_count(399.21) > 400
    assert notes(facts(objects_per_image=np.array([1, 2])))[0].startswith(
        "a head with a fixed number of queries needs about 100"
    )


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (Swin, {"variant": "tiny", "channels": 4, "depths": [1, 1], "num_heads": [1, 1], "out_levels": None}, [1, 2]),
        (DarkNet, {"depths": [1] * 5, "width": 4}, [1, 1, 2, 2, 2]),
        (TimmBackbone, {"name": "resnet18", "out_levels": [2, 3]}, [1, 1, 2]),
        (ViT, {"name": "vit_tiny_patch16_224", "patch_size": 16, "out_levels": [2, 3]}, [1, 1, 2, 2]),
        (CustomResNet, {"stem_channels": 4, "channels": [4, 8], "depths": [1, 1], "block": "basic",
                        "out_levels": None, "stride_in_first_stage": False}, [1, 1, 2]),
    ],
)  # fmt: skip
def test_backbones_take_the_strides_along_depth_that_they_suggest(kind, options, expected):
    thick = facts(3, (32, 256, 256), ((4, 20, 20),), spacing=(2.0, 0.5, 0.5))
    (suggestion,) = kind.suggest(thick, options)
    assert (suggestion.key, suggestion.value) == ("depth_strides", expected)
    backbone = kind(spatial_dims=3, **options, depth_strides=suggestion.value)
    assert backbone.strides[-1][0] == math.prod(expected[: int(math.log2(backbone.strides[-1][-1]))])
    assert kind.suggest(facts(), options) == []


@pytest.mark.parametrize(
    ("planes", "spacing", "patch", "windows"),
    [(32, (2.0, 0.5, 0.5), [4, 16, 16], 4), (3, (1.0, 1.0, 1.0), [1, 16, 16], 1), (12, None, [2, 16, 16], 3)],
)
def test_patches_and_windows_of_a_plain_transformer_fit_thin_volumes(planes, spacing, patch, windows):
    options = {"patch_size": 16, "windows": 4}
    found = by_key(
        WindowedViT.suggest(facts(3, (planes, 256, 256), ((2, 20, 20),), spacing=spacing), options)
    )
    assert found == {"patch_size": patch, "windows": [windows, 4, 4]}
    built = WindowedViT(3, 1, 8, num_heads=2, out_blocks=(1,), windowed_blocks=(1,), **found)
    assert built.size_divisor[0] <= planes
    assert WindowedViT.suggest(facts(), options) == []

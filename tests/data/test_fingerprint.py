import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pixvox.data.dataset import Dataset
from pixvox.data.fingerprint import Fingerprint, read_fingerprint
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.errors import DataError


class Listed(Dataset):
    """The samples that it is given; an error in their place is raised."""

    def __init__(self, metadata, samples):
        self.metadata, self.samples = metadata, samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        if isinstance(sample, Exception):
            raise sample
        return replace(sample, index=index)

    def unlabelled_indices(self):
        return [
            i for i, sample in enumerate(self.samples) if isinstance(sample, Sample) and not sample.annotated
        ]


def cells(size=(12, 20), **changes):
    """Two touching boxes of 4 x 3 and 4 x 6, one alone of 2 x 5, and a crowd."""
    layer = torch.zeros(size, dtype=torch.int32)
    layer[..., 1:5, 2:5] = 1
    layer[..., 1:5, 5:11] = 2
    layer[..., 8:10, 12:17] = 3
    layer[..., 11:12, 0:9] = 4
    sample = Sample(
        image=torch.arange(layer.numel(), dtype=torch.float32).reshape(1, *size),
        layers=layer[None],
        labels=torch.tensor([0, 1, 0, 1]),
        ignore=torch.tensor([False, False, False, True]),
    )
    return replace(sample, **changes)


METADATA = Metadata("instance", 2, ("round", "long"), 1)


def test_sides_counts_and_classes_are_those_of_the_objects_without_crowds():
    facts = read_fingerprint(Listed(METADATA, [cells()]))
    assert facts.objects_per_image.tolist() == [3]
    assert sorted(facts.object_sides.tolist()) == [[2, 5], [4, 3], [4, 6]]
    assert sorted(facts.object_volumes.tolist()) == [10, 12, 24]
    assert facts.class_shares == pytest.approx({"round": 2 / 3, "long": 1 / 3})
    assert facts.touching == pytest.approx(2 / 3)


def test_crowds_neither_touch_nor_cover():
    alone = cells(ignore=torch.tensor([False, True, True, True]))
    facts = read_fingerprint(Listed(METADATA, [alone]))
    assert facts.touching == 0
    assert facts.foreground.tolist() == pytest.approx([12 / 240])


def test_sides_of_a_volume_are_in_array_order():
    layer = torch.zeros(6, 12, 20, dtype=torch.int32)
    layer[1:3, 2:7, 4:13] = 1
    metadata = Metadata("instance", 3, ("cell",), 1)
    sample = Sample(
        torch.rand(1, 6, 12, 20),
        layer[None],
        torch.tensor([0]),
        torch.tensor([False]),
        spacing=(2.0, 0.5, 0.5),
    )
    facts = read_fingerprint(Listed(metadata, [sample]))
    assert facts.object_sides.tolist() == [[2, 5, 9]]
    assert facts.relative_spacing == (4.0, 1.0, 1.0)
    assert facts.to_dict()["object_sides_um"]["p50"] == [4.0, 2.5, 4.5]


def test_boxes_that_overlap_are_measured_against_their_nearest():
    layers = torch.zeros(2, 10, 10, dtype=torch.int32)
    layers[0, 0:4, 0:4] = 1
    layers[1, 2:6, 0:4] = 2
    sample = Sample(torch.rand(1, 10, 10), layers, torch.tensor([0, 0]), torch.tensor([False, False]))
    facts = read_fingerprint(Listed(METADATA, [sample]))
    assert facts.box_overlaps.tolist() == pytest.approx([8 / 24, 8 / 24])


def test_semantic_shares_leave_the_ignored_out():
    class_map = torch.tensor([[0, 0, 1, 1], [0, 255, 2, 255]])
    metadata = Metadata("semantic", 2, ("background", "a", "b"), 1)
    facts = read_fingerprint(Listed(metadata, [Sample(torch.rand(1, 2, 4), class_map=class_map)]))
    assert facts.class_shares == pytest.approx({"background": 1 / 2, "a": 1 / 3, "b": 1 / 6})
    assert facts.foreground.tolist() == [0.5]


def test_saturation_counts_pixels_at_the_highest_value_but_not_in_a_constant_image():
    image = torch.zeros(1, 12, 20)
    image[0, :6] = 255
    facts = read_fingerprint(Listed(METADATA, [cells(image=image), cells(image=torch.ones(1, 12, 20))]))
    assert facts.saturated == pytest.approx(0.25)


def test_colour_is_told_from_grey_stored_as_rgb():
    metadata = Metadata("instance", 2, ("round", "long"), 3)
    grey = torch.rand(1, 12, 20).mul(255).round().expand(3, -1, -1).clone()
    coloured = torch.stack([grey[0], 255 - grey[0], grey[0] / 2])
    assert not read_fingerprint(Listed(metadata, [cells(image=grey)])).coloured
    assert read_fingerprint(Listed(metadata, [cells(image=coloured)])).coloured


def test_subset_is_seeded_and_of_the_number_asked_for():
    samples = [cells(size=(12, 20 + i)) for i in range(9)]
    first, again, other = (
        read_fingerprint(Listed(METADATA, samples), most_images=4, seed=seed).image_sizes.tolist()
        for seed in (1, 1, 2)
    )
    assert len(first) == 4
    assert first == again != other


def test_time_is_bounded_and_one_image_is_always_read():
    facts = read_fingerprint(Listed(METADATA, [cells(), cells(), cells()]), most_seconds=-1.0)
    assert len(facts.image_sizes) == 1
    assert facts.num_images == 3


def test_unlabelled_images_are_not_read_and_broken_ones_are_counted():
    samples = [cells(), cells().unlabelled(), DataError("cut off")]
    facts = read_fingerprint(Listed(METADATA, samples))
    assert (len(facts.image_sizes), facts.broken) == (1, 1)
    with pytest.raises(DataError, match="none of 1 annotated images can be read"):
        read_fingerprint(Listed(METADATA, samples[1:]))


def test_images_without_objects_make_a_fingerprint():
    empty = cells(
        layers=torch.zeros(1, 12, 20, dtype=torch.int32),
        labels=torch.zeros(0).long(),
        ignore=torch.zeros(0).bool(),
    )
    facts = read_fingerprint(Listed(METADATA, [empty]))
    assert facts.objects_per_image.tolist() == [0]
    assert facts.object_sides.shape == (0, 2)
    assert json.loads(json.dumps(facts.to_dict()))["objects"] == 0


def test_objects_of_a_patch_are_as_dense_as_their_image():
    facts = Fingerprint(METADATA, 2, np.array([[100, 100], [40, 40]]), objects_per_image=np.array([80, 8]))
    assert facts.objects_per_patch((50, 50), 100) == 20
    assert facts.objects_per_patch((50, 50), 0) == 8


def test_resized_facts_are_in_the_pixels_the_network_sees():
    facts = read_fingerprint(Listed(METADATA, [cells()])).resized(0.5)
    assert facts.median_size == (6, 10)
    assert sorted(facts.object_sides.tolist()) == [[1, 2.5], [2, 1.5], [2, 3]]

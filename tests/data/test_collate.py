import pytest
import torch

from pixvox.data.collate import Collate
from pixvox.data.sample import Sample
from pixvox.data.transforms.resize import resize
from pixvox.errors import DataError


def blob(size, channels=1, **fields):
    layers = torch.zeros((1, *size), dtype=torch.int32)
    layers[(0, *[slice(0, 2)] * len(size))] = 1
    image = torch.full((channels, *size), 5.0)
    return Sample(image, layers, torch.tensor([0]), torch.tensor([False]), **fields)


def test_batch_is_padded_at_the_far_ends_to_the_divisor_of_each_axis():
    limits = torch.tensor([[2.0, 9.0]])
    batch = Collate(size_divisor=(4, 8, 16))(
        [blob((3, 5, 7), intensity_range=limits), blob((5, 2, 17), intensity_range=limits)]
    )
    assert batch.images.shape == (2, 1, 8, 8, 32)
    assert batch.valid_sizes.tolist() == [[3, 5, 7], [5, 2, 17]]
    assert (batch.images[0, :, :3, :5, :7] == 5).all()
    assert (batch.images[0, :, 3:] == 2).all(), "padding has the low end of the range"
    assert batch.targets[1].size == (8, 8, 32)
    assert batch.targets[1].boxes.tolist() == [[0, 0, 0, 2, 2, 2]]


def test_training_batches_have_one_size_whatever_their_images():
    assert Collate(size_divisor=4, min_size=(9, 12))([blob((3, 5))]).images.shape == (1, 1, 12, 12)


def test_padding_of_class_maps_is_ignored():
    sample = Sample(torch.zeros(1, 2, 3), class_map=torch.ones(2, 3, dtype=torch.int64), ignore_index=77)
    targets = Collate(size_divisor=4)([sample]).targets
    assert targets.shape == (1, 4, 4)
    assert (targets == 77).sum() == 10
    assert (targets[0, :2, :3] == 1).all()


def test_unlabelled_batch_has_no_targets():
    assert Collate(size_divisor=1)([blob((3, 4)).unlabelled()]).targets is None


def test_geometry_leads_back_through_a_resize():
    sample = resize(blob((6, 8), spacing=(2.0, 1.0)), (3, 8))
    geometry = Collate(size_divisor=4)([sample]).geometries[0]
    assert geometry.input_size == (4, 8)
    assert geometry.valid_size == (3, 8)
    assert geometry.original_size == (6, 8)
    assert geometry.spacing == (2.0, 1.0)
    assert geometry.boxes_to_original(torch.tensor([[1.0, 1, 2, 3]])).tolist() == [[1, 2, 2, 6]]


def test_images_of_different_channels_are_refused_with_the_repair():
    with pytest.raises(DataError, match="channels=rgb"):
        Collate()([blob((3, 4)), blob((3, 4), channels=3)])


def test_labelled_and_unlabelled_images_do_not_mix():
    with pytest.raises(DataError, match="same kind"):
        Collate()([blob((3, 4)), blob((3, 4)).unlabelled()])

import numpy as np
import pytest
import torch

from pixvox.data.sample import Sample, intensity_range, layers_from_masks, renumber
from pixvox.errors import DataError
from pixvox.structures import Masks


def instance_sample(label_map, **fields):
    layers, ids = renumber(np.asarray(label_map))
    n = len(ids)
    return Sample(
        image=torch.zeros(1, *layers.shape),
        layers=layers[None],
        labels=torch.arange(n),
        ignore=torch.zeros(n, dtype=torch.bool),
        **fields,
    )


@pytest.mark.parametrize("top", [7, 70_000, 2**24 + 1, 2**40 + 1])
def test_renumber_keeps_every_id_apart(top):
    label_map = np.array([[0, top, 3], [3, top - 1, top]], dtype=np.int64)
    numbers, ids = renumber(label_map)
    assert ids.tolist() == [3, top - 1, top]
    assert np.array_equal(np.concatenate([[0], ids])[numbers.numpy()], label_map)


def test_renumber_without_background_starts_at_one():
    numbers, ids = renumber(np.array([[2**30, 2**31]], dtype=np.int64))
    assert numbers.tolist() == [[1, 2]]
    assert ids.tolist() == [2**30, 2**31]


def test_renumber_refuses_negative_ids():
    with pytest.raises(DataError, match="-4"):
        renumber(np.array([[0, -4]]))


@pytest.mark.parametrize("size", [(5, 6), (2, 5, 6)])
def test_overlapping_masks_keep_every_pixel(size):
    dense = torch.rand((4, *size), generator=torch.Generator().manual_seed(0)) > 0.4
    layers = layers_from_masks(Masks.from_dense(dense))
    for i in range(4):
        assert torch.equal((layers == i + 1).any(dim=0), dense[i])


def test_disjoint_masks_share_one_layer():
    dense = torch.eye(3, dtype=torch.bool)[:, None]
    assert layers_from_masks(Masks.from_dense(dense)).shape == (1, 1, 3)


def test_targets_drop_objects_below_the_smallest_size_and_keep_labels_aligned():
    sample = instance_sample([[1, 1, 0, 5], [0, 9, 9, 9]])
    targets = sample.targets(min_size=2)
    assert targets.labels.tolist() == [0, 2]
    assert targets.boxes.tolist() == [[0, 0, 2, 1], [1, 1, 4, 2]]
    assert targets.masks.areas().tolist() == [2, 3]


def test_objects_of_several_layers_come_in_order_of_their_ids():
    layers = torch.tensor([[[1, 1, 3]], [[0, 2, 2]]], dtype=torch.int32)
    sample = Sample(
        torch.zeros(1, 1, 3),
        layers,
        torch.tensor([4, 5, 6]),
        torch.tensor([False, True, False]),
    )
    instances = sample.instances()
    assert instances.labels.tolist() == [4, 5, 6]
    assert instances.ignore.tolist() == [False, True, False]
    assert instances.boxes[:, 0].tolist() == [0, 1, 2]


def test_image_without_objects_gives_typed_empty_targets():
    targets = instance_sample(np.zeros((3, 4), int)).targets()
    assert len(targets) == 0
    assert targets.size == (3, 4)
    assert targets.boxes.shape == (0, 4)


def test_unlabelled_image_has_no_targets():
    sample = instance_sample([[1, 0]]).unlabelled()
    assert sample.targets() is None
    assert not sample.annotated
    with pytest.raises(DataError, match="no instance annotations"):
        sample.instances()


def test_truth_holds_everything_in_the_original_frame():
    sample = instance_sample([[1, 0], [0, 2]], spacing=(2.0, 0.5), unit="mm", source="a.png")
    truth = sample.truth(("cell",))
    assert truth.label_map().tolist() == [[1, 0], [0, 2]]
    assert truth.geometry.spacing == (2.0, 0.5)
    assert truth.geometry.unit == "mm"
    assert truth.source == "a.png"
    assert truth.image is sample.image


def test_intensity_range_is_per_channel_and_of_the_stated_percentiles():
    image = np.stack([np.arange(101.0), 10 * np.arange(101.0)])[:, None]
    assert intensity_range(image, (10, 90)).tolist() == [[10, 90], [100, 900]]


def test_intensity_range_of_a_large_image_looks_at_all_columns():
    image = np.zeros((1, 600, 1000))
    image[:, :, 500:] = 1
    low, high = intensity_range(image, (40, 60), max_elements=1000)[0].tolist()
    assert (low, high) == (0, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_intensity_ranges_equal_numpys_percentiles(dtype):
    for seed, size in enumerate([(1, 1), (5, 7), (31, 40), (2, 3, 5)]):
        image = np.random.default_rng(seed).integers(0, 200, (2, *size)).astype(dtype)
        for percentiles in ((1.0, 99.8), (0.0, 100.0), (37.0, 37.0)):
            expected = np.percentile(image.reshape(2, -1), percentiles, axis=1).T.astype(np.float32)
            assert np.allclose(intensity_range(image, percentiles).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_renumbering_takes_every_integer_type_and_gives_int32(dtype):
    for values in ([[0, 1], [2, 3]], [[0, 7], [3, 7]], [[5, 7], [3, 7]], [[0, 0], [0, 0]]):
        numbers, ids = renumber(np.array(values, dtype))
        assert numbers.dtype == torch.int32
        assert ids.tolist() == sorted({value for row in values for value in row} - {0})
        back = np.concatenate([[0], ids])[numbers.numpy()]
        assert back.tolist() == values


def test_boxes_of_expanded_objects_are_those_of_their_masks():
    layers = torch.randint(0, 4, (2, 9, 11), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    layers[1] = (layers[1] > 2) * 4
    sample = Sample(torch.zeros(1, 9, 11), layers, torch.arange(4), torch.zeros(4, dtype=torch.bool))
    instances = sample.instances()
    assert torch.equal(instances.boxes, instances.masks.boxes())
    assert instances.labels.tolist() == [0, 1, 2, 3]

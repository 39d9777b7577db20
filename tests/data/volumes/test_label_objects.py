import numpy as np
import pytest

from label_maps import random_objects
from pixvox.data.volumes.label_objects import label_objects
from pixvox.errors import DataError


@pytest.mark.parametrize("size", [(7, 19, 23), (19, 31), (1, 6, 5)])
def test_objects_are_those_of_brute_force_whatever_their_ids(size):
    labels = random_objects(size, 15, seed=3)
    for values in (labels, labels.astype(np.uint64) * 2**40, labels[..., ::-1], np.asfortranarray(labels)):
        found = label_objects(values)
        assert found.ids.tolist() == np.unique(values[values > 0]).tolist()
        for i, number in enumerate(found.ids):
            places = np.argwhere(values == number)
            assert found.low[i].tolist() == places.min(0).tolist()
            assert found.high[i].tolist() == (places.max(0) + 1).tolist()
            assert found.voxels[i] == len(places)


def test_an_object_in_several_parts_is_one():
    found = label_objects(np.array([[4, 0, 4], [0, 0, 0], [0, 4, 0]], dtype=np.uint8))
    assert (found.ids.tolist(), found.high.tolist(), found.voxels.tolist()) == ([4], [[3, 3]], [3])


def test_nothing_is_found_in_background():
    found = label_objects(np.zeros((3, 4, 5), dtype=np.int16))
    assert found.ids.shape == (0,) and found.low.shape == (0, 3)


@pytest.mark.parametrize("value", [-3, 2**63])
def test_ids_that_are_none_are_refused_by_name_of_the_file(value):
    labels = np.array([[0, value, 7]], dtype=np.int64 if value < 0 else np.uint64)
    with pytest.raises(DataError, match=f"cells.tif.*found {value}"):
        label_objects(labels, "cells.tif")

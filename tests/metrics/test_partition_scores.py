import math

import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from noisy_objects import noisy_label_maps
from pixvox.metrics.contingency import ContingencyCounter
from pixvox.metrics.partition_scores import adapted_rand_error, variation_of_information

SIZES = [(15, 22), (7, 9, 11)]


def table_of(predicted, true, ignore=None):
    counter = ContingencyCounter()
    counter.add(predicted, true, ignore)
    return counter.table()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_image(size, seed):
    predicted, true = noisy_label_maps(seed, size, 12)
    table = table_of(predicted, true)
    # scikit-image calls them precision and recall the other way round than its text, and the paper, says.
    error, recall, precision = skimage_metrics.adapted_rand_error(true, predicted)
    rand = adapted_rand_error(table)
    assert list(rand.values()) == pytest.approx([error, precision, recall])
    split, merge = skimage_metrics.variation_of_information(true, predicted)
    information = variation_of_information(table)
    assert information == pytest.approx({"VOI": split + merge, "VOI_split": split, "VOI_merge": merge})


def test_cut_objects_split_and_joined_objects_merge():
    true, cut = np.array([[1, 1, 1, 1, 2, 2, 2, 2]]), np.array([[1, 1, 3, 3, 2, 2, 2, 2]])
    joined = np.ones_like(true)
    assert variation_of_information(table_of(cut, true)) == {"VOI": 0.5, "VOI_split": 0.5, "VOI_merge": 0.0}
    assert variation_of_information(table_of(joined, true)) == {
        "VOI": 1.0,
        "VOI_split": 0.0,
        "VOI_merge": 1.0,
    }
    scores = adapted_rand_error(table_of(cut, true))
    assert (scores["ARAND_precision"], scores["ARAND_recall"]) == (1.0, (2 + 2 + 12) / 24)
    scores = adapted_rand_error(table_of(joined, true))
    assert (scores["ARAND_precision"], scores["ARAND_recall"]) == (24 / 56, 1.0)
    assert scores["ARAND"] == pytest.approx(1 - 2 * 24 / (56 + 24))


def test_ignored_voxels_are_left_out():
    predicted, true = noisy_label_maps(4, (15, 22), 12)
    ignore = np.zeros(true.shape, dtype=bool)
    ignore[:, 15:] = True
    table, cut = table_of(predicted, true, ignore), table_of(predicted[:, :15], true[:, :15])
    assert adapted_rand_error(table) == adapted_rand_error(cut)
    assert variation_of_information(table) == pytest.approx(variation_of_information(cut))


def test_nothing_to_find_and_nothing_found():
    nothing, one = np.zeros((3, 4), dtype=int), np.eye(3, 4, dtype=int)
    empty = table_of(nothing, nothing)
    assert all(math.isnan(value) for value in adapted_rand_error(empty).values())
    assert all(math.isnan(value) for value in adapted_rand_error(table_of(one, nothing)).values())
    assert (
        adapted_rand_error(table_of(nothing, one))["ARAND"] == 0
    )  # one object, all of it in predicted background
    assert variation_of_information(empty)["VOI"] == 0
    assert variation_of_information(table_of(nothing, one))["VOI_split"] == 0
    assert variation_of_information(table_of(one, nothing))["VOI_merge"] == 0
    assert math.isnan(variation_of_information(ContingencyCounter().table())["VOI"])

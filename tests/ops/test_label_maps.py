"""Counts, colours and measures of label maps equal plain numpy, with and without numba."""

import numpy as np
import pytest

from pixvox.ops import label_maps


@pytest.fixture(params=[True, False], ids=["numba", "numpy"], autouse=True)
def kernel(request, monkeypatch):
    monkeypatch.setattr(label_maps, "has_numba", lambda: request.param)


def _labels(size, most, seed=0, dtype=np.uint16):
    random = np.random.default_rng(seed)
    return (random.integers(0, most + 1, size) * random.integers(0, 2, size)).astype(dtype)


SIZES = [(7, 9), (4, 5, 6), (23,)]


@pytest.mark.parametrize("size", SIZES)
def test_overlaps_equal_a_count_by_masks(size):
    first, second = _labels(size, 4, dtype=np.uint32), _labels(size, 3, seed=1)
    found = label_maps.overlaps(first, second)
    counted = {(i, j): n for i, j, n in zip(*(a.tolist() for a in found[:3]), strict=True)}
    pairs = {(i, j): int(((first == i) & (second == j)).sum()) for i in range(1, 5) for j in range(1, 4)}
    assert counted == {pair: count for pair, count in pairs.items() if count}
    assert found.first_sizes.tolist() == [int((first == i).sum()) for i in range(int(first.max()) + 1)]
    assert found.second_sizes.tolist() == [int((second == j).sum()) for j in range(int(second.max()) + 1)]


def test_many_labels_need_no_table_of_all_pairs(monkeypatch):
    first, second = _labels((30, 31), 40), _labels((30, 31), 50, seed=1)
    dense = label_maps.overlaps(first, second)
    monkeypatch.setattr(label_maps, "_TABLE", 10)
    for one, other in zip(label_maps.overlaps(first, second), dense, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("size", SIZES)
def test_relabelling_looks_up_the_number_of_each_label(size):
    labels, numbers, out = _labels(size, 3), np.array([4, 70, 0, 90]), np.full(size, 7, dtype=np.uint32)
    label_maps.relabel(labels, numbers, out)
    assert np.array_equal(out, numbers[labels])


def test_a_part_of_a_map_is_relabelled_in_place():
    canvas = np.zeros((4, 6, 8), dtype=np.uint32)
    labels = _labels((2, 3, 4), 2)
    label_maps.relabel(labels, np.array([0, 5, 6]), canvas[1:3, 2:5, 4:])
    assert np.array_equal(canvas[1:3, 2:5, 4:], np.array([0, 5, 6])[labels])
    assert np.count_nonzero(canvas) == np.count_nonzero(labels)


@pytest.mark.parametrize("size", SIZES)
def test_filling_leaves_what_is_painted_and_what_has_no_number(size):
    labels, canvas = _labels(size, 3), _labels(size, 2, seed=2, dtype=np.uint32)
    expected = canvas.copy()
    for label, value in ((1, 70), (3, 90)):
        expected[(labels == label) & (canvas == 0)] = value
    label_maps.fill_background(canvas, labels, np.array([0, 70, 0, 90]))
    assert np.array_equal(canvas, expected)


@pytest.mark.parametrize("size", SIZES)
def test_measures_equal_those_by_masks(size):
    labels = _labels(size, 4)
    image = np.random.default_rng(3).random((2, *size)).astype(np.float32)
    found = label_maps.shapes(labels, 6, image)
    for label in range(1, 7):
        mask, row = labels == label, label - 1
        places = np.argwhere(mask)
        assert found.sizes[row] == len(places)
        assert found.sums[row].tolist() == places.sum(axis=0).tolist()
        low, high = (
            (places.min(0), places.max(0)) if len(places) else (np.array(size), np.full(len(size), -1))
        )
        assert found.lowest[row].tolist() == low.tolist()
        assert found.highest[row].tolist() == high.tolist()
        np.testing.assert_allclose(found.intensities[row], image[:, mask].sum(axis=1), rtol=1e-5)


def test_without_an_image_there_are_no_intensities():
    assert label_maps.shapes(_labels((5, 6), 2), 2).intensities.shape == (2, 0)

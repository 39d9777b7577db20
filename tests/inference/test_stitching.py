"""Pairs, chains and fragments: which pieces of blocks are one object, and which are none."""

import numpy as np

from pixvox.inference.stitching import Pieces, join, match, number


def _pieces(block, core=None, outside=()):
    core = [1] * len(block) if core is None else core
    return Pieces(
        np.array(block, dtype=np.int64),
        np.array(core, dtype=np.int64),
        np.array(outside, dtype=np.int64).reshape(-1, 3),
    )


def _join(pieces, pairs):
    first, second, iou = (np.array(column) for column in zip(*pairs, strict=True))
    return join(pieces, first, second, iou.astype(float)).tolist()


def test_the_same_voxels_are_one_object_and_touching_ones_are_not():
    first = np.array([[1, 1, 2, 2], [1, 1, 2, 2]])
    second = np.array([[7, 7, 7, 4], [7, 7, 0, 4]])
    found = match(first, second, threshold=0.5)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(1, 7), (2, 4)]
    np.testing.assert_allclose(found.iou, [4 / 5, 2 / 4])


def test_matches_equal_a_count_by_masks():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 9, (2, 6, 7, 8)), random.integers(0, 5, (6, 7, 8))
    for labels in first:
        found = match(labels, second, threshold=0.05)
        expected = {}
        for i in range(1, 9):
            for j in range(1, 5):
                both, either = ((labels == i) & (second == j)).sum(), ((labels == i) | (second == j)).sum()
                if both and both / either >= 0.05:
                    expected[i, j] = both / either
        assert (
            dict(zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.iou, strict=True))
            == expected
        )


def test_a_chain_of_pairs_is_one_object():
    assert _join(_pieces([0, 0, 1, 2]), [(1, 2, 0.9), (2, 3, 0.8)]) == [0, 1, 1, 1]


def test_objects_that_a_block_told_apart_are_never_joined():
    # 0 and 1 are neighbours in block 0; a chain over blocks 1 and 2 would make them one.
    pairs = [(0, 2, 0.9), (2, 3, 0.6), (3, 1, 0.8)]
    assert _join(_pieces([0, 0, 1, 2]), pairs) == [0, 1, 0, 1]


def test_other_objects_do_not_suffer_from_a_conflict():
    pairs = [(0, 2, 0.9), (2, 3, 0.6), (3, 1, 0.8), (4, 5, 0.55)]
    assert _join(_pieces([0, 0, 1, 2, 1, 2]), pairs) == [0, 1, 0, 1, 2, 2]


def test_a_fragment_in_a_margin_is_left_out():
    # What block 0 saw lies mostly in block 1, which found something else there.
    pieces = _pieces([0, 0, 1], core=[30, 2, 50], outside=[(1, 1, 20)])
    assert number(pieces, np.array([0, 1, 2])).tolist() == [1, 0, 2]


def test_an_object_that_a_neighbour_overlooked_stays():
    pieces = _pieces([0, 1], core=[30, 50], outside=[(0, 1, 20)])
    assert number(pieces, np.array([0, 1])).tolist() == [1, 2]


def test_voxels_that_a_neighbour_found_too_do_not_count_against_an_object():
    pieces = _pieces([0, 1], core=[2, 50], outside=[(0, 1, 48), (1, 0, 2)])
    assert number(pieces, np.array([0, 0])).tolist() == [1, 1]


def test_an_object_in_no_block_of_its_own_has_no_id():
    pieces = _pieces([0], core=[0], outside=[(0, 1, 5)])
    assert number(pieces, np.array([0])).tolist() == [0]


def test_nothing_gives_nothing():
    none = np.zeros(0, dtype=np.int64)
    pieces = _pieces([])
    objects = join(pieces, none, none, none * 0.0)
    assert objects.shape == (0,)
    assert number(pieces, objects).shape == (0,)

from itertools import product

import numpy as np
import pytest

from pixvox.errors import DataError
from pixvox.metrics import contingency
from pixvox.metrics.contingency import ContingencyCounter, side_by_side

SIZES = [(13, 17), (5, 7, 9)]
IDS = np.array([0, 3, 70000, 2**31 + 5, 9], dtype=np.uint64)


def patches(seed, size, ids):
    """A label map of small rectangles, so that there are runs as well as single voxels."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(size, dtype=ids.dtype)
    for _ in range(25):
        place = tuple(slice(start, start + generator.integers(1, 5)) for start in generator.integers(0, size))
        labels[place] = generator.choice(ids)
    return labels


def count(predicted, true, ignore=None, block=None, **options):
    counter = ContingencyCounter(**options)
    steps = [range(0, length, step) for length, step in zip(true.shape, block or true.shape, strict=True)]
    for origin in product(*steps):
        place = tuple(slice(o, o + s.step) for o, s in zip(origin, steps, strict=True))
        counter.add(predicted[place], true[place], None if ignore is None else ignore[place], origin)
    return counter.table()


def as_dictionaries(table):
    """The table by id, whatever the order of its rows."""
    overlaps = table.overlaps
    pairs = {
        (int(overlaps.predicted_ids[p]), int(overlaps.true_ids[t])): int(n)
        for p, t, n in zip(overlaps.predicted, overlaps.true, overlaps.counts, strict=True)
    }
    predicted = zip(overlaps.predicted_sizes, table.void, table.predicted_centroids.tolist(), strict=True)
    true = zip(overlaps.true_sizes, table.true_extents, table.true_centroids.tolist(), strict=True)
    return (
        pairs,
        dict(zip(overlaps.predicted_ids.tolist(), predicted, strict=True)),
        dict(zip(overlaps.true_ids.tolist(), true, strict=True)),
        table.voxels,
    )


def assert_equal(found, expected):
    for ours, theirs in zip(as_dictionaries(found), as_dictionaries(expected), strict=True):
        np.testing.assert_equal(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", [20, 2**40, 2**63])
def test_the_table_equals_brute_force(size, first, monkeypatch):
    """Ids of any size and no order, a region and ids to ignore, and an anisotropic spacing."""
    monkeypatch.setattr(contingency, "_PIECE", 50)
    ids = IDS.copy()
    ids[2:4] = ids[1] + np.uint64(first), ids[2] + np.uint64(first)  # equal in their last 32 bits to others
    predicted, true = patches(0, size, ids), patches(1, size, np.array([0, 1, 2, 3, 255], dtype=np.uint8))
    ignore = np.random.default_rng(2).random(size) < 0.2
    spacing = (3.0, 0.5, 1.0)[-len(size) :]
    pairs, predictions, truths, voxels = as_dictionaries(
        count(predicted, true, ignore, spacing=spacing, ignore_ids=(255,))
    )
    void = ignore | (true == 255)
    assert voxels == (~void).sum()
    assert pairs == {
        (int(p), int(t)): int(both.sum())
        for p in ids[1:] for t in (1, 2, 3)
        if (both := (predicted == p) & (true == t) & ~void).any()
    }  # fmt: skip
    assert set(predictions) == set(np.unique(predicted).tolist()) - {0}
    for p, (known, ignored, centroid) in predictions.items():
        assert (known, ignored) == (((predicted == p) & ~void).sum(), ((predicted == p) & void).sum())
        place = np.argwhere((predicted == p) & ~void) * spacing
        assert centroid == pytest.approx(place.mean(axis=0))
    assert set(truths) == set(np.unique(true[~void]).tolist()) - {0}
    for t, (known, extent, centroid) in truths.items():
        assert known == ((true == t) & ~void).sum()
        assert extent == known * np.prod(spacing)
        assert centroid == pytest.approx((np.argwhere((true == t) & ~void) * spacing).mean(axis=0))


@pytest.mark.parametrize("block", [(1, 1, 1), (2, 7, 4), (5, 3, 9), (4, 4, 4)])
def test_blocks_equal_the_whole(block, monkeypatch):
    monkeypatch.setattr(contingency, "_LEAST_ROWS", 8)  # pairs are added up again and again
    size = (5, 7, 9)
    predicted, true = patches(3, size, IDS), patches(4, size, IDS)
    ignore = np.random.default_rng(5).random(size) < 0.2
    assert_equal(count(predicted, true, ignore, block), count(predicted, true, ignore))


def test_memory_grows_with_pairs_and_not_with_blocks(monkeypatch):
    monkeypatch.setattr(contingency, "_LEAST_ROWS", 500)
    counter = ContingencyCounter()
    block = np.arange(1, 257, dtype=np.uint16).reshape(16, 16)
    most = 0
    for number in range(60):
        counter.add(block, block, origin=(16 * number, 0))
        most = max(most, sum(len(part.first) for part in counter._known._parts))
    assert most <= 256 + 500
    assert counter.table().overlaps.counts.tolist() == [60] * 256


def test_one_slice_equals_2d_and_axes_do_not_matter():
    predicted, true = patches(6, (5, 7, 9), IDS), patches(7, (5, 7, 9), IDS)
    plain = as_dictionaries(count(predicted, true))
    turned = as_dictionaries(count(predicted.transpose(2, 0, 1), true.transpose(2, 0, 1)))
    assert turned[0] == plain[0]
    for ours, theirs in zip(turned[1:3], plain[1:3], strict=True):
        assert {
            i: (size, other, centre[1:] + centre[:1]) for i, (size, other, centre) in ours.items()
        } == theirs
    flat, slab = count(predicted[2], true[2]), count(predicted[2:3], true[2:3])
    assert np.array_equal(slab.true_centroids, np.pad(flat.true_centroids, ((0, 0), (1, 0))))
    assert as_dictionaries(flat)[0] == as_dictionaries(slab)[0]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 0)])
def test_empty_label_maps_give_an_empty_table(first, second):
    table = count(np.full((3, 4), first), np.full((3, 4), second))
    assert len(table.overlaps.counts) == 0
    assert (len(table.overlaps.predicted_ids), len(table.overlaps.true_ids)) == (first, second)
    assert table.voxels == 12
    assert ContingencyCounter().table().voxels == 0


def test_a_prediction_in_what_is_ignored_is_excused_from_more_than_half_on():
    predicted = np.array([[1, 1, 2, 2, 2, 3]])
    ignore = np.array([[True, False, True, True, False, True]])
    table = count(predicted, np.zeros((1, 6), dtype=int), ignore)
    assert table.excused.tolist() == [False, True, True]
    assert np.isnan(table.predicted_centroids[2]).all()


def test_side_by_side_no_objects_meet():
    first, second = (count(patches(i, (13, 17), IDS), patches(i + 1, (13, 17), IDS)) for i in (0, 5))
    both = side_by_side([first, second])
    assert both.overlaps.iou().tolist() == [*first.overlaps.iou(), *second.overlaps.iou()]
    assert both.overlaps.predicted.max() + 1 == len(both.overlaps.predicted_ids)
    assert both.voxels == 2 * 13 * 17


def test_wrong_blocks_are_named():
    counter = ContingencyCounter()
    labels = np.ones((2, 3), dtype=int)
    with pytest.raises(DataError, match=r"\(2, 3\) and a truth of size \(3, 2\)"):
        counter.add(labels, labels.T)
    with pytest.raises(DataError, match="ignored region of size"):
        counter.add(labels, labels, np.zeros((3, 2), dtype=bool))
    with pytest.raises(DataError, match="the truth holds float64"):
        counter.add(labels, labels * 0.5)
    with pytest.raises(DataError, match="negative id -1"):
        counter.add(labels, -labels)
    counter.add(labels, labels)
    with pytest.raises(DataError, match="3 axes does not belong to a volume of 2"):
        counter.add(labels[None], labels[None])
    with pytest.raises(DataError, match="above 0; got"):
        ContingencyCounter(spacing=(1.0, 0.0))
    with pytest.raises(DataError, match=r"from 0 on.*got \[3, -1\]"):
        ContingencyCounter(ignore_ids=(3, -1))


def test_background_that_nobody_labelled_can_be_ignored():
    table = count(np.array([[1, 1, 1, 2]]), np.array([[0, 1, 1, 0]]), ignore_ids=(0,))
    assert (table.voxels, table.void.tolist(), table.overlaps.iou().tolist()) == (2, [1, 1], [1.0])

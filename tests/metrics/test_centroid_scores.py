import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from pixvox.errors import ConfigError
from pixvox.metrics import centroid_scores
from pixvox.metrics.centroid_scores import match_centroids
from pixvox.metrics.contingency import ContingencyCounter


def points(places, size):
    """A label map with one voxel per object."""
    labels = np.zeros(size, dtype=np.int64)
    labels[tuple(np.transpose(places))] = np.arange(1, len(places) + 1)
    return labels


def table_of(predicted, true, ignore=None, **options):
    counter = ContingencyCounter(**options)
    counter.add(predicted, true, ignore)
    return counter.table()


@pytest.mark.parametrize(("size", "spacing"), [((19, 23), (1.0, 1.0)), ((6, 11, 13), (2.5, 0.5, 1.0))])
def test_matches_equal_the_optimal_assignment_of_all_pairs(size, spacing):
    generator = np.random.default_rng(0)
    for _ in range(5):
        first, second = (
            points(np.unique(generator.integers(0, size, (40, len(size))), axis=0), size) for _ in range(2)
        )
        table = table_of(first, second, spacing=spacing)
        found = match_centroids(table, 2.0)
        apart = cdist(table.predicted_centroids, table.true_centroids)
        rows, columns = linear_sum_assignment(np.where(apart <= 2.0, apart - 1000, 0))
        matched = apart[rows, columns][apart[rows, columns] <= 2.0]
        assert (len(found.distances), found.distances.sum()) == pytest.approx((len(matched), matched.sum()))
        assert 5 < len(matched) < 40


def test_the_distance_is_that_of_the_spacing():
    size = (4, 5, 6)
    first, second = points([(1, 1, 1)], size), points([(2, 1, 1)], size)
    sideways = points([(1, 1, 3)], size)
    for true, distance in ((second, 3.0), (sideways, 1.0)):  # one slice, or two voxels to the side
        table = table_of(first, true, spacing=(3.0, 0.5, 0.5))
        assert match_centroids(table, distance).distances.tolist() == [distance]
        assert match_centroids(table, 0.99 * distance).distances.tolist() == []


def test_one_prediction_serves_one_object():
    found = match_centroids(table_of(points([(0, 2)], (1, 6)), points([(0, 1), (0, 4)], (1, 6))), 5.0)
    assert (found.distances.tolist(), found.predicted, found.true) == ([1.0], 1, 2)


def test_predictions_in_an_ignored_region_do_not_count():
    ignore = np.array([[False, False, True, True, True, True]])
    predicted = np.array([[1, 0, 2, 0, 0, 3]])
    found = match_centroids(table_of(predicted, np.array([[1, 0, 0, 0, 0, 0]]), ignore), 1.0)
    assert (len(found.distances), found.predicted, found.true) == (1, 1, 1)


def test_no_objects_and_wrong_distances(monkeypatch):
    nothing, one = np.zeros((3, 4), dtype=int), np.eye(3, 4, dtype=int)
    for first, second in ((nothing, nothing), (nothing, one), (one, nothing)):
        assert len(match_centroids(table_of(first, second), 1.0).distances) == 0
    table = table_of(one, one)
    with pytest.raises(ConfigError, match="above 0.*got 0"):
        match_centroids(table, 0)
    monkeypatch.setattr(centroid_scores, "MOST_PAIRS", 0)
    with pytest.raises(ConfigError, match="1 pairs of centroids are at most 2 apart, of 1 predicted"):
        match_centroids(table, 2)

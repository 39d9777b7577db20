"""Whether objects are found where they are, whatever their outline: centroids matched within a distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from pixvox.errors import ConfigError
from pixvox.metrics.contingency import ContingencyTable
from pixvox.metrics.matching import match_pairs

MOST_PAIRS = 50_000_000
"""Pairs of centroids within the distance that are compared: about 3 GB."""


class CentroidMatches(NamedTuple):
    """What was matched, of how many.

    Args:
        distances: Of the matched pairs, in the unit of the spacing.
        predicted: Predictions that count: all but those in an ignored region that match nothing.
        true: True objects.
    """

    distances: Float[np.ndarray, " matches"]
    predicted: int
    true: int


def match_centroids(table: ContingencyTable, distance: float) -> CentroidMatches:
    """Pair predicted and true objects whose centroids are at most a distance apart, one to one.

    As many pairs as possible, and of equally many those that are nearest in total.

    Args:
        table: Objects and their centroids.
        distance: In the unit of the spacing, in voxels where it is unknown; above 0.

    Raises:
        ConfigError: If the distance is not above 0, or so long that each object is near thousands of others.
    """
    if not distance > 0:
        raise ConfigError(f"the distance of centroids is above 0, in the unit of the spacing; got {distance}")
    placed = np.flatnonzero(table.overlaps.predicted_sizes)  # the others are ignored as a whole
    rows, columns, apart = _near(table.predicted_centroids[placed], table.true_centroids, distance)
    chosen = match_pairs(rows, columns, 1 - apart / (distance * (1 + 1e-9)))
    counted = ~table.excused
    counted[placed[rows[chosen]]] = True
    return CentroidMatches(apart[chosen], int(counted.sum()), len(table.true_centroids))


def _near(
    predicted: Float[np.ndarray, "predictions axes"], true: Float[np.ndarray, "truths axes"], distance: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Return the pairs of points that are near each other, and how far apart they are."""
    if not len(predicted) or not len(true):
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, np.zeros(0)
    from scipy.spatial import KDTree

    trees = KDTree(predicted), KDTree(true)
    reach = distance * (1 + 1e-9)  # a pair at exactly the distance is near, whatever the rounding
    count = trees[0].count_neighbors(trees[1], reach)
    if count > MOST_PAIRS:
        raise ConfigError(
            f"{count:,} pairs of centroids are at most {distance:g} apart, of {len(predicted):,} predicted and "
            f"{len(true):,} true objects; give a distance no longer than objects are apart"
        )
    pairs = trees[0].sparse_distance_matrix(trees[1], reach, output_type="ndarray")
    apart: npt.NDArray[np.float64] = pairs["v"].astype(np.float64)
    return pairs["i"].astype(np.int64), pairs["j"].astype(np.int64), apart

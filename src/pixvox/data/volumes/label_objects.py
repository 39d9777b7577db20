"""Ids, boxes and sizes of the objects in a part of a label map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer

from pixvox.errors import DataError


@dataclass(frozen=True)
class LabelObjects:
    """Objects of a label map, in the order of their ids.

    Args:
        ids: Values in the label map.
        low: First index along each axis, in array order.
        high: First index behind the object along each axis.
        voxels: Number of elements.
    """

    ids: Int[np.ndarray, " n"]
    low: Int[np.ndarray, "n dims"]
    high: Int[np.ndarray, "n dims"]
    voxels: Int[np.ndarray, " n"]


def label_objects(labels: Integer[np.ndarray, "*spatial"], source: str = "label map") -> LabelObjects:
    """Return the objects of a label map, in which 0 is background.

    Runs of one value along the rows are looked at in place of voxels: there are far fewer, and the size of an id
    does not matter.

    Args:
        labels: Ids.
        source: File, for messages.

    Raises:
        DataError: If an id is negative or above 2^63 - 1.

    Example:
        >>> found = label_objects(np.array([[7, 7, 0], [0, 7, 2]]))
        >>> found.ids.tolist(), found.low.tolist(), found.high.tolist(), found.voxels.tolist()
        ([2, 7], [[1, 2], [0, 0]], [[2, 3], [2, 2]], [1, 3])
    """
    rows = labels.reshape(-1, labels.shape[-1])
    begins = np.ones(rows.shape, dtype=bool)
    np.not_equal(rows[:, 1:], rows[:, :-1], out=begins[:, 1:])
    places = np.flatnonzero(begins)
    values = rows.reshape(-1)[places]
    lengths = np.diff(places, append=rows.size)
    found = values != 0
    places, values, lengths = places[found], values[found], lengths[found]
    if len(values) and not 0 <= (extreme := int(min(values.min(), 0) or values.max())) < 2**63:
        raise DataError(f"{source}: object ids must be 0 (background) to 2^63 - 1, found {extreme}")
    order = np.argsort(values, kind="stable")
    values, places, lengths = values[order].astype(np.int64), places[order], lengths[order]
    firsts = np.flatnonzero(np.diff(values, prepend=-1))
    if not len(firsts):
        none = np.zeros((0, labels.ndim), dtype=np.int64)
        return LabelObjects(none[:, 0], none, none, none[:, 0])
    corners = np.stack(np.unravel_index(places, labels.shape), axis=1)
    ends = corners + 1
    ends[:, -1] = corners[:, -1] + lengths
    return LabelObjects(
        values[firsts],
        np.minimum.reduceat(corners, firsts),
        np.maximum.reduceat(ends, firsts),
        np.add.reduceat(lengths, firsts),
    )

"""How much predicted and true objects overlap: one sparse contingency table, for any number of dimensions.

Objects without a common pixel never meet in the table, so its length grows with the number of touching pairs
and not with predictions times truths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, Shaped

from pixvox.structures import Masks, Size

SLAB_ELEMENTS = 1 << 24
"""Pixels or voxels of a label map that are counted at a time, which bounds the memory."""


@dataclass(frozen=True)
class Overlaps:
    """A sparse contingency table.

    Args:
        predicted: Row of each pair that has common elements.
        true: Column of each pair.
        counts: Common pixels or voxels of each pair.
        predicted_sizes: Pixels or voxels of each predicted object.
        true_sizes: Pixels or voxels of each true object.
        predicted_ids: Id of each row in its label map, or its index.
        true_ids: Id of each column in its label map, or its index.
    """

    predicted: Int[np.ndarray, " pairs"]
    true: Int[np.ndarray, " pairs"]
    counts: Int[np.ndarray, " pairs"]
    predicted_sizes: Int[np.ndarray, " predictions"]
    true_sizes: Int[np.ndarray, " truths"]
    predicted_ids: Int[np.ndarray, " predictions"]
    true_ids: Int[np.ndarray, " truths"]

    def iou(self) -> Float[np.ndarray, " pairs"]:
        """Return the intersection over union of each pair."""
        union = self.predicted_sizes[self.predicted] + self.true_sizes[self.true] - self.counts
        iou: npt.NDArray[np.float64] = self.counts / union
        return iou


def label_map_overlaps(predicted: Shaped[np.ndarray, "..."], true: Shaped[np.ndarray, "..."]) -> Overlaps:
    """Count the common elements of the objects of two label maps; 0 is background.

    Args:
        predicted: Label map with any integer ids, also a memory map.
        true: Label map of the same size.

    Raises:
        ValueError: If the sizes differ.

    Example:
        >>> table = label_map_overlaps(np.array([[5, 5, 0], [0, 9, 9]]), np.array([[1, 1, 1], [0, 0, 2]]))
        >>> table.predicted_ids.tolist(), table.true_ids.tolist(), table.iou().round(2).tolist()
        ([5, 9], [1, 2], [0.67, 0.5])
    """
    if predicted.shape != true.shape:
        raise ValueError(
            f"label maps of sizes {predicted.shape} and {true.shape} cannot be compared; "
            "bring both to the original frame first"
        )
    rows_per_slab = max(1, SLAB_ELEMENTS // max(1, math.prod(predicted.shape[1:])))
    slabs = [
        _runs(np.asarray(predicted[row : row + rows_per_slab]), np.asarray(true[row : row + rows_per_slab]))
        for row in range(0, len(predicted), rows_per_slab)
    ]
    empty = np.zeros((3, 0), dtype=np.int64)
    runs = np.concatenate([empty, *[_merge_runs(*slab) for slab in slabs]], axis=1)
    first, second, counts = _merge_runs(runs[0], runs[1], runs[2])
    predicted_ids, rows = np.unique(first, return_inverse=True)
    true_ids, columns = np.unique(second, return_inverse=True)
    predicted_sizes = np.bincount(rows, counts, len(predicted_ids)).astype(np.int64)
    true_sizes = np.bincount(columns, counts, len(true_ids)).astype(np.int64)
    real_row, real_column = predicted_ids != 0, true_ids != 0
    keep = real_row[rows] & real_column[columns]
    return Overlaps(
        predicted=(np.cumsum(real_row) - 1)[rows[keep]],
        true=(np.cumsum(real_column) - 1)[columns[keep]],
        counts=counts[keep],
        predicted_sizes=predicted_sizes[real_row],
        true_sizes=true_sizes[real_column],
        predicted_ids=predicted_ids[real_row],
        true_ids=true_ids[real_column],
    )


def _runs(
    first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the runs of equal id pairs in raster order: label maps are piecewise constant, runs are few."""
    first, second = first.reshape(-1), second.reshape(-1)
    if first.size == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    changes = np.flatnonzero((first[1:] != first[:-1]) | (second[1:] != second[:-1])) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(np.append(starts, first.size))
    return first[starts].astype(np.int64), second[starts].astype(np.int64), lengths


def _merge_runs(
    first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Add up the lengths of equal pairs; return unique first ids, second ids and totals as three rows."""
    first_ids, rows = np.unique(first, return_inverse=True)
    second_ids, columns = np.unique(second, return_inverse=True)
    keys, inverse = np.unique(rows * max(1, len(second_ids)) + columns, return_inverse=True)
    totals = np.bincount(inverse, lengths, len(keys)).astype(np.int64)
    width = max(1, len(second_ids))
    return np.stack([first_ids[keys // width], second_ids[keys % width], totals])


class Elements(NamedTuple):
    """The inside of masks as one list: flat position on the canvas and index of the mask."""

    positions: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]

    def pick(self, chosen: npt.NDArray[np.bool_]) -> Elements:
        """Return the chosen elements."""
        return Elements(self.positions[chosen], self.owners[chosen])


def elements(masks: Masks, order: npt.NDArray[np.int64] | None = None) -> Elements:
    """List the elements inside each mask, mask by mask, without a canvas and without a loop over masks.

    Args:
        masks: The masks.
        order: Indices of all masks in the order in which they shall be listed; by default as they stand.
    """
    masks = masks.to("cpu")
    if order is not None:
        listed = elements(masks[order.tolist()])
        return Elements(listed.positions, order[listed.owners])
    shapes, origins = masks.shapes.numpy(), masks.origins.numpy()
    owners = np.repeat(np.arange(len(masks)), shapes.prod(axis=1))
    inside = np.flatnonzero(masks.data.numpy())
    owners = owners[inside]
    local = inside - masks.starts.numpy()[owners]
    positions = np.zeros_like(local)
    stride = 1
    for axis in range(len(masks.size) - 1, -1, -1):
        length = shapes[owners, axis]
        positions += (local % length + origins[owners, axis]) * stride
        local //= length
        stride *= masks.size[axis]
    return Elements(positions, owners)


def paint(inside: Elements, size: Size) -> Elements:
    """Give every position to one mask only: the mask that stands last in the list wins."""
    canvas = np.full(math.prod(size), -1, dtype=np.int64)
    canvas[inside.positions] = inside.owners
    visible = canvas[inside.positions] == inside.owners
    return inside.pick(visible)


def element_overlaps(
    predicted: Elements, true: Elements, num_predicted: int, num_true: int, size: Size
) -> Overlaps:
    """Count the common elements of two sets of masks, each of which may overlap among itself."""
    canvas = np.full(math.prod(size), -1, dtype=np.int64)
    left, keys, counts = true, [], []
    width = max(1, num_true)
    while left.positions.size:
        canvas[left.positions] = left.owners
        column = canvas[predicted.positions]
        common = column >= 0
        key, count = np.unique(predicted.owners[common] * width + column[common], return_counts=True)
        keys.append(key)
        counts.append(count)
        # Elements that lost their place to another true mask form the next layer.
        shown = canvas[left.positions] == left.owners
        canvas[left.positions] = -1
        left = left.pick(~shown)
    nothing = np.zeros(0, dtype=np.int64)
    unique, inverse = np.unique(np.concatenate([nothing, *keys]), return_inverse=True)
    totals = np.bincount(inverse, np.concatenate([nothing, *counts]), len(unique)).astype(np.int64)
    return Overlaps(
        predicted=unique // width,
        true=unique % width,
        counts=totals,
        predicted_sizes=np.bincount(predicted.owners, minlength=num_predicted),
        true_sizes=np.bincount(true.owners, minlength=num_true),
        predicted_ids=np.arange(num_predicted),
        true_ids=np.arange(num_true),
    )


def covered(inside: Elements, region: Elements, count: int, size: Size) -> npt.NDArray[np.int64]:
    """Return how many elements of each of ``count`` masks lie anywhere in ``region``."""
    canvas = np.zeros(math.prod(size), dtype=bool)
    canvas[region.positions] = True
    return np.bincount(inside.owners[canvas[inside.positions]], minlength=count)

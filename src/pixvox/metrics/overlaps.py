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
from jaxtyping import Float, Int, Integer

from pixvox.structures import Masks, Size


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
    predicted_ids: Integer[np.ndarray, " predictions"]
    true_ids: Integer[np.ndarray, " truths"]

    def iou(self) -> Float[np.ndarray, " pairs"]:
        """Return the intersection over union of each pair."""
        union = self.predicted_sizes[self.predicted] + self.true_sizes[self.true] - self.counts
        iou: npt.NDArray[np.float64] = self.counts / union
        return iou


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

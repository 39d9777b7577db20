"""What is counted and painted in label maps, each in one pass over the elements; images and volumes alike.

Labels count from 0, the background, without large gaps: tables have a row for each up to the largest. With numba
installed, compiled twins do the same several times as fast; results are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, Integer, Shaped

from pixvox.ops.sampling import has_numba

_TABLE = 2**24
"""Entries of a table of pairs that is counted as such; a larger one is mostly empty."""


class Overlaps(NamedTuple):
    """Elements that pairs of labels have in common, and of each label alone.

    Args:
        first: Label in the first map, 1 and up, one per pair that occurs.
        second: Label in the second map.
        counts: Elements that have both.
        first_sizes: Elements of each label of the first map, the background's in front.
        second_sizes: The same of the second map.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    counts: Int[np.ndarray, " pairs"]
    first_sizes: Int[np.ndarray, " rows"]
    second_sizes: Int[np.ndarray, " columns"]


def overlaps(first: Integer[np.ndarray, "*size"], second: Integer[np.ndarray, "*size"]) -> Overlaps:
    """Count the elements that labels of two maps have in common.

    Args:
        first: Labels, 0 for the background.
        second: Labels of the same elements.

    Example:
        >>> found = overlaps(np.array([0, 1, 1, 2]), np.array([0, 3, 0, 3]))
        >>> found.first.tolist(), found.second.tolist(), found.counts.tolist(), found.first_sizes.tolist()
        ([1, 2], [3, 3], [1, 1], [1, 2, 1])
    """
    rows, columns = int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1
    if rows * columns > _TABLE:
        return _sparse_overlaps(first, second, rows, columns)
    if has_numba():
        from pixvox.ops.kernels.cpu_labels import pair_table

        table = pair_table(first, second, rows, columns)
    else:
        shown = (first != 0) | (second != 0)  # most elements are background in both
        keys = first[shown] * np.int64(columns) + second[shown]
        table = np.bincount(keys, minlength=rows * columns).reshape(rows, columns)
        table[0, 0] = first.size - len(keys)
    inner = table[1:, 1:]
    pairs = np.nonzero(inner)
    return Overlaps(pairs[0] + 1, pairs[1] + 1, inner[pairs], table.sum(axis=1), table.sum(axis=0))


def _sparse_overlaps(first: np.ndarray, second: np.ndarray, rows: int, columns: int) -> Overlaps:
    both = np.flatnonzero((first != 0) & (second != 0))
    keys, counts = np.unique(first.flat[both] * np.int64(columns) + second.flat[both], return_counts=True)
    sizes, other_sizes = (
        np.bincount(values.ravel().astype(np.int64), minlength=count)
        for values, count in ((first, rows), (second, columns))
    )
    return Overlaps(keys // columns, keys % columns, counts, sizes, other_sizes)


def relabel(
    labels: Integer[np.ndarray, "*size"],
    numbers: Int[np.ndarray, " labels"],
    out: Shaped[np.ndarray, "*size"],
) -> None:
    """Write the number of each label.

    Args:
        labels: At most one below the length of ``numbers``.
        numbers: Of each label, the background's in front.
        out: Integers, written in place.

    Example:
        >>> out = np.empty(4, dtype=np.uint32)
        >>> relabel(np.array([0, 1, 2, 2]), np.array([0, 7, 9]), out)
        >>> out.tolist()
        [0, 7, 9, 9]
    """
    table = numbers.astype(out.dtype)
    if has_numba():
        from pixvox.ops.kernels.cpu_labels import relabel as relabel_numba

        relabel_numba(labels, table, out)
        return
    np.take(table, labels, out=out, mode="clip")  # "raise" would take a copy first


def fill_background(
    canvas: Shaped[np.ndarray, "*size"],
    labels: Integer[np.ndarray, "*size"],
    numbers: Int[np.ndarray, " labels"],
) -> None:
    """Write the number of each label where a canvas is still 0.

    Args:
        canvas: Integers; changed in place.
        labels: What is painted.
        numbers: Of each label, the background's in front; 0 leaves what is there.

    Example:
        >>> canvas = np.array([5, 0, 0, 0])
        >>> fill_background(canvas, np.array([1, 1, 2, 0]), np.array([0, 7, 9]))
        >>> canvas.tolist()
        [5, 7, 9, 0]
    """
    values = numbers.astype(canvas.dtype)[labels]
    np.copyto(canvas, values, where=(values != 0) & (canvas == 0))


class Shapes(NamedTuple):
    """Measures of each label, from 1 on, in array order.

    Args:
        sizes: Elements.
        sums: Of their indices along each axis.
        lowest: Least index along each axis; of a label that does not occur, the length of the axis.
        highest: Largest index along each axis; -1 for a label that does not occur.
        intensities: Sums of the image, per channel.
    """

    sizes: Int[np.ndarray, " labels"]
    sums: Int[np.ndarray, "labels dims"]
    lowest: Int[np.ndarray, "labels dims"]
    highest: Int[np.ndarray, "labels dims"]
    intensities: Float[np.ndarray, "labels channels"]


def shapes(
    labels: Integer[np.ndarray, "*size"],
    count: int,
    image: Shaped[np.ndarray, "channels *size"] | None = None,
) -> Shapes:
    """Measure each label of a map.

    Args:
        labels: 0 for the background, up to ``count``.
        count: Largest label.
        image: Intensities of the same elements.

    Example:
        >>> found = shapes(np.array([[0, 1, 1], [0, 0, 1]]), 1)
        >>> found.sizes.tolist(), found.sums.tolist(), found.lowest.tolist(), found.highest.tolist()
        ([3], [[1, 5]], [[0, 1]], [[1, 2]])
    """
    if has_numba():
        from pixvox.ops.kernels.cpu_labels import shapes as shapes_numba

        return Shapes(*shapes_numba(labels, count, image))
    places = np.nonzero(labels)
    owners = labels[places].astype(np.int64) - 1
    sums, lowest, highest = (np.zeros((count, labels.ndim), dtype=np.int64) for _ in range(3))
    for axis, (length, index) in enumerate(zip(labels.shape, places, strict=True)):
        table = np.bincount(owners * length + index, minlength=count * length).reshape(count, length)
        sums[:, axis] = table @ np.arange(length)
        there = table > 0
        lowest[:, axis] = np.where(there.any(axis=1), there.argmax(axis=1), length)
        highest[:, axis] = np.where(there.any(axis=1), length - 1 - there[:, ::-1].argmax(axis=1), -1)
    channels: Sequence[npt.NDArray[np.generic]] = () if image is None else list(image)
    intensities = np.zeros((count, len(channels)))
    for i, channel in enumerate(channels):
        intensities[:, i] = np.bincount(owners, channel[places], minlength=count)
    return Shapes(np.bincount(owners, minlength=count), sums, lowest, highest, intensities)

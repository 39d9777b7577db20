"""Compiled twins of the operators on label maps, by numba, for the CPU."""

from __future__ import annotations

import numpy as np

from pixvox.ops.kernels.cpu import _Array, _compiled_exactly


def pair_table(first: _Array, second: _Array, rows: int, columns: int) -> _Array:
    """Return how many elements have label i in ``first`` and j in ``second``."""
    table = np.zeros((rows, columns), dtype=np.int64)
    _count_pairs(np.ascontiguousarray(first).ravel(), np.ascontiguousarray(second).ravel(), table)
    return table


def relabel(labels: _Array, numbers: _Array, out: _Array) -> None:
    """Write the number of each label; twin of ``label_maps.relabel``, up to three axes."""
    lead = (None,) * (3 - out.ndim)
    _relabel(labels[lead], numbers, out[lead])


def shapes(labels: _Array, count: int, image: _Array | None) -> tuple[_Array, ...]:
    """Return sizes, sums of indices, lowest and highest indices, and sums of intensities of labels 1..count."""
    dims = labels.ndim
    lead = (1,) * (3 - dims)
    volume = np.ascontiguousarray(labels).reshape(lead + labels.shape)
    channels = np.zeros((0, *volume.shape), np.float32) if image is None else np.ascontiguousarray(image)
    sizes = np.zeros(count, dtype=np.int64)
    sums = np.zeros((count, 3), dtype=np.int64)
    lowest = np.empty((count, 3), dtype=np.int64)
    lowest[:] = volume.shape
    highest = np.full((count, 3), -1, dtype=np.int64)
    totals = np.zeros((count, len(channels)), dtype=np.float64)
    _measure(volume, channels.reshape(-1, *volume.shape), sizes, sums, lowest, highest, totals)
    return sizes, sums[:, 3 - dims :], lowest[:, 3 - dims :], highest[:, 3 - dims :], totals


@_compiled_exactly
def _measure(
    labels: _Array,
    image: _Array,
    sizes: _Array,
    sums: _Array,
    lowest: _Array,
    highest: _Array,
    totals: _Array,
) -> None:
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            x = 0
            while x < labels.shape[2]:
                label = labels[z, y, x]
                if label == 0:
                    x += 1
                    continue
                start, row = x, label - 1
                while x < labels.shape[2] and labels[z, y, x] == label:
                    x += 1
                length = x - start
                sizes[row] += length
                sums[row, 0] += z * length
                sums[row, 1] += y * length
                sums[row, 2] += (start + x - 1) * length // 2
                lowest[row, 0] = min(lowest[row, 0], z)
                lowest[row, 1] = min(lowest[row, 1], y)
                lowest[row, 2] = min(lowest[row, 2], start)
                highest[row, 0] = max(highest[row, 0], z)
                highest[row, 1] = max(highest[row, 1], y)
                highest[row, 2] = max(highest[row, 2], x - 1)
                for c in range(image.shape[0]):
                    for i in range(start, x):
                        totals[row, c] += image[c, z, y, i]


@_compiled_exactly
def _count_pairs(first: _Array, second: _Array, table: _Array) -> None:
    nothing = (
        0  # most elements are background in both; counted in the table, each would wait for the one before
    )
    for i in range(first.size):
        if first[i] == 0 and second[i] == 0:
            nothing += 1
        else:
            table[first[i], second[i]] += 1
    table[0, 0] += nothing


@_compiled_exactly
def _relabel(labels: _Array, numbers: _Array, out: _Array) -> None:
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                out[z, y, x] = numbers[labels[z, y, x]]

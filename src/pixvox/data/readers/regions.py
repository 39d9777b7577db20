"""Parts of arrays that are stored in pieces: which pieces a part touches, and where they overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

Index = tuple[slice, ...]
"""A slice for each axis of an array, with steps of 1."""


def lengths_of(index: Index, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of what ``index`` takes from an array.

    Example:
        >>> lengths_of((slice(1, 3), slice(None)), (5, 7))
        (2, 7)
    """
    return tuple(len(range(*part.indices(length))) for part, length in zip(index, shape, strict=True))


def pieces(
    index: Index, shape: Sequence[int], steps: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Index]]:
    """Yield the position in the grid, and the place, of each piece of an array that ``index`` touches.

    Args:
        index: Part of the array.
        shape: Lengths of the array.
        steps: Lengths of a piece; the last along each axis may be shorter.

    Example:
        >>> list(pieces((slice(2, 5), slice(0, 1)), (5, 7), (4, 8)))
        [((0, 0), (slice(0, 4, None), slice(0, 7, None))), ((1, 0), (slice(4, 5, None), slice(0, 7, None)))]
    """
    bounds = [part.indices(length)[:2] for part, length in zip(index, shape, strict=True)]
    if any(start >= stop for start, stop in bounds):
        return
    firsts = [start // step for (start, _), step in zip(bounds, steps, strict=True)]
    counts = [
        (stop - 1) // step - first + 1 for (_, stop), step, first in zip(bounds, steps, firsts, strict=True)
    ]
    for offset in np.ndindex(*counts):
        position = tuple(first + i for first, i in zip(firsts, offset, strict=True))
        place = tuple(
            slice(i * step, min((i + 1) * step, length))
            for i, step, length in zip(position, steps, shape, strict=True)
        )
        yield position, place


def overlap(region: Index, place: Index) -> tuple[Index, Index]:
    """Return where a piece that touches a region lies in it, and which part of the piece that is.

    Example:
        >>> overlap((slice(2, 9),), (slice(0, 4),))
        ((slice(0, 2, None),), (slice(2, 4, None),))
    """
    common = [
        (max(part.start, whole.start), min(part.stop, whole.stop))
        for part, whole in zip(region, place, strict=True)
    ]
    return (
        tuple(slice(a - part.start, b - part.start) for (a, b), part in zip(common, region, strict=True)),
        tuple(slice(a - whole.start, b - whole.start) for (a, b), whole in zip(common, place, strict=True)),
    )

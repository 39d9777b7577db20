"""Polygons to masks, pixel for pixel as COCO's tools rasterise them, but safe for any input.

COCO's rasteriser multiplies the corners by 5, walks the outline on that grid, and notes for each column of
pixels where the outline crosses its centre line. Here only those crossings are computed, from the same
rounded lines, so that the work depends on the frame and never on how far away a corner lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pixvox.errors import DataError
from pixvox.ops.rle import RLE, compress_counts, runs_to_counts

_GRID = 5  # COCO's sub-pixel grid
_FARTHEST = 1e6  # pixels; no image is that large, and the rounding below stays exact

_Float64 = npt.NDArray[np.float64]
_Int64 = npt.NDArray[np.int64]


def polygons_to_rle(parts: Sequence[Any], size: Sequence[int], on_invalid: str = "raise") -> RLE:
    """Rasterise the polygons of one instance to one mask (2-D only); parts are united.

    Args:
        parts: Polygons ``[x0, y0, x1, y1, ...]`` in continuous pixel coordinates.
        size: Height and width of the canvas.
        on_invalid: ``"raise"``, or ``"drop"`` to leave out polygons that cannot be used.

    Returns:
        The encoding, the same string as pycocotools makes; empty when every part was dropped.

    Raises:
        ValueError: If a polygon has a coordinate that is not finite or beyond any image, an odd count, fewer
            than 3 corners, no area, or lies outside the canvas; or if there is no polygon.

    Example:
        >>> polygons_to_rle([[1, 1, 3, 1, 3, 2, 1, 2]], size=(3, 4))
        {'size': [3, 4], 'counts': '41202'}
    """
    if on_invalid not in ("raise", "drop"):
        raise ValueError(f'on_invalid is "raise" or "drop", got {on_invalid!r}')
    if len(size) != 2:
        raise ValueError(f"polygons exist in 2-D only; the canvas {tuple(size)} has {len(size)} axes")
    height, width = (int(length) for length in size)
    starts, stops = [], []
    problem = "there is no polygon" if len(parts) == 0 else None
    for number, part in enumerate(parts):
        points, problem_here = _check(part, height, width)
        if problem_here is not None:
            problem = f"polygon {number} {problem_here}"
            if on_invalid == "raise":
                break
            continue
        crossings = np.sort(_crossings(points, height, width))
        starts.append(crossings[0::2])
        stops.append(crossings[1::2])
    if problem is not None and on_invalid == "raise":
        raise DataError(f"{problem}; mend the annotation, or leave such polygons out (on_invalid='drop')")
    counts = runs_to_counts(*_unite(starts, stops), height * width)
    return {"size": [height, width], "counts": compress_counts(counts)}


def polygon_problem(part: Any, size: Sequence[int]) -> str | None:
    """Return why a polygon cannot be used on a canvas of ``size``, or None when it can.

    Example:
        >>> polygon_problem([0, 0, 5, 5], size=(8, 8))
        'has 4 numbers; 3 corners need at least 6'
    """
    return _check(part, *(int(length) for length in size))[1]


def _check(part: Any, height: int, width: int) -> tuple[_Float64, str | None]:
    """Return the corners ``(n, 2)`` and why they cannot be used."""
    try:
        values = np.asarray(part, dtype=np.float64)
    except (TypeError, ValueError):
        return np.zeros((0, 2)), "is not a list of numbers"
    if values.ndim != 1:
        return np.zeros((0, 2)), f"must be a flat list [x0, y0, x1, y1, ...], got the shape {values.shape}"
    if len(values) % 2:
        return np.zeros((0, 2)), f"has an odd count of {len(values)} numbers; corners are pairs x, y"
    if len(values) < 6:
        return np.zeros((0, 2)), f"has {len(values)} numbers; 3 corners need at least 6"
    if not np.isfinite(values).all():
        return np.zeros((0, 2)), "has a coordinate that is not a finite number"
    if np.abs(values).max() > _FARTHEST:
        worst = values[np.abs(values).argmax()]
        return np.zeros((0, 2)), f"has the coordinate {worst:g}, beyond {_FARTHEST:g} pixels"
    points = values.reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    if (high <= 0).any() or low[0] >= width or low[1] >= height:
        return points, f"lies outside the image of {width} x {height} pixels (x, y from {low} to {high})"
    following = np.roll(points, -1, axis=0)
    if (high == low).any() or _on_one_line(points - points[0], following - points[0]):
        return points, "has no area: all corners lie on one line"
    return points, None


def _on_one_line(points: _Float64, following: _Float64) -> bool:
    """Tell whether all corners, relative to the first, are multiples of one direction."""
    farthest = points[np.square(points).sum(axis=1).argmax()]
    side = farthest[0] * points[:, 1] - farthest[1] * points[:, 0]
    return bool(np.abs(side).max() <= 1e-9 * np.square(farthest).sum() and len(following) > 0)


def _crossings(points: _Float64, height: int, width: int) -> _Int64:
    """Return the column-major positions at which the outline switches between outside and inside."""
    corners = np.trunc(points * _GRID + 0.5).astype(np.int64)
    ends = np.roll(corners, -1, axis=0)
    length = np.abs(ends - corners)
    flat = length[:, 0] >= length[:, 1]
    # Each edge is walked towards larger x (flat edges) or larger y (steep edges), one grid step at a time.
    flip = np.where(flat, corners[:, 0] > ends[:, 0], corners[:, 1] > ends[:, 1])[:, None]
    first, last = np.where(flip, ends, corners), np.where(flip, corners, ends)
    # A column is crossed between grid positions 5 * column + 2 and + 3.
    low, high = np.minimum(first[:, 0], last[:, 0]), np.maximum(first[:, 0], last[:, 0])
    from_column = np.maximum(-((2 - low) // _GRID), 0)
    to_column = np.minimum((high - 3) // _GRID, width - 1)
    repeats = np.maximum(to_column - from_column + 1, 0)
    edge = np.repeat(np.arange(len(points)), repeats)
    column = np.arange(len(edge)) - np.repeat(repeats.cumsum() - repeats, repeats) + from_column[edge]
    y = np.where(
        flat[edge],
        _flat_crossing(first[edge], last[edge], column),
        _steep_crossing(first[edge], last[edge], column),
    )
    row: _Int64 = np.ceil(np.clip((y + 0.5) / _GRID - 0.5, 0, height)).astype(np.int64)
    positions: _Int64 = column * height + row
    return positions


def _flat_crossing(first: _Int64, last: _Int64, column: _Int64) -> _Int64:
    """Return the upper y of the two grid points between which a flat edge crosses the column's centre."""
    run = np.maximum(last[:, 0] - first[:, 0], 1)
    slope = (last[:, 1] - first[:, 1]) / run
    step = _GRID * column + 2 - first[:, 0]
    before, after = (np.trunc(first[:, 1] + slope * (step + i) + 0.5) for i in (0, 1))
    upper: _Int64 = np.minimum(before, after).astype(np.int64)
    return upper


def _steep_crossing(first: _Int64, last: _Int64, column: _Int64) -> _Int64:
    """Return the upper y of the grid step in which a steep edge's rounded x passes the column's centre."""
    run = np.maximum(last[:, 1] - first[:, 1], 1)
    slope = (last[:, 0] - first[:, 0]) / run
    left = _GRID * column + 2
    safe_slope = np.where(slope == 0, 1.0, slope)  # vertical edges cross no column and are not asked for
    guess = np.floor((left + 0.5 - first[:, 0]) / safe_slope).astype(np.int64)
    found = guess
    # The division may be one step off the walk's own rounding: the step that changes sides is the one.
    for shift in (-2, -1, 0, 1, 2):
        step = guess + shift
        sides = [np.trunc(first[:, 0] + slope * (step + i) + 0.5) > left for i in (0, 1)]
        found = np.where((sides[0] != sides[1]) & (step >= 0) & (step < run), step, found)
    return found + first[:, 1]


def _unite(starts: list[_Int64], stops: list[_Int64]) -> tuple[_Int64, _Int64]:
    """Return the union of the runs of all parts as sorted, disjoint runs."""
    if not starts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    positions = np.concatenate([*starts, *stops])
    opened = sum(map(len, starts))
    change = np.concatenate(
        [np.ones(opened, dtype=np.int64), -np.ones(len(positions) - opened, dtype=np.int64)]
    )
    order = np.lexsort((-change, positions))  # openings first where runs touch
    depth = change[order].cumsum()
    begins = (depth == 1) & (change[order] == 1)
    ends = depth == 0
    first, last = positions[order][begins], positions[order][ends]
    filled = last > first
    return first[filled], last[filled]


def polygon_area(part: Sequence[float]) -> float:
    """Return the signed area of a polygon by the shoelace formula, in square pixels.

    Example:
        >>> polygon_area([0, 0, 2, 0, 2, 3, 0, 3])
        6.0
    """
    points = np.asarray(part, dtype=np.float64).reshape(-1, 2)
    following = np.roll(points, -1, axis=0)
    return math.fsum(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]) / 2

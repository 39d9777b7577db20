"""The objects that a page lists: rows of a table, without what would make the page too large."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from pixvox.errors import DataError
from pixvox.table_file import read_rows

Cell = int | float | str

MAX_TEXT = 200
"""Characters of a cell; longer text is cut off."""

_LARGEST_EXACT = 2**53
_NOT_SHOWN = re.compile(r"centroid_[xyz](_\w+)?|[xyz][01]")


@dataclass
class PageTable:
    """Rows as a page shows them.

    Args:
        columns: Names; the first is ``id``.
        rows: Cells in their order.
        places: Centroid of each object in array order, in voxels; None where it is unknown.
        left_out: Number of objects that are not listed.
    """

    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    places: list[tuple[float, ...] | None] = field(default_factory=list)
    left_out: int = 0


def page_table(
    table: str | Path | Iterable[Mapping[str, Any]], dims: int, max_rows: int, max_bytes: int
) -> PageTable:
    """Return the first rows of a table; positions are kept apart, boxes left out.

    Args:
        table: CSV or Parquet file, or rows, with a column ``id``; others are shown as they are.
        dims: Spatial dimensions, 2 or 3.
        max_rows: Most rows.
        max_bytes: Most bytes of all rows.

    Raises:
        DataError: If the file cannot be read, or an id is no whole number.

    Example:
        >>> table = page_table([{"id": 7, "class": "cell", "x0": 3.0}, {"id": 9, "class": "cell"}], 2, 1, 1000)
        >>> table.columns, table.rows, table.left_out
        (['id', 'class'], [[7, 'cell']], 1)
    """
    name = str(table) if isinstance(table, (str, Path)) else "table"
    rows = read_rows(Path(table)) if isinstance(table, (str, Path)) else iter(table)
    centroid = [f"centroid_{axis}" for axis in "zyx"[-dims:]]
    shown = PageTable(["id"])
    for number, row in enumerate(rows, start=1):
        if "id" not in row:
            raise DataError(
                f"{name}: has no column id; give the table that pixvox predict wrote beside the labels"
            )
        if number == 1:
            others = [str(column) for column in row if column is not None and column != "id"]
            shown.columns += [column for column in others if not _NOT_SHOWN.fullmatch(column)]
        if len(shown.rows) == max_rows or shown.left_out:
            shown.left_out += 1
            continue
        cells = [_id(row["id"], name, number), *(_cell(row.get(column, "")) for column in shown.columns[1:])]
        max_bytes -= len(json.dumps(cells))
        if max_bytes < 0:
            shown.left_out = 1
            continue
        shown.rows.append(cells)
        shown.places.append(_place([row.get(column) for column in centroid]))
    return shown


def counted(labels: Integer[np.ndarray, "*shape"], voxels: int) -> Iterator[dict[str, int]]:
    """Yield a row of each object that is on a page.

    Args:
        labels: Their ids; 0 is background.
        voxels: Voxels of the file that one on the page stands for.

    Example:
        >>> list(counted(np.array([0, 7, 7]), 8))
        [{'id': 7, 'size, about': 16}]
    """
    size = "size" if voxels == 1 else "size, about"
    for number, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if number:
            yield {"id": int(number), size: int(count) * voxels}


def exact(number: int) -> int | str:
    """Return a whole number, as text where JavaScript would round it.

    Example:
        >>> exact(70000), exact(2**53 + 1)
        (70000, '9007199254740993')
    """
    return number if abs(number) <= _LARGEST_EXACT else str(number)


def _id(value: Any, name: str, number: int) -> int | str:
    text = str(value).strip()
    if not re.fullmatch(r"-?\d{1,20}(\.0*)?", text):
        raise DataError(f"{name}: the id of row {number} is {text[:MAX_TEXT]!r}; ids are whole numbers")
    return exact(int(text.partition(".")[0]))


def _cell(value: Any) -> Cell:
    """Return a value that JSON holds, numbers as such."""
    if isinstance(value, (bool, np.bool_)) or value is None:
        return "" if value is None else str(bool(value))
    text = str(value)
    if re.fullmatch(r"-?\d{1,15}", text):
        return int(text)
    number = _number(text)
    return text[:MAX_TEXT] if number is None else number


def _number(value: Any) -> float | None:
    """Return a finite number, or None: no value, NaN or text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _place(centroid: Sequence[Any]) -> tuple[float, ...] | None:
    place = [_number(value) for value in centroid]
    known = tuple(value for value in place if value is not None)
    return known if len(known) == len(place) else None

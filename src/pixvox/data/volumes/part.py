"""Which array of a file is meant: a time point, a level of a pyramid, an array by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixvox.data.volumes.open import open_volume
from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError


@dataclass(frozen=True)
class Part:
    """What ``open_volume`` is told beside the path.

    Args:
        axes: A letter per stored axis; None for what the file says.
        time: Time point, from 0; None where there is only one.
        level: Level of a pyramid, 0 is the finest.
        dataset: Name of the array in an HDF5 file; None for its only one.

    Example:
        >>> str(Part(time=3, dataset="raw")), str(Part())
        ('[time=3, dataset=raw]', '')
    """

    axes: str | None = None
    time: int | None = None
    level: int = 0
    dataset: str | None = None

    def __str__(self) -> str:
        named = [f"{name}={value}" for name, value in asdict(self).items() if value and name != "axes"]
        if self.time == 0:
            named.insert(0, "time=0")
        return f"[{', '.join(named)}]" if named else ""

    def open(self, path: Path, spatial_dims: int, allow_missing_chunks: bool) -> Volume:
        """Return this part of a file.

        Raises:
            DataError: If there is none.
        """
        return open_volume(
            path, spatial_dims, self.axes, self.time, self.level, self.dataset, allow_missing_chunks
        )

    def columns(self, prefix: str = "") -> dict[str, Any]:
        """Return what it says by the names of columns; the axes of label maps have none."""
        return {prefix + name: value for name, value in asdict(self).items() if prefix + name in PART_COLUMNS}


PART_COLUMNS = ("axes", "time", "level", "dataset", "label_time", "label_level", "label_dataset")


def part_of(row: Mapping[str, Any], source: str, prefix: str = "") -> Part:
    """Return the part that a row of a table names.

    Args:
        row: Values by column; a column that is missing or None says nothing.
        source: Table and row, for messages.
        prefix: ``"label_"`` for label maps.

    Raises:
        DataError: If time or level is no whole number from 0.

    Example:
        >>> part_of({"path": "a.tif", "time": "3"}, "table.csv: row 1")
        Part(axes=None, time=3, level=0, dataset=None)
    """

    def number(name: str) -> int | None:
        value = row.get(prefix + name)
        if value is None:
            return None
        if not str(value).isdecimal():
            raise DataError(
                f"{source}: {prefix}{name} is {value!r}; it takes a whole number from 0. A column of yours needs "
                "another name"
            )
        return int(value)

    def text(name: str) -> str | None:
        return None if row.get(prefix + name) is None else str(row[prefix + name])

    axes = text("axes") if not prefix else None
    return Part(axes, number("time"), number("level") or 0, text("dataset"))

"""The scores of each class as a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixvox.files import whole_file


@dataclass(frozen=True)
class ClassTable:
    """One row per class, in the order of the class indices.

    Args:
        class_names: Names by class index.
        columns: One value per class by name of the column, such as ``"IoU"``; NaN where a score is not defined.

    Example:
        >>> table = ClassTable(("sky", "road"), {"IoU": np.array([0.5, np.nan]), "share": np.array([1.0, 0.0])})
        >>> table.cells()
        [['sky', '0.500', '100.0%'], ['road', '', '0.0%']]
    """

    class_names: tuple[str, ...]
    columns: Mapping[str, npt.NDArray[np.float64]]

    @property
    def header(self) -> list[str]:
        """Names of the columns, the class first."""
        return ["class", *self.columns]

    def cells(self) -> list[list[str]]:
        """Return the table for people: shares in per cent, nothing where a score is not defined."""
        return [
            [name, *(_text(column, float(self.columns[column][index])) for column in self.columns)]
            for index, name in enumerate(self.class_names)
        ]

    def records(self) -> list[dict[str, Any]]:
        """Return one dictionary per class, for programs."""
        return [
            {"class": name, **{column: float(values[index]) for column, values in self.columns.items()}}
            for index, name in enumerate(self.class_names)
        ]

    def save(self, path: Path) -> Path:
        """Write the table as CSV, whole or not at all; what is not defined is empty."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.header)
            writer.writeheader()
            for record in self.records():
                writer.writerow({name: "" if value != value else value for name, value in record.items()})
        return path


def _text(column: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:.1f}%" if column == "share" else f"{value:.3f}"

"""Measures of objects that lie in several blocks, put together block by block, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pixvox.inference.blocks import Region
from pixvox.ops.label_maps import Shapes
from pixvox.table_file import rows_of, save_table

_ROWS = 10_000


class ObjectTable:
    """Measures of the objects of a volume; its columns are those of ``pixvox.inference.results.table``.

    Args:
        classes: Class of each object, by id from 1 on.
        scores: Its score.
        size: Of the volume, in array order.
        channels: Whose intensities are measured.
        class_names: Names by class index.
        spacing: Of a voxel in array order, or None.
        unit: Of the spacing.
    """

    def __init__(
        self,
        classes: Int[np.ndarray, " objects"],
        scores: Float[np.ndarray, " objects"],
        size: Sequence[int],
        channels: int = 0,
        class_names: Sequence[str] = (),
        spacing: Sequence[float] | None = None,
        unit: str = "um",
    ) -> None:
        count, dims = len(classes), len(size)
        self.classes, self.scores = classes, scores
        self.volume, self.class_names = tuple(size), tuple(class_names)
        self.spacing, self.unit = None if spacing is None else tuple(spacing), unit
        self.sizes = np.zeros(count, dtype=np.int64)
        self.sums = np.zeros((count, dims))
        self.lowest = np.tile(np.array(size, dtype=np.int64), (count, 1))
        self.highest = np.full((count, dims), -1, dtype=np.int64)
        self.intensities = np.zeros((count, channels))

    def add(self, ids: Int[np.ndarray, " present"], found: Shapes, place: Region) -> None:
        """Add what was measured in a block.

        Args:
            ids: Id of each object that was measured.
            found: Measures in the frame of the block.
            place: Of the block in the volume.
        """
        rows, corner = ids - 1, np.array([part.start for part in place])
        self.sizes[rows] += found.sizes
        self.sums[rows] += found.sums + found.sizes[:, None] * corner
        there = (found.sizes > 0)[:, None]
        self.lowest[rows] = np.where(
            there, np.minimum(self.lowest[rows], found.lowest + corner), self.lowest[rows]
        )
        self.highest[rows] = np.maximum(self.highest[rows], np.where(there, found.highest + corner, -1))
        self.intensities[rows] += found.intensities

    def __len__(self) -> int:
        return len(self.classes)

    def columns(self, first: int = 0, last: int | None = None) -> dict[str, Any]:
        """Return the columns of rows ``first`` up to ``last`` by name."""
        part = slice(first, last)
        sizes, letters = self.sizes[part], "zyx"[-len(self.volume) :]
        centres = (self.sums[part] / np.maximum(sizes, 1)[:, None] + 0.5)[:, ::-1]
        low, high = self.lowest[part][:, ::-1], self.highest[part][:, ::-1] + 1
        touches = ((low <= 0) | (high >= np.array(self.volume[::-1]))).any(axis=1)
        columns: dict[str, Any] = {
            "id": np.arange(first + 1, first + 1 + len(sizes)),
            "class": [self._name(int(label)) for label in self.classes[part]],
            "score": self.scores[part].astype(np.float64).round(6),
            "size": sizes,
        }
        axes = letters[::-1]
        columns |= {f"centroid_{axis}": centres[:, i].round(3) for i, axis in enumerate(axes)}
        columns |= {f"{axis}0": low[:, i] for i, axis in enumerate(axes)}
        columns |= {f"{axis}1": high[:, i] for i, axis in enumerate(axes)}
        columns["touches_border"] = touches
        means = self.intensities[part] / np.maximum(sizes, 1)[:, None]
        for channel in range(means.shape[1]):
            name = "mean_intensity" if means.shape[1] == 1 else f"mean_intensity_{channel}"
            columns[name] = means[:, channel].round(4)
        if self.spacing is not None:
            columns[f"size_{self.unit}{len(self.spacing)}"] = sizes * float(np.prod(self.spacing))
            steps = self.spacing[::-1]
            columns |= {
                f"centroid_{axis}_{self.unit}": (centres[:, i] * steps[i]).round(4)
                for i, axis in enumerate(axes)
            }
        return columns

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one dictionary per object."""
        for batch in self.batches():
            yield from rows_of(batch)

    def batches(self) -> Iterator[dict[str, Any]]:
        """Yield the columns in batches of rows, at least one."""
        for first in range(0, max(1, len(self)), _ROWS):
            yield self.columns(first, first + _ROWS)

    def save(self, path: Path) -> Path:
        """Write a CSV or Parquet file; it appears whole or not at all."""
        return save_table(path, self.batches())

    def _name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)

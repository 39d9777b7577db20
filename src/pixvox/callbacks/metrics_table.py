"""``metrics.csv``: every logged number of a run in one table."""

from __future__ import annotations

import csv
import logging
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pixvox.files import whole_file

log = logging.getLogger("pixvox")


class MetricsTable(Logger):
    """A table with one row per logged step, which survives a resume and new columns.

    Lightning's ``CSVLogger`` starts anew when a run is resumed; this one keeps the rows before the step that
    is resumed from. Columns are ``epoch``, ``step`` and the names that were logged; what was not logged is
    empty.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.columns = ["epoch", "step"]
        self._written = self._duration = 0.0

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "table"

    @property
    def version(self) -> str:
        """A run has one table."""
        return ""

    def keep_before(self, step: int) -> None:
        """Continue an existing file, without the rows from ``step`` on: they will be logged again."""
        if not self.path.exists():
            return
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or self.columns)
            self.rows = [
                row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step
            ]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, or complete the row of the same step."""
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        row = {"epoch": "" if epoch is None else str(int(epoch)), "step": str(step or 0)}
        row.update({name: repr(float(value)) for name, value in values.items()})
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1].update({name: value for name, value in row.items() if value})
        else:
            self.rows.append(row)
        self.columns += [name for name in row if name not in self.columns]

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is saved as a whole elsewhere."""

    @rank_zero_only
    def save(self) -> None:
        """Write the table unless that would take more than a twentieth of the time; see ``write``."""
        # Lightning asks after every row, and a table of a long run is long.
        if time.perf_counter() - self._written > 20 * self._duration:
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write the table; a crash in between leaves the old file whole."""
        if not self.rows:
            return
        start = time.perf_counter()
        try:
            with whole_file(self.path) as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.columns, restval="")
                writer.writeheader()
                writer.writerows(self.rows)
        except OSError as error:  # the rows are still here, and a later attempt may succeed
            log.warning("%s was not written: %s", self.path, error.strerror or error)
        self._written = time.perf_counter()
        self._duration = self._written - start

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.write()

"""What a command says: to the terminal, to ``run.log``, and what it leaves unsaid."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixvox.training.comparison import Comparison
    from pixvox.training.sweep import Outcome

log = logging.getLogger("pixvox")

UNSAID = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists.*",
    ".*lr_scheduler.step.*",
    ".*[Ll]it ?[Ll]ogger.*",
    ".*ckpt_path.*dirpath.*",
    ".*LeafSpec.*",
    ".*treespec.*",
    ".*have overridden `transfer_batch_to_device`.*",
    ".*fault tolerant.*",
    r".*module\(s\) in eval mode.*",  # a teacher
    ".*mid-epoch.*",
    ".*It is recommended to use `self.log.*",  # scores are gathered: every process logs the same
)
"""Warnings of the libraries below that ask nothing of the user."""


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write the package's log to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's tips and warnings that ask nothing of the user."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in UNSAID:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def print_json(content: Any) -> None:
    """Print one object that machines read: numbers that JSON does not have become null."""
    from pixvox.files import finite

    print(json.dumps(finite(content), default=str, allow_nan=False))  # noqa: T201


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", "\\[") for cell in row))
    Console().print(table)


def show_comparison(comparison: Comparison, files: Sequence[Path], as_json: bool) -> None:
    """Print a comparison, the trainings that did not end, and the files that were written."""
    import typer

    if as_json:
        print_json({**asdict(comparison), "files": [str(path) for path in files]})
        return
    header, lines = comparison.table()
    print_table("comparison", header, lines)
    for path in comparison.unfinished:
        typer.echo(f"not finished: {path}", err=True)
    for path in files:
        typer.echo(str(path))


def exit_if_failed(outcome: Outcome) -> None:
    """Name the trainings of a sweep that failed, if any, and end the command with exit code 1."""
    import typer

    for cell, code in outcome.failed.items():
        log_file = outcome.folder / cell / "run.log"
        typer.echo(f"failed with exit code {code}: {cell}; see {log_file}", err=True)
    if outcome.failed:
        raise typer.Exit(1)

"""Tables as files: CSV for any program, Parquet for millions of rows."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.errors import DataError
from pixvox.files import whole_file

KINDS = ("csv", "parquet")


def save_table(path: Path, batches: Iterable[Mapping[str, Any]]) -> Path:
    """Write a table; it appears whole or not at all, and memory holds a batch of it.

    Args:
        path: Its suffix chooses among ``KINDS``.
        batches: Columns by name, the same in each batch; the first may be empty, but not missing. Arrays keep their
            type in Parquet, lists are text.

    Raises:
        DataError: If it is Parquet and pyarrow is not installed.

    Example:
        >>> from tempfile import mkdtemp
        >>> batches = [{"id": np.array([1, 2]), "class": ["cell", "nucleus"]}]
        >>> save_table(Path(mkdtemp()) / "a.csv", batches).read_text().split()
        ['id,class', '1,cell', '2,nucleus']
    """
    write = _write_parquet if path.suffix == ".parquet" else _write_csv
    with whole_file(path) as part:
        write(part, iter(batches))
    return path


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table as dictionaries; of CSV, all values are text.

    Raises:
        DataError: If the file cannot be read, or it is Parquet and pyarrow is not installed.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such table")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no table of values between commas ({error})") from error


def table_beside(labels: Path, name: str) -> Path | None:
    """Return the table that lies beside a label map, ``NAME_table.csv`` or another of ``KINDS``; None without one.

    Args:
        labels: The label map.
        name: Beginning of the name of both.
    """
    tables = (labels.with_name(f"{name}_table.{kind}") for kind in KINDS)
    return next((table for table in tables if table.is_file()), None)


def rows_of(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch, with numbers as Python has them."""
    columns = [values.tolist() if isinstance(values, np.ndarray) else values for values in batch.values()]
    yield from (dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True))


def pyarrow(what: str) -> Any:
    """Return the library that Parquet needs.

    Args:
        what: What needs it, for the message.

    Raises:
        DataError: If it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{what} needs pyarrow: pip install pixvox[parquet]") from error
    return pyarrow


def _write_csv(path: Path, batches: Iterator[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for batch in batches:
            if writer is None:
                writer = csv.DictWriter(file, list(batch))
                writer.writeheader()
            writer.writerows(rows_of(batch))


def _write_parquet(path: Path, batches: Iterator[Mapping[str, Any]]) -> None:
    arrow = pyarrow("a Parquet file")
    first = next(batches)
    schema = arrow.schema(
        [
            (name, arrow.from_numpy_dtype(values.dtype) if isinstance(values, np.ndarray) else arrow.string())
            for name, values in first.items()
        ]
    )
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        writer.write_table(arrow.table(dict(first), schema=schema))
        for batch in batches:
            writer.write_table(arrow.table(dict(batch), schema=schema))


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    arrow = pyarrow(f"{path}: a Parquet file")
    try:
        with arrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file ({error})") from error

"""Which volumes a catalogue is to hold: those of folders, or of tables with columns for anything else."""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pixvox.data.datasets.description import read_description
from pixvox.data.datasets.layout import IMAGE_FOLDERS, Layout, Split, find_layout
from pixvox.data.datasets.pairing import pair_files
from pixvox.data.volumes.catalogue import RESERVED, below
from pixvox.data.volumes.part import PART_COLUMNS, Part, part_of
from pixvox.errors import DataError

COLUMNS = ("path", "label_path", "experiment", "split", *PART_COLUMNS)
"""Columns of a table that the index itself reads; all others are flags to choose volumes by."""

SPLITS = ("train", "val", "test")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Entry:
    """One volume.

    Args:
        path: Its file, below the root.
        label_path: File of its label map below the root, or None.
        experiment: What it belongs to, or None.
        split: ``"train"``, ``"val"``, ``"test"``, or None.
        part: Which array of the file it is.
        label_part: Which array of the file its label map is.
        flags: Any further columns.
        spacing: Size of a pixel or voxel per axis in array order, for a file that does not say; in micrometres.
    """

    path: str
    label_path: str | None = None
    experiment: str | None = None
    split: str | None = None
    part: Part = field(default_factory=Part)
    label_part: Part = field(default_factory=Part)
    flags: dict[str, Any] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """Its file, and which part of it, where there are several."""
        return f"{self.path}{self.part}"


def read_entries(sources: Sequence[Path], root: Path | None = None) -> tuple[Path, list[Entry]]:
    """Return the root and the volumes below it.

    Where there are several sources, a column ``origin`` tells their volumes apart: what a table or ``dataset.json``
    says it is, else the name of the folder or table.

    Args:
        sources: Folders with images beside label maps, and CSV or JSON tables.
        root: Folder that all files lie in; by default the folder, the one that the table lies in, or the innermost that
            holds all of these.

    Raises:
        DataError: If one cannot be read, or they name a file twice, none, or one outside of the root.
    """
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} does not exist; give a folder, or a .csv or .json table")
    folders = [os.path.abspath(source if source.is_dir() else source.parent) for source in sources]
    base = Path(os.path.commonpath(folders) if root is None else os.path.abspath(root))
    named, entries = names_of(sources), []
    for source in sources:
        own = _of_folder(source, base) if source.is_dir() else _of_table(source, base)
        if not own:
            raise DataError(f"{source} names no volume")
        if len(sources) > 1:
            origin = source.resolve().stem if source.is_file() else source.resolve().name
            own = [_with_origin(entry, origin) for entry in own]
        entries += own
    flags = [name.lower() for name in flag_columns(entries)]
    if len(set(flags)) < len(flags):
        raise DataError(
            f"{named} has columns that differ in capitals only: {', '.join(flag_columns(entries))}"
        )
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise DataError(f"{named} names {entry.name} twice; keep one")
        seen.add(entry.name)
    return base, entries


def names_of(sources: Sequence[Path]) -> str:
    """Return what sources are called in messages."""
    return " and ".join(map(str, sources))


def choose(entries: Sequence[Entry], where: str, source: str) -> list[Entry]:
    """Return the volumes that meet a condition in SQL.

    Args:
        entries: Volumes.
        where: Condition on the columns of the table, as in ``"grade > 2"``.
        source: Where they come from, for messages.

    Raises:
        DataError: If it is no SQL, names a column that there is none of, or no volume meets it.

    Example:
        >>> entries = [Entry("a.tif", flags={"grade": "1"}), Entry("b.tif", flags={"grade": "3"})]
        >>> [entry.path for entry in choose(entries, "grade > 2", "table.csv")]
        ['b.tif']
    """
    flags = flag_columns(entries)
    rows = [
        {name: getattr(entry, name) for name in COLUMNS if name not in PART_COLUMNS}
        | entry.part.columns()
        | entry.label_part.columns("label_")
        for entry in entries
    ]
    known = [name for name in COLUMNS if name not in PART_COLUMNS or any(row[name] for row in rows)]
    connection = sqlite3.connect(":memory:")
    columns = [f"{name} {'NUMERIC' if name in PART_COLUMNS else 'TEXT'}" for name in known]
    columns += [f"{quoted(name)} NUMERIC" for name in flags]
    connection.execute(f"CREATE TABLE volumes({', '.join(columns)})")
    connection.executemany(
        f"INSERT INTO volumes VALUES({', '.join('?' * len(columns))})",
        [
            [row[name] for name in known] + flag_values(entry, flags)
            for row, entry in zip(rows, entries, strict=True)
        ],
    )
    try:
        numbers = [row for (row,) in connection.execute(f"SELECT rowid FROM volumes WHERE ({where}\n)")]
    except (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.Warning) as error:
        raise DataError(
            f"where: {where}: {error}; it takes SQL on the columns of {source}: {', '.join([*known, *flags])}"
        ) from error
    finally:
        connection.close()
    if not numbers:
        raise DataError(f"where: {where}: none of the {len(entries)} volumes of {source} is like that")
    return [entries[number - 1] for number in sorted(numbers)]


def flag_columns(entries: Sequence[Entry]) -> list[str]:
    """Return the names of all flags, in the order in which they are first met."""
    return list(dict.fromkeys(name for entry in entries for name in entry.flags))


def flag_values(entry: Entry, names: Sequence[str]) -> list[Any]:
    """Return the flags of a volume as SQLite takes them; NULL for those that it has not."""
    values = [entry.flags.get(name) for name in names]
    return [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]


def quoted(name: str) -> str:
    """Return a name as SQL writes it, whatever letters it has.

    Example:
        >>> print(quoted('the "grade" given'))
        "the ""grade"" given"
    """
    return '"' + name.replace('"', '""') + '"'


def _of_folder(folder: Path, root: Path) -> list[Entry]:
    layout, stated = _layout(folder), read_description(folder)
    steps = stated.get("voxel_size_um", stated.get("spacing") if stated.get("unit", "um") == "um" else None)
    flags = {"origin": stated["origin"]} if stated.get("origin") else {}
    if layout.kind != "labels":
        raise DataError(
            f"{folder} holds COCO files; a catalogue is of volumes beside label maps: images/ with labels/"
        )
    entries = []
    for split, place in layout.splits.items():
        for image, labels in pair_files(place.images, place.annotations):
            above = image.relative_to(place.images).parts[:-1]
            entries.append(
                Entry(
                    _relative(image, root, folder),
                    None if labels is None else _relative(labels, root, folder),
                    experiment=above[0] if above else None,
                    split=split if split in SPLITS else None,
                    flags=dict(flags),
                    spacing=None if steps is None else tuple(map(float, steps)),
                )
            )
    return entries


def _with_origin(entry: Entry, origin: str) -> Entry:
    """Return an entry that says where it is from."""
    names = [name for name in entry.flags if name.lower() == "origin"]
    stated = entry.flags[names[0]] if names else None
    return replace(entry, flags=entry.flags | {names[0] if names else "origin": stated or origin})


def _layout(folder: Path) -> Layout:
    """Return the layout of a folder, which may hold images alone."""
    try:
        return find_layout(folder)
    except DataError:
        images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
        if images is None:
            raise
        return Layout("labels", {"all": Split(images, None)})


def _of_table(table: Path, root: Path) -> list[Entry]:
    rows = _read_table(table)
    entries = []
    for number, row in enumerate(rows, 1):
        row = {str(name).strip(): _filled(value) for name, value in row.items() if name is not None}
        if not isinstance(row.get("path"), str):
            raise DataError(
                f"{table}: row {number} names no file in a column 'path'; its columns are {', '.join(row)}"
            )
        if row.get("split") not in (None, *SPLITS):
            raise DataError(
                f"{table}: row {number}: split is {row['split']!r}; it takes train, val, test or nothing"
            )
        texts = {name: None if row.get(name) is None else str(row[name]) for name in COLUMNS}
        files = {
            name: None if (entry := texts[name]) is None else _relative(table.parent / entry, root, table)
            for name in ("path", "label_path")
        }
        flags = {name: _flag(value) for name, value in row.items() if name not in COLUMNS}
        taken = [name for name in flags if name.lower() in RESERVED]
        if taken:
            raise DataError(
                f"{table}: the catalogue has a column {taken[0]!r} of its own; give yours another name"
            )
        entries.append(
            Entry(
                files["path"] or "",
                files["label_path"],
                texts["experiment"],
                texts["split"],
                part_of(row, f"{table}: row {number}"),
                part_of(row, f"{table}: row {number}", "label_"),
                flags,
            )
        )
    return entries


def _read_table(table: Path) -> list[dict[str, Any]]:
    try:
        if table.suffix.lower() == ".json":
            rows = json.loads(table.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise DataError(
                    f'{table} must hold a list of volumes, [{{"path": "a.tif", "grade": 3}}, ...]'
                )
            return rows
        if table.suffix.lower() != ".csv":
            raise DataError(f"{table}: a table of volumes is a .csv or .json file")
        with table.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table: {error}") from error


def _filled(value: Any) -> Any:
    """Return a value of a table; an empty cell is none."""
    if isinstance(value, str):
        return value.strip() or None
    return int(value) if isinstance(value, bool) else value


def _flag(value: Any) -> Any:
    """Return a number for a text that is one, so that ``grade > 2`` compares numbers."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


def _relative(file: Path, root: Path, source: Path) -> str:
    """Return where a file is below the root."""
    found = below(root, os.path.abspath(file), source)
    return found.relative_to(os.path.abspath(root)).as_posix()

"""A catalogue of volumes, of the crops that can be cut out of them, and of the objects in each crop: a SQLite file.

``pixvox data index`` makes it (``pixvox.data.volumes.index``). A catalogue takes its name when it is whole, and is not
changed afterwards: readers need no lock, see no half of it, and keep what they have opened while a new one takes its
place.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from pixvox.data.readers.handle import Handle
from pixvox.data.volumes.crop_size import crop_voxels
from pixvox.data.volumes.file_state import file_state
from pixvox.data.volumes.packed_crops import unpack_crops
from pixvox.data.volumes.part import PART_COLUMNS, Part, part_of
from pixvox.errors import DataError

SCHEMA_VERSION = 2
APPLICATION_ID = 0x70787663
"""Marks the file in its header (``pxvc``), as SQLite provides for."""

SCHEMA = """
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE volumes(
    volume_id INTEGER PRIMARY KEY,
    path TEXT NOT NULL,          -- below the root
    label_path TEXT,
    experiment TEXT,
    split TEXT,                  -- train, val or test, where the source says so
    depth INTEGER NOT NULL,      -- 1 for slides
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    channels INTEGER NOT NULL,
    dtype TEXT NOT NULL,
    axes TEXT,                   -- given, not found; and which array of the file is meant
    time INTEGER,
    level INTEGER NOT NULL,
    dataset TEXT,
    label_time INTEGER,
    label_level INTEGER NOT NULL,
    label_dataset TEXT,
    spacing TEXT,                -- JSON, in array order
    unit TEXT NOT NULL,
    intensity TEXT NOT NULL,     -- JSON, low and high percentile of each channel
    state TEXT NOT NULL,         -- JSON, bytes and time of change of the files
    checksum TEXT NOT NULL,      -- of samples of the files
    key TEXT NOT NULL,           -- of all that decides on crops and objects
    first_crop INTEGER NOT NULL, -- the crops of a volume are numbered one after another
    crop_count INTEGER NOT NULL
);
CREATE TABLE crops(
    crop_id INTEGER PRIMARY KEY,
    volume_id INTEGER NOT NULL,
    z0 INTEGER NOT NULL,
    y0 INTEGER NOT NULL,
    x0 INTEGER NOT NULL,
    objects INTEGER,             -- NULL where the volume has no labels
    foreground INTEGER           -- elements of these objects; without labels, of what is bright, or NULL
);
CREATE TABLE packed(             -- the same as crops, for programs: pixvox.data.volumes.packed_crops
    volume_id INTEGER PRIMARY KEY,
    crops BLOB NOT NULL
);
CREATE TABLE instances(          -- boxes are half-open, in the frame of their crop
    crop_id INTEGER NOT NULL,
    instance_id INTEGER NOT NULL,
    x0 INTEGER NOT NULL,
    y0 INTEGER NOT NULL,
    z0 INTEGER NOT NULL,
    x1 INTEGER NOT NULL,
    y1 INTEGER NOT NULL,
    z1 INTEGER NOT NULL,
    voxels INTEGER NOT NULL,
    PRIMARY KEY (crop_id, instance_id)
) WITHOUT ROWID;
"""

_INSTANCE = "crop_id, instance_id, x0, y0, z0, x1, y1, z1, voxels"
RESERVED = {
    "volume_id", "path", "label_path", "experiment", "split", "depth", "height", "width", "channels", "dtype",
    *PART_COLUMNS, "spacing", "unit", "intensity", "state", "checksum", "key", "first_crop", "crop_count", "crop_id",
    "z0", "y0", "x0", "objects", "foreground",
}  # fmt: skip
"""Names that a column of the user's cannot have."""

_MOST_AT_ONCE = 30_000
"""Numbers that a query may take; SQLite allows 32766."""


@dataclass(frozen=True)
class CatalogueVolume:
    """What is known of one volume.

    Args:
        entry: Its file below the root, as the catalogue names it.
        path: Its file.
        label_path: File of its label map, or None.
        experiment: What it belongs to, or None.
        split: ``"train"``, ``"val"`` or ``"test"`` where the source says so.
        size: Lengths of the spatial axes in array order.
        channels: Number of channels.
        dtype: Type of its values.
        part: Which array of the file it is.
        label_part: Which array of the file its label map is.
        spacing: Size of a pixel or voxel per axis in array order, or None when it is unknown.
        unit: Unit of ``spacing``.
        intensity: Low and high percentile of each channel.
        state: ``file_state`` of both files when it was indexed.
        key: Of all that decides on its crops and objects.
        crops: The numbers of its crops.
        flags: The user's columns.
    """

    entry: str
    path: Path
    label_path: Path | None
    experiment: str | None
    split: str | None
    size: tuple[int, ...]
    channels: int
    dtype: str
    part: Part
    label_part: Part
    spacing: tuple[float, ...] | None
    unit: str
    intensity: tuple[tuple[float, float], ...]
    state: list[list[int] | None]
    key: str
    crops: range
    flags: dict[str, Any]

    @property
    def name(self) -> str:
        """Its file below the root, and which part of it, where there are several."""
        return f"{self.entry}{self.part}"

    def changed(self) -> str | None:
        """Return what has changed since the volume was indexed, in words; None for nothing."""
        for file, then in zip((self.path, self.label_path), self.state, strict=True):
            if file is None:
                continue
            try:
                now = file_state(file)
            except DataError:
                return f"{file} is gone"
            if now != then:
                return f"{file} has changed"
        return None


@dataclass(frozen=True)
class Crops:
    """Some crops of a catalogue.

    Args:
        ids: Their numbers.
        volumes: The number of the volume of each.
        starts: Where each begins, in array order.
        objects: Number of objects in each; -1 where the volume has no labels.
        foreground: Elements of these objects; where the volume has no labels, of what is bright (``min_intensity``).
    """

    ids: Int[np.ndarray, " n"]
    volumes: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, "n dims"]
    objects: Int[np.ndarray, " n"]
    foreground: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class CropObjects:
    """Objects of some crops, in the order of crops and ids.

    Args:
        crops: The number of the crop of each.
        ids: Values in the label map.
        boxes: ``[x0, y0, (z0,) x1, y1, (z1)]``, half-open, in the frame of the crop.
        voxels: Elements of each within the crop.
    """

    crops: Int[np.ndarray, " n"]
    ids: Int[np.ndarray, " n"]
    boxes: Int[np.ndarray, "n sides"]
    voxels: Int[np.ndarray, " n"]


class Catalogue:
    """Read a catalogue; each further process opens it for itself, when it first asks for crops.

    Args:
        path: The file.
        root: Folder of the volumes, where they have moved since; by default where the catalogue says.

    Attributes:
        path: The file.
        settings: What it says of itself, as text.
        options: Those that it was made with.
        spatial_dims: 2 for slides, 3 for volumes.
        volumes: What is known of each volume, by its number.

    Raises:
        DataError: If the file is missing, cut off, no catalogue, or of another version; or if it names files outside of
            its root.
    """

    def __init__(self, path: str | Path, root: str | Path | None = None) -> None:
        self.path = Path(path)
        check_file(self.path)
        connection = connect(self.path)
        with _reading(self.path):
            self.settings = dict(connection.execute("SELECT name, value FROM settings"))
            self.options: dict[str, Any] = json.loads(self.settings["options"])
            self.root = Path(root) if root is not None else self.path.parent / self.settings["root"]
            self.spatial_dims = len(self.options["size"])
            self.volumes = {row["volume_id"]: self._volume(row) for row in _rows(connection, "volumes")}
            self._length = connection.execute("SELECT sum(crop_count) FROM volumes").fetchone()[0]
        keys = [volume.key for volume in self.volumes.values()]
        self._connection = Handle(_connect_again, self.path, keys, opened=connection)
        self._facts: Int32[np.ndarray, "n 6"] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_facts": None}  # another process reads them for itself

    def __len__(self) -> int:
        return int(self._length)

    def select(self, where: str | None = None, empty: bool = False) -> Int[np.ndarray, " n"]:
        """Return the numbers of crops in ascending order.

        Args:
            where: SQL on the columns of volumes and crops, as in ``"grade > 2 AND objects >= 5"``.
            empty: Also crops that show nothing: no object, or without labels nothing bright.

        Raises:
            DataError: If ``where`` is no SQL, or names a column that there is none of.
        """
        conditions = [] if empty else ["(objects > 0 OR objects IS NULL AND foreground IS NOT 0)"]
        conditions += [] if where is None else [f"({where}\n)"]  # the line ends a comment, if any
        query = (
            f"SELECT crop_id FROM crops JOIN volumes USING (volume_id) WHERE {' AND '.join(conditions) or 1}"
        )
        connection = self._connection()
        with _reading(self.path):
            try:
                rows = connection.execute(f"{query} ORDER BY crop_id")
                return np.fromiter((number for (number,) in rows), dtype=np.int64)
            except (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.Warning) as error:
                columns = ", ".join(self.columns())
                raise DataError(f"where: {where}: {error}; it takes SQL on the columns {columns}") from error

    def columns(self) -> list[str]:
        """Return the names that ``where`` may use."""
        with _reading(self.path):
            cursor = self._connection().execute("SELECT * FROM crops JOIN volumes USING (volume_id) LIMIT 0")
        return [column[0] for column in cursor.description]

    def crops(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Crops:
        """Return crops in the order in which they are asked for.

        The first call reads the facts of all crops, 24 bytes of each; after that a look-up takes no query.

        Raises:
            DataError: If there is no such crop.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        known = (wanted > 0) & (wanted <= len(self))
        if not known.all():
            raise DataError(f"{self.path} has no crop {wanted[~known][0]}; it has 1 to {len(self)}")
        rows = self._all_facts().take(wanted - 1, axis=0).astype(np.int64)
        return Crops(wanted, rows[:, 0], rows[:, 4 - self.spatial_dims : 4], rows[:, 4], rows[:, 5])

    def volumes_of(self, ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the number of the volume of each crop, without a query."""
        ends = np.array([volume.crops.stop for volume in self.volumes.values()])
        return np.array(list(self.volumes))[np.searchsorted(ends, ids, side="right")]

    def objects(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> CropObjects:
        """Return the objects of crops, with one query for all of them."""
        rows = self._objects_of(np.asarray(ids, dtype=np.int64)).reshape(-1, 9)
        sides = [2 + axis for axis in range(self.spatial_dims)]
        sides += [5 + axis for axis in range(self.spatial_dims)]
        return CropObjects(rows[:, 0], rows[:, 1], rows[:, sides], rows[:, 8])

    def crop_size(self, volume: CatalogueVolume) -> tuple[int, ...]:
        """Return the lengths of the crops of a volume, in voxels; those at its end may be shorter."""
        size, unit = self.options["size"], self.options.get("size_unit")
        return crop_voxels(size, unit, volume.spacing, volume.unit, volume.entry)

    def totals(self) -> tuple[int, int, int]:
        """Return the number of crops, of those that show nothing, and of objects, counted in each crop."""
        query = "SELECT count(*), total(ifnull(objects, foreground) = 0), total(objects) FROM crops"
        with _reading(self.path):
            crops, empty, objects = self._connection().execute(query).fetchone()
        return crops, int(empty), int(objects)

    def rows(self, columns: Sequence[str]) -> list[list[Any]] | None:
        """Return the rows of volumes with these columns of the user's and its own; None when it has others."""
        with _reading(self.path):
            rows = _rows(self._connection(), "volumes")
        later = {"volume_id", "intensity", "first_crop", "crop_count"}
        if any({*row} - later != {*columns} for row in rows):
            return None
        return [[row[name] for name in columns] for row in rows]

    def changes(self) -> list[str]:
        """Return what has changed on the disk since the catalogue was made, a line for each volume."""
        return [change for volume in self.volumes.values() if (change := volume.changed())]

    def _all_facts(self) -> Int32[np.ndarray, "n 6"]:
        """Return volume, ``z0 y0 x0``, objects and foreground of every crop."""
        if self._facts is None:
            connection = self._connection()
            with _reading(self.path):
                facts = np.empty((len(self), 6), dtype=np.int32)
                for number, blob in connection.execute("SELECT volume_id, crops FROM packed"):
                    own = self.volumes[number].crops
                    facts[own.start - 1 : own.stop - 1, 0] = number
                    facts[own.start - 1 : own.stop - 1, 1:] = unpack_crops(blob)
            np.maximum(facts[:, 5], 0, out=facts[:, 5])  # foreground that is not known
            self._facts = facts
        return self._facts

    def _objects_of(self, crops: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """Return all values of the objects of crops, ordered by crop."""
        numbers = np.unique(crops)
        connection, values = self._connection(), []
        with _reading(self.path):
            if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:  # side by side: twice as fast
                bounds = (int(numbers[0]), int(numbers[-1]))
                query = f"SELECT {_INSTANCE} FROM instances WHERE crop_id BETWEEN ? AND ?"
                return _flat(connection.execute(query, bounds).fetchall())
            for first in range(0, len(numbers), _MOST_AT_ONCE):
                part = numbers[first : first + _MOST_AT_ONCE].tolist()
                query = f"SELECT {_INSTANCE} FROM instances WHERE crop_id IN ({','.join('?' * len(part))})"
                values.append(_flat(connection.execute(query, part).fetchall()))
        return np.concatenate(values) if values else np.zeros(0, dtype=np.int64)

    def _volume(self, row: dict[str, Any]) -> CatalogueVolume:
        size = (row["depth"], row["height"], row["width"])[-self.spatial_dims :]
        spacing = json.loads(row["spacing"]) if row["spacing"] else None
        return CatalogueVolume(
            entry=row["path"],
            path=below(self.root, row["path"], self.path),
            label_path=None if row["label_path"] is None else below(self.root, row["label_path"], self.path),
            experiment=row["experiment"],
            split=row["split"],
            size=size,
            channels=row["channels"],
            dtype=row["dtype"],
            part=part_of(row, str(self.path)),
            label_part=part_of(row, str(self.path), "label_"),
            spacing=None if spacing is None else tuple(spacing),
            unit=row["unit"],
            intensity=tuple((low, high) for low, high in json.loads(row["intensity"])),
            state=json.loads(row["state"]),
            key=row["key"],
            crops=range(row["first_crop"], row["first_crop"] + row["crop_count"]),
            flags={name: value for name, value in row.items() if name not in RESERVED},
        )


def connect(path: Path) -> sqlite3.Connection:
    """Open a catalogue for reading.

    On a disk for reading only SQLite is told that nothing changes the file: it then needs no lock.
    """
    mode = "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"
    connection = sqlite3.connect(file_uri(path, mode), uri=True, check_same_thread=False)
    connection.execute("PRAGMA cache_size = -65536")  # KiB; a million crops fit in
    return connection


def _connect_again(path: Path, keys: list[str]) -> sqlite3.Connection:
    """Open a catalogue that is in use already; what another process knows of it must still hold.

    Raises:
        DataError: If another one has taken its place, in which crops have other numbers.
    """
    connection = connect(path)
    with _reading(path):
        now = [key for (key,) in connection.execute("SELECT key FROM volumes ORDER BY volume_id")]
    if now != keys:
        raise DataError(
            f"the catalogue {path} was made again, with other volumes or crops, since this program began to use it; "
            "start it again"
        )
    return connection


def file_uri(path: Path, mode: str) -> str:
    """Return a path as SQLite takes it with options; it may hold any letter.

    Example:
        >>> file_uri(Path("/data/a b?.sqlite"), "mode=ro")
        'file:///data/a%20b%3F.sqlite?mode=ro'
    """
    return f"{path.resolve().as_uri()}?{mode}"


def is_foreign(path: Path) -> bool:
    """Tell whether a file is anything but a catalogue of some version, or one that was cut off."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError:
        return True
    return bool(header) and _application(header) != APPLICATION_ID


def check_file(path: Path) -> None:
    """Look at the header of a catalogue, which tells more than SQLite does.

    Raises:
        DataError: If it is missing, cut off, no catalogue, or of another version.
    """
    repair = f"make it again: pixvox data index FOLDER --out {path}"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise DataError(f"the catalogue {path} cannot be opened ({error.strerror}); {repair}") from error
    if not size:
        raise DataError(f"the catalogue {path} is empty; {repair}")
    if _application(header) != APPLICATION_ID:
        kind = (
            "is no SQLite database"
            if _application(header) is None
            else "is a SQLite database, but no catalogue"
        )
        raise DataError(f"the catalogue {path} {kind}; {repair}")
    page, pages = struct.unpack(">H", header[16:18])[0], struct.unpack(">I", header[28:32])[0]
    version = struct.unpack(">I", header[60:64])[0]
    if size < (expected := (65536 if page == 1 else page) * pages):
        raise DataError(f"the catalogue {path} is cut off: {size} of {expected} bytes are there; {repair}")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"the catalogue {path} is of version {version}, this program reads version {SCHEMA_VERSION}; {repair}"
        )


def _application(header: bytes) -> int | None:
    """Return the mark of the program that a SQLite database belongs to; None for other files."""
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return None
    return int(struct.unpack(">I", header[68:72])[0])


def below(root: Path, entry: str, source: Path) -> Path:
    """Return the path of an entry, which must not lead out of the root.

    Raises:
        DataError: If it does.

    Example:
        >>> below(Path("data"), "a/../b.tif", Path("table.csv")).as_posix()
        'data/b.tif'
    """
    found = os.path.normpath(root / entry)
    if not Path(os.path.abspath(found)).is_relative_to(os.path.abspath(root)):
        raise DataError(
            f"{source} names {entry}, which is outside of its root {root}; give a root that holds all files: "
            "--root FOLDER"
        )
    return Path(found)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file when SQLite finds it damaged."""
    try:
        yield
    except DataError:
        raise
    except (sqlite3.DatabaseError, KeyError, ValueError) as error:
        raise DataError(
            f"the catalogue {path} is damaged ({error}); make it again: pixvox data index FOLDER --out {path} --force"
        ) from error


def _rows(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    cursor = connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _flat(rows: list[tuple[int, ...]]) -> Int[np.ndarray, " values"]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64)

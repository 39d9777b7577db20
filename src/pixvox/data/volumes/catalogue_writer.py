"""Write a catalogue file, from findings and from the catalogue that was there before."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixvox.data.volumes.catalogue import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, Catalogue, file_uri
from pixvox.data.volumes.index_findings import Findings
from pixvox.data.volumes.index_source import Entry, flag_columns, flag_values, quoted
from pixvox.data.volumes.index_volume import IndexOptions, VolumeHeader
from pixvox.data.volumes.packed_crops import pack_crops

Volume = tuple[Entry, VolumeHeader]


def volume_rows(volumes: Sequence[Volume]) -> list[dict[str, Any]]:
    """Return the rows of volumes, without what is known when their crops are: intensity, first_crop, crop_count."""
    flags = flag_columns([entry for entry, _ in volumes])
    return [
        {
            "path": entry.path,
            "label_path": entry.label_path,
            "experiment": entry.experiment,
            "split": entry.split,
            **dict(zip(("depth", "height", "width"), (1, *header.size)[-3:], strict=True)),
            "channels": header.channels,
            "dtype": header.dtype,
            **entry.part.columns(),
            **entry.label_part.columns("label_"),
            "spacing": None if header.spacing is None else json.dumps(header.spacing),
            "unit": header.unit,
            "state": json.dumps(header.state),
            "checksum": header.checksum,
            "key": header.key,
            **dict(zip(flags, flag_values(entry, flags), strict=True)),
        }
        for entry, header in volumes
    ]


def write_catalogue(
    path: Path,
    settings: Mapping[str, str],
    volumes: Sequence[Volume],
    options: IndexOptions,
    findings: Findings,
    old: Catalogue | None,
) -> None:
    """Write a new file.

    Args:
        path: The file.
        settings: Its settings by name.
        volumes: Its volumes.
        options: What decides on crops.
        findings: Holds what ``old`` does not.
        old: A catalogue, whose crops of volumes with the same key are taken over.
    """
    known = {} if old is None else {volume.key: number for number, volume in old.volumes.items()}
    with closing(sqlite3.connect(file_uri(path, "mode=rwc"), uri=True)) as connection:
        # The file has another name until it is whole: nothing has to be undone.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.executescript(SCHEMA)
        for name in flag_columns([entry for entry, _ in volumes]):
            connection.execute(f"ALTER TABLE volumes ADD COLUMN {quoted(name)} NUMERIC")
        if old is not None:
            connection.execute("ATTACH ? AS old", (file_uri(old.path, "mode=ro"),))
        connection.executemany("INSERT INTO settings VALUES(?, ?)", settings.items())
        first = 1
        for number, ((_, header), row) in enumerate(zip(volumes, volume_rows(volumes), strict=True), 1):
            if header.key in known:
                count, intensity = _take_over(connection, known[header.key], number, first)
            else:
                own = options.of(header, str(row["path"]))
                count = _add(connection, header, own, findings, number, first)
                intensity = json.dumps(findings.intensity(header.key))
            row |= {"volume_id": number, "intensity": intensity, "first_crop": first, "crop_count": count}
            names, marks = ", ".join(map(quoted, row)), ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO volumes({names}) VALUES({marks})", list(row.values()))
            first += count
        connection.commit()


def _take_over(connection: sqlite3.Connection, volume: int, number: int, first: int) -> tuple[int, str]:
    """Copy the crops of a volume of the old catalogue; return how many there are, and the intensities."""
    query = "SELECT first_crop, crop_count, intensity FROM old.volumes WHERE volume_id = ?"
    before, count, intensity = connection.execute(query, (volume,)).fetchone()
    move, bounds = first - before, (before, before + count - 1)
    connection.execute(
        "INSERT INTO crops SELECT crop_id + ?, ?, z0, y0, x0, objects, foreground FROM old.crops "
        "WHERE crop_id BETWEEN ? AND ? ORDER BY crop_id",
        (move, number, *bounds),
    )
    connection.execute(
        "INSERT INTO instances SELECT crop_id + ?, instance_id, x0, y0, z0, x1, y1, z1, voxels FROM old.instances "
        "WHERE crop_id BETWEEN ? AND ? ORDER BY crop_id, instance_id",
        (move, *bounds),
    )
    connection.execute(
        "INSERT INTO packed SELECT ?, crops FROM old.packed WHERE volume_id = ?", (number, volume)
    )
    return count, intensity


def _add(
    connection: sqlite3.Connection,
    header: VolumeHeader,
    options: IndexOptions,
    findings: Findings,
    number: int,
    first: int,
) -> int:
    """Insert the crops of a volume; return how many there are."""
    crops, objects = findings.crops(header.key)
    grid = options.grid(header.size)
    places = np.unravel_index(crops[:, 0], grid.counts)
    starts = np.zeros((len(crops), 3), dtype=np.int64)
    for axis, (place, along) in enumerate(zip(places, grid.starts, strict=True), 3 - len(grid.size)):
        starts[:, axis] = np.asarray(along)[place]
    labelled = crops[:, 1] >= 0
    ids = crops[:, 0] + first
    _insert(connection, "crops", np.column_stack([ids, np.full(len(ids), number), starts, crops[:, 1:]]))
    if not labelled.all():
        connection.execute(
            "UPDATE crops SET objects = NULL, foreground = nullif(foreground, -1) WHERE volume_id = ? AND objects < 0",
            (number,),
        )
    packed = pack_crops(np.column_stack([starts, crops[:, 1:]]))
    connection.execute("INSERT INTO packed VALUES(?, ?)", (number, packed))
    objects[:, 0] += first
    _insert(connection, "instances", objects)
    return len(crops)


def _insert(
    connection: sqlite3.Connection, table: str, rows: npt.NDArray[np.int64], at_once: int = 50_000
) -> None:
    """Insert numbers; few rows at a time become objects of Python."""
    marks = ", ".join("?" * rows.shape[1])
    for begin in range(0, len(rows), at_once):
        connection.executemany(f"INSERT INTO {table} VALUES({marks})", rows[begin : begin + at_once].tolist())

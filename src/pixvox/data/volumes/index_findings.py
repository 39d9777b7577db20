"""What an index that runs has found so far, on the disk: a run that is killed goes on from there."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pixvox.data.volumes.index_volume import IndexedBlock

logger = logging.getLogger(__name__)

INTENSITY = -1
"""Number, among those of blocks, that stands for the intensities of a volume."""


class Findings:
    """Findings by key of the volume and number of the block.

    Args:
        path: The file; one that is there is continued, unless it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.connection = self._open()
        except sqlite3.DatabaseError:
            logger.warning("%s, left by an index that was interrupted, is damaged; it is not used", path)
            path.unlink()
            self.connection = self._open()

    def done(self) -> set[tuple[str, int]]:
        """Return what there is."""
        return set(self.connection.execute("SELECT key, number FROM findings"))

    def add_block(self, key: str, number: int, block: IndexedBlock) -> None:
        """Keep the crops and objects of a block."""
        self._add(key, number, block.crops.tobytes(), block.objects.tobytes())

    def add_intensity(self, key: str, limits: list[list[float]]) -> None:
        """Keep the percentiles of a volume."""
        self._add(key, INTENSITY, json.dumps(limits).encode(), b"")

    def intensity(self, key: str) -> list[list[float]]:
        """Return the percentiles of a volume."""
        query = "SELECT crops FROM findings WHERE key = ? AND number = ?"
        (text,) = self.connection.execute(query, (key, INTENSITY)).fetchone()
        limits: list[list[float]] = json.loads(text)
        return limits

    def crops(self, key: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return all crops and all objects of a volume, as in ``IndexedBlock``, in the order of the crops."""
        query = "SELECT crops, objects FROM findings WHERE key = ? AND number >= 0"
        rows = self.connection.execute(query, (key,)).fetchall()
        crops = np.concatenate([np.frombuffer(crops, dtype=np.int64) for crops, _ in rows]).reshape(-1, 3)
        objects = np.concatenate([np.frombuffer(own, dtype=np.int64) for _, own in rows]).reshape(-1, 9)
        # Objects of a crop are in the order of their ids already.
        return crops[np.argsort(crops[:, 0])], objects[np.argsort(objects[:, 0], kind="stable")]

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget volumes that are not to be read any more, or not with these options."""
        others = [
            (key,)
            for (key,) in self.connection.execute("SELECT DISTINCT key FROM findings")
            if key not in keys
        ]
        with self.connection:
            self.connection.executemany("DELETE FROM findings WHERE key = ?", others)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path)
        try:
            # Only a power failure could damage it so; to wait for the disk at every block costs more than it saves.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS findings(key TEXT, number INTEGER, crops BLOB, objects BLOB, "
                "PRIMARY KEY (key, number))"
            )
            connection.execute("SELECT key, number FROM findings").fetchall()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _add(self, key: str, number: int, crops: bytes, objects: bytes) -> None:
        with self.connection:
            self.connection.execute(
                "INSERT OR REPLACE INTO findings VALUES(?, ?, ?, ?)", (key, number, crops, objects)
            )

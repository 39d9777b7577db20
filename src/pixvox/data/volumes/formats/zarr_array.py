"""Zarr arrays read chunk by chunk, sharded or not, on disk or in any other store of zarr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.regions import Index
from pixvox.data.readers.zarr_array import chunks_of, facts_of, is_stored, open_zarr, read_part
from pixvox.data.volumes.formats.stored_array import Header


class ZarrChunks:
    """An array of zarr. Nothing is listed: of a million chunks only those of a region are looked at.

    Args:
        array: The array.
        source: Its path, for messages.
        axes: A letter per axis; None when nothing is known.
        spacing: Size of a pixel or voxel by axis letter, in micrometres.
    """

    def __init__(self, array: Any, source: str, axes: str | None, spacing: dict[str, float]) -> None:
        self.array, self.source = array, source
        dtype = np.dtype(array.dtype).newbyteorder("=")
        self.header = Header(tuple(array.shape), dtype, axes, spacing, chunks=tuple(array.chunks))

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index``; of chunks that are not stored, the fill value.

        Raises:
            DataError: If a chunk is damaged.
        """
        return read_part(self.array, index, self.source)

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return the chunks, or shards of chunks, that ``index`` touches and that are not stored."""
        return [
            (f"chunk {key}", place)
            for key, place in chunks_of(self.array, index)
            if not is_stored(self.array, key)
        ]


def open_zarr_path(path: Path, level: int = 0) -> ZarrChunks:
    """Open an array, or a level of an OME-Zarr image.

    Raises:
        DataError: If there is no array at ``path``, or no such level.
    """
    array, axes, spacing = open_zarr(path, level)
    return ZarrChunks(array, str(path), axes, spacing)


def from_zarr(array: Any) -> ZarrChunks:
    """Take an array that a program has opened."""
    return ZarrChunks(array, str(array.store_path), *facts_of(array))

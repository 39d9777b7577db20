"""Arrays of HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.handle import Handle
from pixvox.data.readers.hdf5 import open_hdf5
from pixvox.data.readers.regions import Index, pieces
from pixvox.data.volumes.formats.stored_array import Header
from pixvox.errors import DataError

SPACING = "element_size_um"
"""Attribute of the voxel size in micrometres, one number per spatial axis in array order, as ilastik writes it."""


class Hdf5Dataset:
    """An array of an HDF5 file, which each process opens for itself.

    Args:
        path: The file.
        dataset: Name of the array in it; None for its only one.
        opened: The array, when a program has opened it.

    Raises:
        DataError: If h5py is not installed, the file is damaged, or it is unclear which array is meant.
    """

    def __init__(self, path: Path, dataset: str | None, opened: Any = None) -> None:
        self.path = path
        pair = None if opened is None else (opened.file, opened)
        self._opened = Handle(open_hdf5, path, dataset, "dataset=NAME", opened=pair)
        array = self._opened()[1]
        if array.shape is None:
            raise DataError(f"{path}: {array.name} is empty; name another array by dataset=NAME")
        labels = [dimension.label for dimension in array.dims]
        axes = "".join(label[:1].upper() for label in labels) if labels and all(labels) else None
        shape = tuple(int(length) for length in array.shape)
        spacing = _spacing(array.attrs.get(SPACING), axes)
        self.name = array.name
        self.header = Header(shape, array.dtype.newbyteorder("="), axes, spacing, chunks=array.chunks)

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index``; of chunks that are not stored, the fill value.

        Raises:
            DataError: If a chunk is damaged, or the file has changed.
        """
        array = self._opened()[1]
        if tuple(array.shape) != self.header.shape:
            raise DataError(
                f"{self.path}: {self.name} has changed: its shape was {self.header.shape} and is {array.shape} now"
            )
        try:
            return np.asarray(array[index])
        except Exception as error:  # h5py raises OSError, RuntimeError, KeyError
            raise DataError(f"{self.path}: {self.name} is damaged or cut off at {index} ({error})") from error

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return the chunks that ``index`` touches and that are not stored."""
        array = self._opened()[1]
        if array.chunks is None:
            return ()
        return [
            (f"chunk {position} of {self.name}", place)
            for position, place in pieces(index, self.header.shape, array.chunks)
            if array.id.get_chunk_info_by_coord(tuple(part.start for part in place)).byte_offset is None
        ]


def from_hdf5(array: Any) -> Hdf5Dataset:
    """Take an array that a program has opened; other processes open its file again."""
    return Hdf5Dataset(Path(array.file.filename), array.name, opened=array)


def _spacing(steps: Any, axes: str | None) -> dict[str, float]:
    """Return the voxel size by axis letter; without names of axes, ``steps`` are those of z, y, x or y, x."""
    if steps is None:
        return {}
    sizes = [float(step) for step in np.atleast_1d(steps)]
    letters = [axis for axis in axes or "ZYX"[-len(sizes) :] if axis in "ZYX"]
    return dict(zip(letters, sizes, strict=True)) if len(letters) == len(sizes) else {}

"""A folder with a picture for each plane of a volume, as light-sheet microscopes write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from pixvox.data.images import TIFF
from pixvox.data.readers.handle import Handle
from pixvox.data.readers.regions import Index
from pixvox.data.volumes.formats.stored_array import Header, StoredArray
from pixvox.data.volumes.formats.tiff import open_tiff
from pixvox.errors import DataError

_OPEN_PLANES = 64  # as many files are held open at once


class Planes:
    """TIFF files of one folder, stacked along the first axis in the order of the numbers in their names.

    Args:
        folder: The folder; hidden files and other formats are left out.

    Raises:
        DataError: If there is no TIFF file, or the first cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        files = [
            path for path in folder.iterdir() if path.name.lower().endswith(TIFF) and path.name[0] != "."
        ]
        self.folder, self.files = folder, sorted(files, key=_by_number)
        if not self.files:
            raise DataError(
                f"{folder}: a folder is a Zarr array or image, or holds a TIFF file per plane; this is neither"
            )
        self._open = Handle(_opener)
        plane = self._open()(self.files[0]).header
        axes = None if plane.axes is None else "Z" + plane.axes.replace("S", "C")
        if axes is not None and axes.count("Z") > 1:
            raise DataError(f"{self.files[0]} is a volume itself; give the path of one file")
        chunks = (1, *(plane.chunks or (1,) * len(plane.shape)))
        self.header = Header(
            (len(self.files), *plane.shape), plane.dtype, axes, plane.spacing, plane.unit, chunks
        )

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index``.

        Raises:
            DataError: If a plane is damaged, or differs from the first.
        """
        planes = [self._plane(number).read(index[1:]) for number in self._numbers(index)]
        return np.stack(planes)

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return what is missing in the planes that ``index`` touches."""
        return [
            (f"{name} of {self.files[number].name}", (slice(number, number + 1), *place))
            for number in self._numbers(index)
            for name, place in self._plane(number).missing(index[1:])
        ]

    def _numbers(self, index: Index) -> range:
        return range(*index[0].indices(len(self.files)))

    def _plane(self, number: int) -> StoredArray:
        plane = self._open()(self.files[number])
        if (plane.header.shape, plane.header.dtype) != (self.header.shape[1:], self.header.dtype):
            raise DataError(
                f"{self.files[number]} has the shape {plane.header.shape} and type {plane.header.dtype}, the first "
                f"plane {self.header.shape[1:]} and {self.header.dtype}; they must be the same"
            )
        return plane


def _opener() -> Callable[[Path], StoredArray]:
    """Return what opens planes and remembers the latest."""
    return lru_cache(maxsize=_OPEN_PLANES)(open_tiff)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort plane_10 after plane_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

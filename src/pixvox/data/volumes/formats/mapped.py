"""Values that lie uncompressed and in one piece in a file: npy, and many TIFF files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pixvox.data.readers.npy import map_npy
from pixvox.data.readers.regions import Index
from pixvox.data.volumes.formats.stored_array import Header
from pixvox.errors import DataError

MOST_MAPPED = 128 * 2**20
"""Bytes that are read through one map of a file: the system counts them as memory of the process."""

_FAULT = 2 * 2**20  # bytes that the system may make available around each one that is read: a large page


class MappedFile:
    """A part of a file as an array.

    The map is kept, because the system looks up every page of a new one again, and given up after ``MOST_MAPPED``
    bytes. A file that has been replaced is mapped again; one that has become shorter is an error instead of the end of
    the process. Another process maps the file for itself.

    Args:
        path: The file.
        header: What is known of the array.
        stored_dtype: Type of the values in the file, with their byte order.
        offset: Bytes before the first value.
        order: ``"C"`` or ``"F"``: whether the last or the first axis is contiguous.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        stored_dtype: np.dtype,
        offset: int,
        order: Literal["C", "F"] = "C",
    ) -> None:
        self.path, self.header, self.stored_dtype = path, header, stored_dtype
        self.offset, self.order = offset, order
        self._map: _Map | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index`` as they lie in the file: a view for reading, which is soon to be copied.

        Raises:
            DataError: If the file is gone or has become shorter.
        """
        now = self._state()
        known = self._map
        if known is None or known.state != now or known.bytes_held >= MOST_MAPPED:
            known = self._map = _Map(self._values(), now)
        part = known.values[index]
        if known.values.nbytes > MOST_MAPPED:
            known.bytes_held += _touched(part)
        return part

    def _state(self) -> tuple[int, int, int] | None:
        """Return what tells the file from another one in its place; None where there is none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _values(self) -> np.ndarray:
        """Map the file."""
        try:
            values = np.memmap(
                self.path, self.stored_dtype, "r", self.offset, self.header.shape, order=self.order
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: the file is gone or cut off: its {self.header.shape} values of type "
                f"{self.stored_dtype} cannot be mapped ({error})"
            ) from error
        return np.asarray(values)  # slices of a plain array take less time

    def check_size(self) -> None:
        """Refuse a file that is shorter than its array.

        Raises:
            DataError: If it is.
        """
        size = self.path.stat().st_size
        needed = self.offset + math.prod(self.header.shape) * self.stored_dtype.itemsize
        if size < needed:
            raise DataError(
                f"{self.path}: the file is damaged or cut off: shape {self.header.shape} takes {needed} bytes, the "
                f"file has {size}; copy it again from its source"
            )

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return nothing: every value has its place in the file."""
        return ()


@dataclass
class _Map:
    """A map of a file, and how much of it the process has looked at."""

    values: np.ndarray
    state: tuple[int, int, int] | None
    bytes_held: int = 0


def _touched(part: np.ndarray) -> int:
    """Return about how many bytes of memory a part of a map takes: runs of it, and what comes with each."""
    axes = sorted(zip(part.strides, part.shape, strict=True), reverse=True)
    runs, least = 1, part.nbytes * _FAULT
    for axis in range(len(axes) + 1):
        run = part.itemsize + sum(step * (length - 1) for step, length in axes[axis:])
        least = min(least, runs * (run + _FAULT))
        runs *= axes[axis][1] if axis < len(axes) else 1
    return least


def open_npy(path: Path) -> MappedFile:
    """Open a ``.npy`` file.

    Raises:
        DataError: If it is damaged, or holds objects instead of numbers.
    """
    values = map_npy(path)
    header = Header(values.shape, values.dtype.newbyteorder("="))
    order: Literal["C", "F"] = "F" if np.isfortran(values) else "C"
    return MappedFile(path, header, values.dtype, values.offset, order)

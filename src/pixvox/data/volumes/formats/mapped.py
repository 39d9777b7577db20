"""Values that lie uncompressed and in one piece in a file: npy, and many TIFF files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pixvox.data.readers.npy import map_npy
from pixvox.data.readers.regions import Index
from pixvox.data.volumes.formats.stored_array import Header
from pixvox.errors import DataError


class MappedFile:
    """A part of a file as an array.

    The file is mapped anew for each read: that costs microseconds, memory holds no more than the region, the object
    can be pickled as it is, and a file that has become shorter is an error instead of the end of the process.

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

    def read(self, index: Index) -> np.ndarray:
        """Return a copy of the values at ``index``.

        Raises:
            DataError: If the file is gone or has become shorter.
        """
        try:
            values = np.memmap(
                self.path, self.stored_dtype, "r", self.offset, self.header.shape, order=self.order
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: the file is gone or cut off: its {self.header.shape} values of type "
                f"{self.stored_dtype} cannot be mapped ({error})"
            ) from error
        return np.array(values[index])

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


def open_npy(path: Path) -> MappedFile:
    """Open a ``.npy`` file.

    Raises:
        DataError: If it is damaged, or holds objects instead of numbers.
    """
    values = map_npy(path)
    header = Header(values.shape, values.dtype.newbyteorder("="))
    order: Literal["C", "F"] = "F" if np.isfortran(values) else "C"
    return MappedFile(path, header, values.dtype, values.offset, order)

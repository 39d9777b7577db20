"""NumPy's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pixvox.data.readers.raw_array import RawArray
from pixvox.errors import DataError


def read_npy(path: Path) -> RawArray:
    """Read an array.

    Raises:
        DataError: As ``map_npy``.
    """
    return RawArray(np.array(map_npy(path)), None, {})


def map_npy(path: Path) -> np.memmap:
    """Map an array, so that a shape beyond the end of the file is refused before memory is asked for.

    Raises:
        DataError: If the file is damaged, or holds objects instead of numbers.
    """
    try:
        with np.errstate(over="ignore"):
            values: np.memmap = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python and raises what that raises
        raise DataError(
            f"{path}: the npy file is damaged, or holds objects instead of numbers ({error})"
        ) from error
    return values

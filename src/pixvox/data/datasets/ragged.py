"""Arrays of different lengths, one per image, out of ``.npy`` files that are safe to read."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.errors import DataError

_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # how Python 3 writes the bytes of arrays in old protocols
}
"""All that a pickle of arrays has to call."""


def read_ragged(file: Path, offsets: Path | None = None) -> list[np.ndarray]:
    """Return one array per image.

    Args:
        file: A ``.npy`` file: an array of arrays, or the rows of all images in one array with ``offsets``.
        offsets: A ``.npy`` file of ascending row numbers from 0 to the number of rows.

    Raises:
        DataError: If a file cannot be read, holds anything but numbers, or the offsets do not fit.
    """
    content = _read(file)
    if offsets is None:
        if content.dtype != object:
            if content.ndim < 2:
                raise DataError(
                    f"{file} holds {content.shape} numbers in one array; give offsets, or one array per image"
                )
            return list(content)
        # Rows of one length may have become an array of two axes whose entries are single numbers.
        rows = content if content.ndim == 1 else [row.tolist() for row in content]
        return [_numbers(entry, file, index) for index, entry in enumerate(rows)]
    ends = _read(offsets)
    if content.dtype == object:
        raise DataError(f"{file} holds one array per image already; leave offsets out")
    if (
        ends.ndim != 1
        or ends.dtype.kind not in "iu"
        or len(ends) < 1
        or ends[0] != 0
        or ends[-1] != len(content)
        or (np.diff(ends.astype(np.int64)) < 0).any()
    ):
        raise DataError(
            f"{offsets} must hold ascending whole numbers from 0 to the {len(content)} rows of {file}, one more than "
            "there are images"
        )
    return [content[start:end] for start, end in pairwise(ends.tolist())]


def _numbers(entry: Any, file: Path, index: int) -> np.ndarray:
    try:
        array = np.asarray(entry)
    except ValueError as error:
        raise DataError(f"{file}: entry {index} is no array of numbers: {error}") from error
    if array.dtype == object and array.size == 0:
        return np.zeros(array.shape, np.int64)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{file}: entry {index} is no array of numbers, but of type {array.dtype}")
    return array


def _read(file: Path) -> np.ndarray:
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            reader = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = reader(stream)
            if dtype.hasobject:
                content = _ArraysOnly(stream, encoding="latin1").load()
                if not isinstance(content, np.ndarray) or content.shape != shape:
                    raise ValueError("its content is not the array that its header describes")
                return content
        return np.asarray(np.load(file, allow_pickle=False))
    except pickle.UnpicklingError as error:
        raise DataError(f"{file} is not read: {error}. Do not trust this file") from error
    except (ValueError, OSError, EOFError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise DataError(f"{file} is no .npy file, or it is damaged: {error}") from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays of numbers; whatever else a pickle asks for ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and arrays need no such thing")
        return super().find_class(module, name)

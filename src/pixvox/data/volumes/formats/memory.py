"""Arrays that a program holds already: of NumPy, PyTorch, or whatever is indexed like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pixvox.data.readers.regions import Index
from pixvox.data.volumes.formats.stored_array import Header


class InMemory:
    """An object with ``shape``, ``dtype`` and slicing. Pickling takes its values along.

    Args:
        array: The object; a tensor is read on the CPU.
    """

    def __init__(self, array: Any) -> None:
        if hasattr(array, "detach"):
            array = array.detach().cpu().numpy()
        self.array = array
        shape = tuple(int(length) for length in array.shape)
        self.header = Header(shape, np.dtype(array.dtype).newbyteorder("="))

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index``."""
        return np.asarray(self.array[index])

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return nothing: all values are there."""
        return ()

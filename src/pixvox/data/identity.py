"""What tells one dataset from another: its class, its options and the names of its images."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pixvox.data.dataset import Dataset


def identity(dataset: Dataset) -> dict[str, Any]:
    """Return plain values that are equal for equal datasets, and differ where options or images do.

    All attributes count, private ones too, as ``pickle`` would see them: what must not count, such as an open
    file, is left out by the ``__getstate__`` of its class. The content of files does not count.

    Example:
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> identity(Shapes(2, seed=0)) == identity(Shapes(2, seed=0)) != identity(Shapes(2, seed=1))
        True
    """
    return _identity(dataset, ())


def _identity(dataset: Dataset, above: tuple[int, ...]) -> dict[str, Any]:
    sources = hashlib.sha256()
    for index in range(len(dataset)):
        sources.update(dataset.source(index).encode() + b"\0")
    return {"length": len(dataset), "sources": sources.hexdigest(), **_object(dataset, above)}


def _described(value: Any, above: tuple[int, ...]) -> Any:
    """Return a form that JSON can hold and that is the same in every process."""
    if value is None or isinstance(value, (bool, int, float, complex, str, Path)):
        return repr(value)
    if isinstance(value, (bytes, bytearray)):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, np.memmap):  # may be larger than memory
        return [str(value.filename), value.offset, str(value.dtype), list(value.shape)]
    if isinstance(value, (np.ndarray, Tensor)):
        array = np.ascontiguousarray(value)
        if array.dtype == object:
            return _described(array.tolist(), above)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if id(value) in above:  # a value that holds itself
        return len(above)
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return [[_described(key, above), _described(entry, above)] for key, entry in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_described(entry, above)) for entry in value)
    if isinstance(value, (list, tuple)):
        if value and is_dataclass(value[0]):
            return len(value)  # records, such as parsed annotations: the state of their file tells more
        return [_described(entry, above) for entry in value]
    return _identity(value, above) if isinstance(value, Dataset) else _object(value, above)


def _object(value: Any, above: tuple[int, ...]) -> dict[str, Any]:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        state = value.__getstate__()
    except Exception:  # an object that cannot be pickled raises what it likes
        return {"class": kind}
    if isinstance(state, dict):
        state = dict(sorted(state.items()))
    return {"class": kind, "state": _described(state, (*above, id(value)))}

"""What every file format offers: an array whose values stay on disk until a part is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from pixvox.data.readers.regions import Index
from pixvox.errors import DataError


@dataclass(frozen=True)
class Header:
    """What is known of an array before any of its values is read.

    Args:
        shape: Lengths of its axes, as stored.
        dtype: Type that values are read as.
        axes: A letter per axis, as in ``RawArray``; None when nothing is known.
        spacing: Size of a pixel or voxel by axis letter.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        chunks: Lengths along each axis of what must be read together; None when single values can be read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str | None = None
    spacing: Mapping[str, float] = field(default_factory=dict)
    unit: str = "um"
    chunks: tuple[int, ...] | None = None


@runtime_checkable
class StoredArray(Protocol):
    """An array that is read part by part, with its axes as stored; it can be pickled."""

    header: Header

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index``.

        Raises:
            DataError: If what holds them is damaged.
        """

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return what touches ``index`` and was never written: the name of each piece, and its place."""


def refuse_missing(array: StoredArray, index: Index, source: str) -> None:
    """Refuse to read what was never written: it would come out as the fill value without a word.

    Raises:
        DataError: If ``index`` touches such a place.
    """
    absent = array.missing(index)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(
            f"{source}: {absent[0][0]}{more} of what is read was never written and would read as empty; copy it "
            "again, or have such places marked with allow_missing_chunks=True (pixvox data: --allow-missing-chunks, "
            "pixvox predict: inference.allow_missing_chunks=true)"
        )

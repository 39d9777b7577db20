"""What a file format tells of an array, and how it becomes (channels, *spatial)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pixvox.data.readers.axes import find_layout


@dataclass(frozen=True)
class RawArray:
    """An array as stored.

    Args:
        data: The array.
        axes: A letter per axis: Y, X, Z, C or S (channels), T; others are unnamed. None when nothing is
            known.
        spacing: Size of a pixel or voxel by axis letter.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        indexed: True when values are indices of a palette and carry no intensity.
        missing: True where values are not stored and only filled in, in the shape of ``data``; None when all are.
    """

    data: np.ndarray
    axes: str | None
    spacing: dict[str, float]
    unit: str = "um"
    indexed: bool = False
    missing: np.ndarray | None = None


def channels_first(raw: RawArray, spatial_dims: int | None, source: str) -> tuple[np.ndarray, str]:
    """Return the array as (channels, *spatial) in the order Z, Y, X, and its spatial axes.

    Args:
        raw: What was read.
        spatial_dims: 2 or 3 when it is known; otherwise the axes decide.
        source: File, for messages.

    Raises:
        DataError: If the axes do not fit.
    """
    layout = find_layout(raw.data.shape, raw.axes, spatial_dims, source)
    return layout.arrange(raw.data), layout.spatial


def missing_first(raw: RawArray, spatial_dims: int | None, source: str) -> np.ndarray | None:
    """Return where values of any channel are missing, ``(*spatial)`` in the order Z, Y, X; None when none are."""
    if raw.missing is None:
        return None
    marked, _ = channels_first(replace(raw, data=raw.missing), spatial_dims, source)
    return np.asarray(marked.any(axis=0))

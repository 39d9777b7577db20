"""What a file format tells of an array, and how it becomes (channels, *spatial)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pixvox.errors import DataError

MAX_CHANNELS = 4
"""Without named axes, an axis of at most this length at the front or the end is taken for channels."""


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
    data, axes = raw.data, raw.axes
    if axes is None:
        axes = _guess_axes(data.shape, spatial_dims, source)
    if len(axes) != data.ndim:
        raise DataError(
            f"{source}: an array of shape {data.shape} cannot have the axes {axes}; export it again"
        )
    data, axes = _named(data, axes, spatial_dims)
    spatial = "".join(axis for axis in "ZYX" if axis in axes)
    unknown = sorted(set(axes) - set("CZYX"))
    wanted = spatial_dims or len(spatial)
    if unknown or len(set(axes)) != len(axes) or len(spatial) != wanted or "YX" not in spatial:
        raise DataError(
            f"{source}: axes {raw.axes or axes} of shape {raw.data.shape} are not "
            f"{'an image (y, x)' if wanted == 2 else 'a volume (z, y, x)'} with or without channels; "
            f"export one time point, or set spatial_dims"
        )
    order = [axes.index(axis) for axis in ("C" + spatial if "C" in axes else spatial)]
    data = data.transpose(order)
    return (data if "C" in axes else data[None]), spatial


def missing_first(raw: RawArray, spatial_dims: int | None, source: str) -> np.ndarray | None:
    """Return where values of any channel are missing, ``(*spatial)`` in the order Z, Y, X; None when none are."""
    if raw.missing is None:
        return None
    marked, _ = channels_first(replace(raw, data=raw.missing), spatial_dims, source)
    return np.asarray(marked.any(axis=0))


def _named(data: np.ndarray, axes: str, spatial_dims: int | None) -> tuple[np.ndarray, str]:
    """Give unnamed axes their names and drop those of length 1."""
    axes = axes.upper().replace("S", "C" if "C" not in axes.upper() else "S")
    for axis in reversed(range(data.ndim)):
        surplus = axes[axis] not in "YX" and data.shape[axis] == 1
        plane = axes[axis] == "Z" and spatial_dims != 2
        if surplus and not plane:
            data, axes = data.squeeze(axis), axes[:axis] + axes[axis + 1 :]
    unnamed = [axis for axis in axes if axis not in "CZYXT"]
    if len(unnamed) == 1 and "Z" not in axes and spatial_dims != 2:  # the pages of a file are its planes
        axes = axes.replace(unnamed[0], "Z")
    elif spatial_dims == 3 and "Z" not in axes and data.ndim == 3:
        # Planes are often stored as times or channels; a volume of one plane has few of them.
        other = next(axis for axis in axes if axis not in "YX")
        if data.shape[axes.index(other)] > MAX_CHANNELS:
            axes = axes.replace(other, "Z")
    elif len(unnamed) == 1 and "C" not in axes and spatial_dims == 2:
        axes = axes.replace(unnamed[0], "C")
    if spatial_dims == 3 and "Z" not in axes and len(axes.replace("C", "")) == 2:  # a volume of one plane
        data, axes = data[None], "Z" + axes
    return data, axes


def _guess_axes(shape: Sequence[int], spatial_dims: int | None, source: str) -> str:
    """Name the axes of an array that says nothing of them."""
    if len(shape) == 2:
        return "YX"
    if len(shape) == 3:
        if spatial_dims == 3:
            return "ZYX"
        if shape[-1] <= MAX_CHANNELS:
            return "YXC"
        if spatial_dims == 2 or shape[0] <= MAX_CHANNELS:
            return "CYX"
        return "ZYX"
    if len(shape) == 4:
        return "ZYXC" if shape[-1] <= MAX_CHANNELS < shape[0] or shape[-1] < shape[0] else "CZYX"
    raise DataError(f"{source}: an array of shape {tuple(shape)} is neither an image nor a volume")

"""Zarr arrays (formats 2 and 3) and the finest level of OME-Zarr images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.raw_array import RawArray
from pixvox.errors import DataError

_MANY_CHUNKS = 1_000_000
_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6}


def open_zarr(path: Path) -> tuple[Any, str | None, dict[str, float]]:
    """Return the array without reading it, its axes and its spacing by axis in micrometres.

    Raises:
        DataError: If there is no array at ``path``.
    """
    import zarr

    try:
        node: Any = zarr.open(str(path), mode="r")
        attributes = dict(node.attrs)
        metadata = attributes.get("ome", attributes)
        if isinstance(node, zarr.Array):
            names = getattr(node.metadata, "dimension_names", None)
            axes = "".join(str(name)[:1] for name in names) if names and all(names) else None
            spacing = _by_axis(axes, attributes.get("spacing"))
            return node, axes, spacing
        level = metadata["multiscales"][0]["datasets"][0]
        array = node[level["path"]]
        names = [axis["name"] for axis in metadata["multiscales"][0]["axes"]]
        axes = "".join(name[:1] for name in names).upper()
        scales = [
            step["scale"]
            for step in level.get("coordinateTransformations", [])
            if step.get("type") == "scale"
        ]
        units = [axis.get("unit") for axis in metadata["multiscales"][0]["axes"]]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{path}: a Zarr group that is not an OME-Zarr image; give the path of its array"
        ) from error
    except Exception as error:  # zarr's stores raise their own, unrelated types
        raise DataError(f"{path}: no Zarr array can be opened here ({error})") from error
    spacing = {}
    if scales:
        for axis, step, unit in zip(axes, scales[0], units, strict=True):
            if unit in _MICROMETRES:
                spacing[axis] = float(step) * _MICROMETRES[unit]
    return array, axes, spacing


def _by_axis(axes: str | None, spacing: Any) -> dict[str, float]:
    """Return our own ``spacing`` attribute, which is in array order of the spatial axes."""
    if not isinstance(spacing, (list, tuple)):
        return {}
    letters = [axis for axis in (axes or "zyx"[-len(spacing) :]).upper() if axis in "ZYX"]
    if len(letters) != len(spacing):
        return {}
    return {axis: float(step) for axis, step in zip(letters, spacing, strict=True)}


def read_zarr(path: Path, allow_missing_chunks: bool) -> RawArray:
    """Read a whole array.

    Args:
        path: Folder of the array, or of an OME-Zarr image.
        allow_missing_chunks: Mark the places of chunks that are not stored instead of an error.

    Raises:
        DataError: If it cannot be opened, a chunk is damaged, or a chunk is missing.
    """
    array, axes, spacing = open_zarr(path)
    missing = check_chunks(array, path, allow_missing_chunks)
    try:
        data = np.asarray(array[...])
    except Exception as error:  # codecs raise their own, unrelated types
        damaged = _first_damaged(array)
        which = f"chunk {damaged}" if damaged is not None else "a chunk"
        raise DataError(f"{path}: {which} of the Zarr array is damaged ({error}); copy it again") from error
    marked = None
    if missing:
        marked = np.zeros(data.shape, dtype=bool)
        for place in missing:
            marked[place] = True
    return RawArray(data, axes, spacing, missing=marked)


def check_chunks(array: Any, path: Path, allow_missing_chunks: bool) -> list[tuple[slice, ...]]:
    """Return the places of chunks that are not stored; refuse them unless they are allowed.

    They would read as the fill value without a word.

    Raises:
        DataError: If chunks are missing and ``allow_missing_chunks`` is False.
    """
    folder, expected = path / array.path, array.nchunks
    files = sum(len(names) for _, _, names in os.walk(folder)) if expected > _MANY_CHUNKS else expected
    if expected > max(
        _MANY_CHUNKS, 1000 * files
    ):  # a shard holds many chunks; listing them would take all memory
        raise DataError(
            f"{path}: its shape {array.shape} asks for {expected} chunks, but {files} files are stored; its "
            f"description is damaged, copy it again"
        )
    stored = array.nchunks_initialized
    if stored == expected:
        return []
    missing = [(key, place) for key, place in _chunks(array) if not (folder / key).exists()]
    if not allow_missing_chunks:
        named = f", the first is {missing[0][0]}," if missing else ""
        raise DataError(
            f"{path}: {expected - stored} of {expected} chunks{named} are not stored and would read as "
            f"{array.fill_value}; copy it again, or set allow_missing_chunks=true to leave their places out"
        )
    return [place for _, place in missing]


def _chunks(array: Any) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Yield the key of each stored unit (a chunk, or a shard of chunks) and its place."""
    steps = getattr(array, "shards", None) or array.chunks
    counts = [math.ceil(length / step) for length, step in zip(array.shape, steps, strict=True)]
    for position in np.ndindex(*counts):
        place = tuple(slice(i * step, (i + 1) * step) for i, step in zip(position, steps, strict=True))
        yield array.metadata.encode_chunk_key(position), place


def _first_damaged(array: Any) -> str | None:
    """Return the key of the first chunk that cannot be read."""
    for key, place in _chunks(array):
        try:
            array[place]
        except Exception:  # as above
            return key
    return None

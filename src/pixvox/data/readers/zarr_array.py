"""Zarr arrays (formats 2 and 3) and the levels of OME-Zarr images (formats 0.4 and 0.5)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.raw_array import RawArray
from pixvox.data.readers.regions import Index, pieces
from pixvox.errors import DataError

_MANY_CHUNKS = 1_000_000
_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "angstrom": 1e-4, "millimeter": 1e3, "centimeter": 1e4,
                "meter": 1e6}  # fmt: skip


def open_zarr(path: Path, level: int = 0) -> tuple[Any, str | None, dict[str, float]]:
    """Return an array without reading it, its axes and its spacing by axis in micrometres.

    Args:
        path: Folder of the array, or of an OME-Zarr image.
        level: Level of the image, 0 is the finest.

    Raises:
        DataError: If there is no array at ``path``, or no such level.
    """
    import zarr

    try:
        node: Any = zarr.open(str(path), mode="r")
    except Exception as error:  # zarr's stores raise their own, unrelated types
        raise DataError(f"{path}: no Zarr array can be opened here ({error})") from error
    if isinstance(node, zarr.Array):
        if level != 0:
            raise DataError(f"{path}: there is no level {level}; a plain array has level 0 only")
        return node, *facts_of(node)
    try:
        attributes = dict(node.attrs)
        image = attributes.get("ome", attributes)["multiscales"][0]
        levels = image["datasets"]
        if not 0 <= level < len(levels):
            raise DataError(f"{path}: there is no level {level}; it has {len(levels)}, counted from 0")
        array = node[levels[level]["path"]]
        axes = "".join(axis["name"][:1] for axis in image["axes"]).upper()
        scales = [scale for scale in (_scale(levels[level]), _scale(image)) if scale]
        steps = [math.prod(along) for along in zip(*scales, strict=True)]
        units = [axis.get("unit") for axis in image["axes"]]
        if len(axes) != array.ndim or (steps and len(steps) != array.ndim):
            raise DataError(f"{path}: axes {axes} and scale {steps} do not fit the shape {array.shape}")
    except DataError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: a Zarr group that is not an OME-Zarr image; give the path of its array"
        ) from error
    except Exception as error:  # as above
        raise DataError(f"{path}: no Zarr array can be opened here ({error})") from error
    known = [(axis, step, unit) for axis, step, unit in zip(axes, steps, units, strict=False)]
    return (
        array,
        axes,
        {axis: step * _MICROMETRES[unit] for axis, step, unit in known if unit in _MICROMETRES},
    )


def facts_of(array: Any) -> tuple[str | None, dict[str, float]]:
    """Return the axes of a plain array, if it names them, and its spacing by axis in micrometres."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get(
        "_ARRAY_DIMENSIONS"
    )  # xarray's
    axes = "".join(str(name)[:1] for name in names) if names and all(names) else None
    return axes, _by_axis(axes, array.attrs.get("spacing"))


def _scale(described: Mapping[str, Any]) -> list[float] | None:
    """Return the scale of a level, or the one that all levels share."""
    steps = described.get("coordinateTransformations") or []
    return next((list(map(float, step["scale"])) for step in steps if step.get("type") == "scale"), None)


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
    data = read_part(array, None, path)
    marked = None
    if missing:
        marked = np.zeros(data.shape, dtype=bool)
        for place in missing:
            marked[place] = True
    return RawArray(data, axes, spacing, missing=marked)


def read_part(array: Any, index: Index | None, path: str | Path) -> np.ndarray:
    """Return the values of an array at ``index``, or all.

    Raises:
        DataError: If a chunk is damaged; it is named.
    """
    try:
        return np.asarray(array[... if index is None else index])
    except Exception as error:  # codecs raise their own, unrelated types
        damaged = _first_damaged(array, index)
        which = f"chunk {damaged}" if damaged is not None else "a chunk"
        raise DataError(f"{path}: {which} of the Zarr array is damaged ({error}); copy it again") from error


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
    missing = [(key, place) for key, place in chunks_of(array) if not is_stored(array, key)]
    if not allow_missing_chunks:
        named = f", the first is {missing[0][0]}," if missing else ""
        raise DataError(
            f"{path}: {expected - stored} of {expected} chunks{named} are not stored and would read as "
            f"{array.fill_value}; copy it again, or set allow_missing_chunks=true to leave their places out"
        )
    return [place for _, place in missing]


def chunks_of(array: Any, index: Index | None = None) -> Iterator[tuple[str, Index]]:
    """Yield key and place of each stored unit (a chunk, or a shard of chunks) that ``index`` touches, or of all."""
    steps = getattr(array, "shards", None) or array.chunks
    for position, place in pieces(index or (slice(None),) * array.ndim, array.shape, steps):
        yield array.metadata.encode_chunk_key(position), place


def is_stored(array: Any, key: str) -> bool:
    """Tell whether the chunk or shard of a key was ever written."""
    where = array.store_path
    root = getattr(where.store, "root", None)
    if isinstance(root, Path):  # a folder: asking the file system takes microseconds
        return bool((root / where.path / key).exists())
    from zarr.core.sync import sync  # zarr offers no other way to ask a store from synchronous code

    return bool(sync((where / key).exists()))


def _first_damaged(array: Any, index: Index | None) -> str | None:
    """Return the key of the first chunk that cannot be read."""
    for key, place in chunks_of(array, index):
        try:
            array[place]
        except Exception:  # as above
            return key
    return None

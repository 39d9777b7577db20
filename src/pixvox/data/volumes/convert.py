"""From one format of volumes to another, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.regions import Index, pieces
from pixvox.data.volumes.ome_zarr import CHUNKS, build_pyramid, list_among_labels
from pixvox.data.volumes.open import open_volume
from pixvox.data.volumes.volume import Volume
from pixvox.data.volumes.writers import WRITERS, Content
from pixvox.errors import DataError
from pixvox.files import whole_file, whole_folder

BLOCK_BYTES = 128 * 2**20
"""Values that are read and written at once, unless one chunk is larger."""

DTYPES = ("keep", "uint8", "uint16", "uint32", "float32")

Progress = Callable[[str, int, int], None]
"""Told what is done, how many blocks of it are, and how many there are."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Args:
        path: The new file or folder.
        size: Lengths of the spatial axes in array order.
        channels: Number of channels.
        dtype: Type of the values.
        spacing: Size of a pixel or voxel per axis in array order, or None when it is unknown.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        levels: Levels of its pyramid, the finest included.
        missing: Voxels that were never written in the source; they are 0 now.
    """

    path: str
    size: tuple[int, ...]
    channels: int
    dtype: str
    spacing: tuple[float, ...] | None
    unit: str
    levels: int
    missing: int = 0


def convert(
    source: Any,
    output: str | Path,
    spatial_dims: int | None = None,
    axes: str | None = None,
    time: int | None = None,
    level: int = 0,
    dataset: str | None = None,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    dtype: str = "keep",
    labels: bool = False,
    pyramid: bool = True,
    force: bool = False,
    progress: Progress | None = None,
    allow_missing_chunks: bool = False,
) -> Converted:
    """Write a volume or slide in another format; memory holds a block at a time.

    The output appears when it is whole: a conversion that is interrupted leaves nothing under its name.

    Args:
        source: What ``open_volume`` takes.
        output: File or folder; its suffix chooses among OME-Zarr, OME-TIFF, HDF5, NIfTI and npy.
        spatial_dims: As in ``open_volume``, like the next four.
        axes: A letter for each stored axis.
        time: Time point, from 0.
        level: Level of a pyramid.
        dataset: Name of the array in an HDF5 file.
        chunks: Lengths of a chunk per spatial axis, of Zarr and HDF5.
        shards: Lengths of a file of several chunks, of Zarr; None for a file per chunk.
        spacing: Size of a pixel or voxel per axis in array order, in micrometres; by default that of the source.
        dtype: Type of the new values, one of ``DTYPES``. Values that it cannot hold are an error, never wrapped;
            float32 may round numbers with a fraction.
        labels: Values are object ids or classes, which are never averaged.
        pyramid: Add coarser levels to OME-Zarr.
        force: Replace what is at ``output``.
        progress: Told what is done.
        allow_missing_chunks: Write 0 where the source was never written, in images and labels; otherwise that is an
            error.

    Raises:
        DataError: If the source cannot be read, or the output cannot be written as asked.

    Example:
        >>> from tempfile import mkdtemp
        >>> done = convert(np.ones((5, 6, 7), np.uint8), mkdtemp() + "/ones.zarr", spatial_dims=3, spacing=(2, 1, 1))
        >>> done.size, done.spacing, done.levels
        ((5, 6, 7), (2.0, 1.0, 1.0), 1)
    """
    output = Path(output)
    suffix = _suffix(output)
    if dtype not in DTYPES:
        raise DataError(f"dtype={dtype}: write one of {', '.join(DTYPES)}")
    volume = open_volume(source, spatial_dims, axes, time, level, dataset, allow_missing_chunks)
    content = _content(volume, output, suffix, chunks, shards, spacing, dtype, labels)
    _check_output(output, suffix, source, force)
    output.parent.mkdir(parents=True, exist_ok=True)
    is_zarr, levels, missing = suffix.endswith(".zarr"), 1, 0
    with _whole(output, is_zarr) as part:
        with WRITERS[suffix](part, content) as write:
            blocks = _blocks(volume, content)
            for number, region in enumerate(blocks, start=1):
                block, absent = volume.read(region), volume.missing(region)
                if absent is not None:
                    block[:, absent] = 0
                    missing += int(absent.sum())
                write(region, converted(block, content.dtype, volume.source))
                if progress is not None:
                    progress("converting", number, len(blocks))
        if is_zarr and pyramid:
            tell = None if progress is None else lambda done, total: progress("coarser levels", done, total)
            levels = build_pyramid(part, progress=tell)
    if is_zarr and labels:
        list_among_labels(output)
    return Converted(
        str(output),
        content.size,
        content.channels,
        str(content.dtype),
        content.spacing,
        content.unit,
        levels,
        missing,
    )


def converted(block: np.ndarray, dtype: np.dtype, source: str) -> np.ndarray:
    """Return values in another type.

    Args:
        block: Values.
        dtype: The type they are to have.
        source: File, for messages.

    Raises:
        DataError: If a value would change by more than the rounding of a fraction.

    Example:
        >>> converted(np.array([0, 255]), np.dtype("uint8"), "a.tif").dtype
        dtype('uint8')
    """
    if block.dtype == dtype:
        return block
    with np.errstate(all="ignore"):
        values = block.astype(dtype)
    if dtype.kind == "f" and block.dtype.kind == "f":
        wrong = np.isfinite(block) & ~np.isfinite(values)
    elif dtype.kind == "f":
        exact = 2**53  # doubles count whole numbers up to here
        wrong = values.astype(np.float64) != block.astype(np.float64)
        wrong |= (block > exact) | (block < -exact) if block.dtype.itemsize == 8 else False
    elif block.dtype.kind == "f":
        bounds = np.iinfo(dtype)
        inside = (block >= bounds.min) & (block < bounds.max + 1)  # NaN is nowhere
        wrong = ~inside | (np.rint(block) != block)
    else:
        wrong = (values.astype(block.dtype) != block) | ((values < 0) != (block < 0))
    if wrong.any():
        raise DataError(
            f"{source}: the value {block[wrong].flat[0]} does not fit into {dtype}; choose another --dtype, or keep "
            f"{block.dtype}"
        )
    return values


def _content(
    volume: Volume,
    output: Path,
    suffix: str,
    chunks: Sequence[int] | None,
    shards: Sequence[int] | None,
    spacing: Sequence[float] | None,
    dtype: str,
    labels: bool,
) -> Content:
    """Describe the output; what its format has no place for is refused."""
    given = tuple(float(step) for step in spacing) if spacing is not None else None
    if given is not None and (
        len(given) != len(volume.size) or not all(0 < step < math.inf for step in given)
    ):
        raise DataError(
            f"spacing={list(given)}: give {len(volume.size)} positive numbers in array order, as in "
            f"{'2,0.5,0.5' if len(volume.size) == 3 else '0.5,0.5'}; {volume.source} has the size {volume.size}"
        )
    for name, lengths in (("chunks", chunks), ("shards", shards)):
        keeps = (".zarr", ".h5", ".hdf5") if name == "chunks" else (".zarr",)
        if lengths is not None and not suffix.endswith(keeps):
            raise DataError(f"{output}: {name} are for {', '.join(keeps)}; leave them out for {suffix}")
        if lengths is not None and (len(lengths) != len(volume.size) or min(lengths) < 1):
            raise DataError(
                f"{name}={list(lengths)}: give {len(volume.size)} lengths in array order, as in "
                f"{'64,64,64' if len(volume.size) == 3 else '512,512'}"
            )
    stored = volume.dtype if dtype == "keep" else np.dtype(dtype)
    if stored.kind == "b":
        stored = np.dtype(np.uint8)  # most programs know no other type for masks
    if labels and stored.kind not in "iu":
        raise DataError(
            f"{volume.source}: labels are whole numbers, these are {stored}; add --dtype uint32 if they are whole"
        )
    own = CHUNKS[len(volume.size)] if chunks is None else chunks
    fitting = tuple(map(min, own, volume.size)) if shards is None else tuple(own)
    return Content(
        volume.size,
        volume.channels,
        stored,
        given or volume.spacing,
        "um" if given else volume.unit,
        labels,
        output.name.removesuffix(suffix),
        fitting if suffix.endswith((".zarr", ".h5", ".hdf5")) else None,
        None if shards is None else tuple(shards),
    )


def _suffix(output: Path) -> str:
    name = output.name.lower()
    suffix = next((suffix for suffix in WRITERS if name.endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{output}: no format has this suffix; write one of {', '.join(WRITERS)}")
    return suffix


def _check_output(output: Path, suffix: str, source: Any, force: bool) -> None:
    """Refuse to replace what is there, unless asked; and the source in any case."""
    if isinstance(source, (str, Path)) and Path(source).resolve().is_relative_to(output.resolve()):
        raise DataError(f"{output} is what is read, or holds it; choose another name")
    if output.exists() and not force:
        raise DataError(f"{output} exists already; add --force to replace it, or choose another name")
    if output.is_dir() and not suffix.endswith(".zarr"):
        raise DataError(f"{output} is a folder; choose another name")


def _whole(output: Path, folder: bool) -> AbstractContextManager[Path]:
    return whole_folder(output) if folder else whole_file(output)


def _blocks(volume: Volume, content: Content) -> list[Index]:
    """Return the regions to convert one after another."""
    voxel = content.channels * max(volume.dtype.itemsize, content.dtype.itemsize)
    lengths = block_lengths(content.size, volume.chunks, content.shards or content.chunks, voxel)
    return [place for _, place in pieces((slice(None),) * len(content.size), content.size, lengths)]


def block_lengths(
    size: Sequence[int], read: Sequence[int] | None, written: Sequence[int] | None, voxel_bytes: int
) -> tuple[int, ...]:
    """Return lengths of blocks that are whole chunks of the output and, within ``BLOCK_BYTES``, of the input.

    Args:
        size: Lengths of the volume.
        read: Lengths of what the input keeps together, or None.
        written: The same of the output.
        voxel_bytes: Bytes of a voxel with all channels.

    Example:
        >>> block_lengths((500, 2000, 2000), (1, 16, 2000), (64, 64, 64), 2)  # strips of a TIFF to chunks
        (64, 512, 2000)
    """
    unit = tuple(written or (1,) * len(size))
    lengths = [
        min(length, -(-step // least) * least)
        for length, step, least in zip(size, read or unit, unit, strict=True)
    ]

    def fits(axis: int, length: int) -> bool:
        others = math.prod(lengths[:axis]) * math.prod(lengths[axis + 1 :])
        return others * length * voxel_bytes <= BLOCK_BYTES

    for axis in range(len(size)):  # too large: the first axes are cut first, rows stay whole
        while not fits(axis, lengths[axis]) and lengths[axis] > unit[axis]:
            lengths[axis] = max(unit[axis], lengths[axis] // 2 // unit[axis] * unit[axis])
    for axis in reversed(range(len(size))):
        while lengths[axis] < size[axis] and fits(axis, 2 * lengths[axis]):
            lengths[axis] = min(size[axis], 2 * lengths[axis])
    return tuple(lengths)

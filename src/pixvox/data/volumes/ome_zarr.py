"""Writing OME-Zarr 0.5: an array that is filled block by block, and the coarser levels of its pyramid.

"OME-NGFF: a next-generation file format for expanding bioimaging data-access strategies" (Moore et al., 2021,
https://doi.org/10.1038/s41592-021-01326-w); the format is specified at https://ngff.openmicroscopy.org/0.5/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.images import suffix_of
from pixvox.data.readers.regions import Index, pieces
from pixvox.data.volumes.formats.stored_array import refuse_missing
from pixvox.data.volumes.formats.zarr_array import ZarrChunks
from pixvox.errors import DataError

VERSION = "0.5"
CHUNKS = {2: (512, 512), 3: (64, 64, 64)}
"""Lengths of chunks that are not given: a quarter of a million values, the size that random crops want."""

_UNITS = {"um": "micrometer", "mm": "millimeter"}


def create_ome_zarr(
    path: str | Path,
    size: Sequence[int],
    dtype: Any,
    chunks: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    unit: str = "um",
    channels: int | None = None,
    labels: bool = False,
    shards: Sequence[int] | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Create an image whose values are written later: ``array[region] = block``, best in blocks of whole chunks.

    Chunks that hold only zeros are stored, too, so that a chunk that is not there was never written. Chunks carry a
    checksum. A label image at ``IMAGE.ome.zarr/labels/NAME`` is listed in that image.

    Args:
        path: Folder of the image; it must not exist.
        size: Lengths of the spatial axes in array order.
        dtype: Type of the values.
        chunks: Lengths of a chunk per spatial axis; ``CHUNKS`` by default.
        spacing: Size of a pixel or voxel per axis in array order; None when it is unknown.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        channels: Number of channels, which become the first axis; None for an image without that axis.
        labels: Values are object ids or classes, 0 is background.
        shards: Lengths of a file, multiples of ``chunks``; None for a file per chunk. Whole shards must be written
            at once, so they are for blocks that are as large.
        name: Name of the image; that of the folder by default.
        overwrite: Remove what is at ``path``.

    Returns:
        The array of zarr, ``(*size)`` or ``(channels, *size)``. It can be pickled.

    Raises:
        DataError: If something is at ``path``, or sizes and types do not fit.

    Example:
        >>> from tempfile import mkdtemp
        >>> array = create_ome_zarr(mkdtemp() + "/cells.ome.zarr", (40, 300, 200), "uint32", labels=True)
        >>> array[8:16, :64, :64] = 1
        >>> array.shape, array.chunks
        ((40, 300, 200), (40, 64, 64))
    """
    import zarr
    from zarr.codecs import ZstdCodec

    path, dtype = Path(path), np.dtype(dtype)
    size = tuple(int(length) for length in size)
    chunks = _chunks(size, chunks, shards is not None)
    _check(size, dtype, spacing, unit, labels, shards, chunks)
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; remove it, or choose another name")
    lead = () if channels is None else (int(channels),)
    names = "c" * len(lead) + "zyx"[-len(size) :]
    ones = (1,) * len(lead)
    steps = [1.0] * len(names) if spacing is None else [*map(float, ones), *map(float, spacing)]
    with _empty_chunks_stored():
        group = zarr.open_group(str(path), mode="w", zarr_format=3)
        array = group.create_array(
            "0",
            shape=lead + size,
            dtype=dtype,
            chunks=ones + chunks,
            shards=None if shards is None else ones + tuple(shards),
            compressors=ZstdCodec(level=1, checksum=True),
            dimension_names=tuple(names),
        )
    axes = [_axis(letter, None if spacing is None else unit) for letter in names]
    image = {
        "name": name or path.name.removesuffix(suffix_of(path) or ""),
        "axes": axes,
        "datasets": [_level("0", steps, [0.0] * len(names))],
    }
    described: dict[str, Any] = {"version": VERSION, "multiscales": [image]}
    if labels:
        described["image-label"] = {"source": {"image": "../../"}} if list_among_labels(path) else {}
    group.attrs["ome"] = described
    return array


def open_for_writing(path: str | Path, level: int = 0) -> Any:
    """Open a level of an image of ``create_ome_zarr`` again, to write more of its blocks.

    Raises:
        DataError: If there is no such level.
    """
    import zarr

    try:
        with _empty_chunks_stored():
            return zarr.open_array(str(Path(path) / str(level)), mode="r+")
    except Exception as error:  # zarr's stores raise their own, unrelated types
        raise DataError(f"{path}: level {level} cannot be opened to be written ({error})") from error


def build_pyramid(
    path: str | Path, smallest: int = 256, progress: Callable[[int, int], None] | None = None
) -> int:
    """Add coarser levels to an image of ``create_ome_zarr``, each of half the size, until one is small.

    Intensities are averaged; of labels, every second is taken. An axis is halved only while its voxels are less than
    twice as long as the shortest, so that they become cubes. Memory holds one block at a time. A level is listed when
    it is whole; former coarser levels are replaced.

    Args:
        path: Folder of the image.
        smallest: The last level is no longer than this along any axis.
        progress: Called with the number of blocks that are done, and of all.

    Returns:
        Number of levels, the finest included.

    Raises:
        DataError: If there is no such image at ``path``, or it cannot be read.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = mkdtemp() + "/slide.ome.zarr"
        >>> create_ome_zarr(path, (700, 900), "uint8")[:] = 7
        >>> build_pyramid(path)
        3
    """
    import zarr

    path = Path(path)
    try:
        group = zarr.open_group(str(path), mode="r+")
        described: dict[str, Any] = dict(group.attrs)["ome"]  # type: ignore[assignment]
        (image,) = described["multiscales"]
        levels = [image["datasets"][0]]
        fine = open_for_writing(path, int(levels[0]["path"]))
    except Exception as error:  # zarr raises its own, unrelated types where there is no group
        raise DataError(f"{path}: no image that create_ome_zarr made ({error})") from error
    labels = "image-label" in described
    names = [axis["name"] for axis in image["axes"]]
    plans = list(_plan(fine.shape, levels[0], names, smallest, labels))
    total, done = sum(_count(shape, fine) for shape, _, _ in plans), 0
    image |= {"type": "nearest" if labels else "mean", "datasets": levels}
    described["multiscales"] = [image]
    group.attrs["ome"] = described
    for number, (shape, factors, level) in enumerate(plans, start=1):
        coarse = _like(group, str(number), shape, fine)
        for place in _blocks(coarse):
            coarse[place] = _coarser(fine, place, factors, labels, path)
            done += 1
            if progress is not None:
                progress(done, total)
        levels.append(level)
        group.attrs["ome"] = described
        fine = coarse
    return len(levels)


def _plan(
    shape: tuple[int, ...], level: dict[str, Any], names: Sequence[str], smallest: int, labels: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]]:
    """Yield shape, factors and description of each coarser level."""
    scale = list(level["coordinateTransformations"][0]["scale"])
    shift = [0.0] * len(names)
    number = 0
    while max(length for length, name in zip(shape, names, strict=True) if name in "zyx") > smallest:
        shortest = min(step for step, length, name in zip(scale, shape, names, strict=True)
                       if name in "zyx" and length > 1)  # fmt: skip
        factors = tuple(
            2 if name in "zyx" and length > 1 and step < 2 * shortest else 1
            for step, length, name in zip(scale, shape, names, strict=True)
        )
        number += 1
        shape = tuple(-(-length // factor) for length, factor in zip(shape, factors, strict=True))
        if not labels:  # the centre of an averaged voxel lies between those that it is made of
            shift = [
                at + (factor - 1) / 2 * step for at, factor, step in zip(shift, factors, scale, strict=True)
            ]
        scale = [step * factor for step, factor in zip(scale, factors, strict=True)]
        yield shape, factors, _level(str(number), scale, shift)


def _coarser(fine: Any, place: Index, factors: Sequence[int], labels: bool, path: Path) -> np.ndarray:
    """Return a block of the next level."""
    source = tuple(
        slice(part.start * factor, min(part.stop * factor, length))
        for part, factor, length in zip(place, factors, fine.shape, strict=True)
    )
    stored = ZarrChunks(fine, str(path), None, {})
    refuse_missing(stored, source, stored.source)
    block = stored.read(source)
    return (
        block[tuple(slice(None, None, factor) for factor in factors)] if labels else mean_of(block, factors)
    )


def mean_of(block: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Return the mean of neighbours in the type of the block; whole numbers are rounded, halves up.

    Args:
        block: Values. Where a length is odd, its last plane counts twice.
        factors: 1 or 2 for each axis.

    Example:
        >>> mean_of(np.array([[1, 2, 250], [2, 2, 255]], np.uint8), (2, 2))
        array([[  2, 253]], dtype=uint8)
    """
    whole = block.dtype.kind in "biu"
    wide = np.float64 if block.dtype.itemsize > 4 or block.dtype.kind == "f" else np.int64
    total: np.ndarray = block.astype(wide)
    for axis, factor in enumerate(factors):
        if factor == 2:
            edge = total.shape[axis] % 2
            total = np.pad(total, [(0, edge * (a == axis)) for a in range(total.ndim)], mode="edge")
            first, second = (
                tuple(
                    slice(start if a == axis else None, None, 2 if a == axis else None)
                    for a in range(total.ndim)
                )
                for start in (0, 1)
            )
            total = total[first] + total[second]
    count = math.prod(factors)
    if wide is np.int64:
        return np.asarray((total + count // 2) // count).astype(block.dtype)
    mean = total / count
    return np.asarray(np.floor(mean + 0.5) if whole else mean).astype(block.dtype)


def list_among_labels(path: Path) -> bool:
    """List a label image at ``IMAGE/labels/NAME`` in its image; return whether there is an image around it.

    Example:
        >>> list_among_labels(Path("cells.ome.zarr"))
        False
    """
    import zarr

    folder, image = path.parent, path.parent.parent
    if folder.name != "labels" or not (image / "zarr.json").exists():
        return False
    group = zarr.open_group(str(folder), mode="a", zarr_format=3)
    attributes: dict[str, Any] = dict(group.attrs)
    described = attributes.get("ome", {"version": VERSION})
    listed = described.get("labels", [])
    # A name that begins with a dot is that of something unfinished.
    if path.name not in listed and not path.name.startswith("."):
        group.attrs["ome"] = {**described, "labels": [*listed, path.name]}
    return True


def _chunks(size: tuple[int, ...], chunks: Sequence[int] | None, in_shards: bool) -> tuple[int, ...]:
    """Return the lengths of chunks, none longer than the image unless shards are multiples of them."""
    if len(size) not in CHUNKS or min(size) < 1:
        raise DataError(f"an image has the size (y, x) or (z, y, x), got {size}")
    given = CHUNKS[len(size)] if chunks is None else tuple(int(length) for length in chunks)
    if len(given) != len(size) or min(given) < 1:
        raise DataError(f"chunks={list(given)}: give {len(size)} lengths in array order, as in 64,64,64")
    return given if in_shards else tuple(map(min, given, size))


def _check(
    size: tuple[int, ...],
    dtype: np.dtype,
    spacing: Sequence[float] | None,
    unit: str,
    labels: bool,
    shards: Sequence[int] | None,
    chunks: tuple[int, ...],
) -> None:
    if dtype.kind not in ("iu" if labels else "biuf"):
        raise DataError(f"{'labels' if labels else 'intensities'} cannot be of type {dtype}")
    if unit not in _UNITS:
        raise DataError(f"unit={unit!r}: write um or mm")
    if spacing is not None and (
        len(spacing) != len(size) or not all(0 < step < math.inf for step in spacing)
    ):
        raise DataError(
            f"spacing={list(spacing)}: give {len(size)} positive numbers in array order, as in 2,0.5,0.5"
        )
    if shards is not None and (
        len(shards) != len(size)
        or any(shard < 1 or shard % chunk for shard, chunk in zip(shards, chunks, strict=True))
    ):
        raise DataError(f"shards={list(shards)} must be multiples of the chunks {list(chunks)}")


@contextmanager
def _empty_chunks_stored() -> Iterator[None]:
    """Let arrays that are opened here store chunks of zeros, too."""
    import zarr

    with zarr.config.set({"array.write_empty_chunks": True}):
        yield


def _axis(name: str, unit: str | None) -> dict[str, str]:
    if name == "c":
        return {"name": "c", "type": "channel"}
    return {"name": name, "type": "space", **({} if unit is None else {"unit": _UNITS[unit]})}


def _level(path: str, scale: Sequence[float], shift: Sequence[float]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": list(scale)}]
    if any(shift):
        steps.append({"type": "translation", "translation": list(shift)})
    return {"path": path, "coordinateTransformations": steps}


def _like(group: Any, name: str, shape: tuple[int, ...], array: Any) -> Any:
    """Create an array that is stored as ``array`` is."""
    with _empty_chunks_stored():
        return group.create_array(
            name,
            shape=shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=array.shards,
            compressors=array.compressors,
            dimension_names=array.metadata.dimension_names,
            overwrite=True,
        )


def _blocks(array: Any) -> Iterator[Index]:
    """Yield the place of each file of an array."""
    whole = (slice(None),) * array.ndim
    return (place for _, place in pieces(whole, array.shape, array.shards or array.chunks))


def _count(shape: Sequence[int], like: Any) -> int:
    return math.prod(
        -(-length // step) for length, step in zip(shape, like.shards or like.chunks, strict=True)
    )

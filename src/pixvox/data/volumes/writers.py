"""Files that are filled region by region, one function per format; each gives a function that writes a block.

Values that lie in one piece are written through a memory map, so that regions may come in any order.
"""

from __future__ import annotations

import gzip
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.regions import Index
from pixvox.data.volumes.formats.hdf5 import SPACING
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.errors import DataError

log = logging.getLogger("pixvox")

Write = Callable[[Index, np.ndarray], None]
"""Takes a region of the spatial axes and its values, ``(channels, *region)``."""

_BIG = 2**32 - 2**25
_OME_TYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")
_NIFTI_TYPES = (*_OME_TYPES, "int64", "uint64")
_UNITS = {"um": ("µm", "micron", 1.0), "mm": ("mm", "mm", 1e3)}  # in OME, in NIfTI, in micrometres


@dataclass(frozen=True)
class Content:
    """What a file is to hold.

    Args:
        size: Lengths of the spatial axes in array order.
        channels: Number of channels; one channel gets no axis of its own.
        dtype: Type of the values.
        spacing: Size of a pixel or voxel per axis in array order, or None when it is unknown.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        labels: True when values are object ids or classes.
        name: Name of the image.
        chunks: Lengths of a chunk per spatial axis, for formats that have them; None for their default.
        shards: Lengths of a file of several chunks, for Zarr.
    """

    size: tuple[int, ...]
    channels: int
    dtype: np.dtype
    spacing: tuple[float, ...] | None = None
    unit: str = "um"
    labels: bool = False
    name: str = "image"
    chunks: tuple[int, ...] | None = None
    shards: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes, channels first when there are several."""
        return self.size if self.channels == 1 else (self.channels, *self.size)

    @property
    def axes(self) -> str:
        """A letter for each axis."""
        return "CZYX"[-len(self.size) :] if self.channels == 1 else "C" + "ZYX"[-len(self.size) :]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def write_zarr(path: Path, content: Content) -> Iterator[Write]:
    """Write OME-Zarr 0.5, its finest level."""
    array = create_ome_zarr(
        path,
        content.size,
        content.dtype,
        content.chunks,
        content.spacing,
        content.unit,
        content.channels if content.channels > 1 else None,
        content.labels,
        content.shards,
        content.name,
    )
    yield _into(array, content)


@contextmanager
def write_hdf5(path: Path, content: Content) -> Iterator[Write]:
    """Write the array ``image`` or ``labels`` of an HDF5 file, compressed, with axes and voxel size as attributes.

    Raises:
        DataError: If h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path}: HDF5 files need h5py: pip install pixvox[hdf5]") from error
    chunks = (1,) * (len(content.shape) - len(content.size)) + (content.chunks or ())
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "labels" if content.labels else "image",
            content.shape,
            content.dtype,
            chunks=chunks if content.chunks else True,
            compression="gzip",
            compression_opts=1,
        )
        for dimension, axis in zip(array.dims, content.axes.lower(), strict=True):
            dimension.label = axis
        if content.spacing is not None:
            array.attrs[SPACING] = [step * _UNITS[content.unit][2] for step in content.spacing]
        yield _into(array, content)


@contextmanager
def write_npy(path: Path, content: Content) -> Iterator[Write]:
    """Write a ``.npy`` file, which keeps neither spacing nor axes."""
    _check_space(path, content)
    if content.spacing is not None:
        log.info("a .npy file keeps no spacing: %s %s is lost", content.spacing, content.unit)
    header = np.lib.format.open_memmap(path, "w+", content.dtype, content.shape)
    yield _mapped(path, content, header.offset)


@contextmanager
def write_tiff(path: Path, content: Content) -> Iterator[Write]:
    """Write an uncompressed OME-TIFF, as BigTIFF where it needs to be.

    Raises:
        DataError: If OME has no such type of values.
    """
    import tifffile

    _check_type("OME-TIFF", content, _OME_TYPES)
    _check_space(path, content)
    metadata: dict[str, Any] = {"axes": content.axes, "Name": content.name}
    resolution: Any = None
    if content.spacing is not None:
        unit, _, micrometres = _UNITS[content.unit]
        for axis, step in zip("ZYX"[-len(content.size) :], content.spacing, strict=True):
            metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": unit}
        resolution = tuple(1e4 / (step * micrometres) for step in content.spacing[:-3:-1])  # x, y per cm
    written: Any = tifffile.imwrite(
        path,
        shape=content.shape,
        dtype=content.dtype,
        ome=True,
        bigtiff=content.nbytes > _BIG,
        photometric="minisblack",
        metadata=metadata,
        resolution=resolution,
        resolutionunit=None if resolution is None else "CENTIMETER",
        returnoffset=True,
    )
    yield _mapped(path, content, written[0])


@contextmanager
def write_nifti(path: Path, content: Content) -> Iterator[Write]:
    """Write NIfTI; ``.nii.gz`` is compressed when it is whole. Channels become the fourth axis.

    Raises:
        DataError: If nibabel is not installed, or NIfTI has no such type of values.
    """
    try:
        import nibabel
    except ImportError as error:
        raise DataError(f"{path}: NIfTI files need nibabel: pip install pixvox[medical]") from error
    _check_type("NIfTI", content, _NIFTI_TYPES)
    _check_space(path, content)
    plain = path.with_name(path.name.removesuffix(".gz"))
    long = max(content.size) > 2**15 - 1
    header: Any = (nibabel.Nifti2Header if long else nibabel.Nifti1Header)()  # type: ignore[no-untyped-call]
    header.set_data_dtype(content.dtype)
    header.set_data_shape(_nifti_shape(content))
    if content.spacing is None:
        log.warning("NIfTI always states a voxel size: 1 mm is written; give --spacing for the true one")
    known = content.spacing or (1.0,) * len(content.size)
    steps = (*known[::-1], 1.0, 1.0)
    header.set_zooms(steps[: len(_nifti_shape(content))])
    header.set_xyzt_units(_UNITS[content.unit][1] if content.spacing else "mm")
    header.set_sform(np.diag([*steps[:3], 1.0]), code="scanner")
    header.set_data_offset(544 if long else 352)
    try:
        with plain.open("wb") as file:
            header.write_to(file)
            file.truncate(header.get_data_offset() + content.nbytes)
        yield _mapped(plain, content, header.get_data_offset())
        if plain != path:
            with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=3) as packed:
                shutil.copyfileobj(source, packed, 2**22)
    finally:
        if plain != path:
            plain.unlink(missing_ok=True)


WRITERS: dict[str, Callable[[Path, Content], AbstractContextManager[Write]]] = {
    ".ome.zarr": write_zarr, ".zarr": write_zarr, ".h5": write_hdf5, ".hdf5": write_hdf5, ".npy": write_npy,
    ".ome.tif": write_tiff, ".ome.tiff": write_tiff, ".tif": write_tiff, ".tiff": write_tiff,
    ".nii.gz": write_nifti, ".nii": write_nifti,
}  # fmt: skip
"""What writes each suffix, longer ones before those that they end with."""


def _into(array: Any, content: Content) -> Write:
    """Write to an array that is stored in chunks."""

    def write(region: Index, block: np.ndarray) -> None:
        if content.channels == 1:
            array[region] = block[0]
        else:
            array[(slice(None), *region)] = block

    return write


def _mapped(path: Path, content: Content, offset: int) -> Write:
    """Write to values that lie in one piece; the file is mapped anew for each block, so that memory stays small."""

    def write(region: Index, block: np.ndarray) -> None:
        values = np.memmap(path, content.dtype, "r+", offset, (content.channels, *content.size))
        values[(slice(None), *region)] = block

    return write


def _nifti_shape(content: Content) -> tuple[int, ...]:
    """Return the lengths of x, y, z and channels: NIfTI stores them in the reverse order of arrays."""
    x, y, *z = content.size[::-1]
    return (x, y, *z) if content.channels == 1 else (x, y, *(z or [1]), content.channels)


def _check_type(kind: str, content: Content, known: tuple[str, ...]) -> None:
    if content.dtype.name not in known:
        raise DataError(
            f"{kind} has no values of type {content.dtype}; it takes {', '.join(known)}: convert them, as in --dtype "
            "float32, or write .zarr"
        )


def _check_space(path: Path, content: Content) -> None:
    """Refuse what the disk has no room for: a full disk under a memory map ends the process."""
    free = shutil.disk_usage(path.parent).free
    if free < content.nbytes:
        raise DataError(
            f"{path.parent} has {free / 2**30:.1f} GiB left, uncompressed values take {content.nbytes / 2**30:.1f}; "
            "make room, or write .zarr, which is compressed"
        )

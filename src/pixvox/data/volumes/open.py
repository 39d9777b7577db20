"""Open an image or volume of any format without reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixvox.data.images import NIFTI, NUMPY, TIFF, ZARR
from pixvox.data.readers.axes import find_layout
from pixvox.data.volumes.formats.stored_array import StoredArray
from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError

HDF5 = (".hdf5", ".h5", ".hdf")
_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def open_volume(
    path_or_array: Any,
    spatial_dims: int | None = None,
    axes: str | None = None,
    time: int | None = None,
    level: int = 0,
    dataset: str | None = None,
    allow_missing_chunks: bool = False,
) -> Volume:
    """Open an image, slide or volume; its regions are read when they are asked for.

    Args:
        path_or_array: TIFF, Zarr or OME-Zarr (any array or group of one), NIfTI, HDF5, npy, or a folder with a TIFF
            file per plane; or an array of NumPy, PyTorch, zarr or h5py.
        spatial_dims: 2 or 3; found from the axes when None.
        axes: A letter for each stored axis in its order, out of T, C, Z, Y, X. What is given here wins over what
            the file says; without either the lengths decide, as in ``read_image``.
        time: Time point, from 0, where there are several.
        level: Level of a pyramid (OME-Zarr, TIFF), 0 is the finest.
        dataset: Name of the array in an HDF5 file; by default its only one.
        allow_missing_chunks: Accept places that were never written; ``Volume.missing`` marks them.

    Raises:
        DataError: If the file is missing, damaged or cut off, its axes do not fit, or an option does not.

    Example:
        >>> import numpy as np
        >>> movie = np.zeros((3, 2, 5, 6, 7), np.uint16)
        >>> open_volume(movie, axes="TCZYX", time=2)
        Volume('array', size=(5, 6, 7), channels=2, dtype=uint16, spacing=None, unit='um', chunks=None)
    """
    if isinstance(path_or_array, (str, Path)):
        source = str(path_or_array)
        array = _open_path(Path(path_or_array), level, dataset)
    else:
        array, source = _take(path_or_array)
        _refuse(source, level=level, dataset=dataset)
    header = array.header
    if axes is not None:
        _check_letters(axes, source)
    layout = find_layout(
        header.shape, axes or header.axes, spatial_dims, source, time=time, stated=axes is not None
    )
    return Volume(array, layout, source, allow_missing_chunks)


def open_level(volume: Volume, level: int) -> Volume:
    """Open another level of the pyramid that a volume belongs to; its axes, and time point, are the same.

    Args:
        volume: A volume that was opened from a path.
        level: Level of the file, 0 is the finest.

    Raises:
        DataError: If there is no such level, or the volume is no file.
    """
    array = _open_path(Path(volume.source), level, None)
    if len(array.header.shape) != len(volume.array.header.shape):
        raise DataError(f"{volume.source}: level {level} has other axes than the one that was opened")
    return Volume(array, volume.layout, volume.source, volume.allow_missing_chunks)


def volume_suffixes() -> tuple[str, ...]:
    """Return the suffixes of files and folders that ``open_volume`` opens, longest first."""
    return tuple(sorted(TIFF + ZARR + NIFTI + HDF5 + NUMPY, key=len, reverse=True))


def _open_path(path: Path, level: int, dataset: str | None) -> StoredArray:
    name = path.name.lower()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not name.endswith(HDF5):
        _refuse(str(path), dataset=dataset)
    if name.endswith(ZARR) or any((path / file).exists() for file in _ZARR_FILES):
        from pixvox.data.volumes.formats.zarr_array import open_zarr_path

        return open_zarr_path(path, level)
    if path.is_dir():
        from pixvox.data.volumes.formats.planes import Planes

        _refuse(str(path), level=level)
        return Planes(path)
    if name.endswith(TIFF):
        from pixvox.data.volumes.formats.tiff import open_tiff

        return open_tiff(path, level)
    _refuse(str(path), level=level)
    if name.endswith(NIFTI):
        from pixvox.data.volumes.formats.nifti import NiftiProxy

        return NiftiProxy(path)
    if name.endswith(HDF5):
        from pixvox.data.volumes.formats.hdf5 import Hdf5Dataset

        return Hdf5Dataset(path, dataset)
    if name.endswith(NUMPY):
        from pixvox.data.volumes.formats.mapped import open_npy

        return open_npy(path)
    raise DataError(
        f"{path}: cannot be opened region by region; such formats are {', '.join(volume_suffixes())}"
    )


def _take(given: Any) -> tuple[StoredArray, str]:
    """Return an array that a program has opened, and what it is called in messages."""
    home = type(given).__module__.partition(".")[0]
    if home == "zarr" and hasattr(given, "store_path") and hasattr(given, "chunks"):
        from pixvox.data.volumes.formats.zarr_array import from_zarr

        return from_zarr(given), str(given.store_path)
    if home == "h5py":
        from pixvox.data.volumes.formats.hdf5 import from_hdf5

        return from_hdf5(given), f"{given.file.filename}:{given.name}"
    if hasattr(given, "shape") and hasattr(given, "dtype") and hasattr(given, "__getitem__"):
        from pixvox.data.volumes.formats.memory import InMemory

        return InMemory(given), "array"
    raise DataError(
        f"a volume is a path or an array (NumPy, PyTorch, zarr, h5py), this is a {type(given).__name__}"
    )


def _refuse(source: str, level: int = 0, dataset: str | None = None) -> None:
    """Refuse options that this format has no use for."""
    if level != 0:
        raise DataError(f"{source}: level={level}, but only OME-Zarr and TIFF have levels")
    if dataset is not None:
        raise DataError(f"{source}: dataset={dataset!r} names an array of an HDF5 file, and this is none")


def _check_letters(axes: str, source: str) -> None:
    letters = axes.upper()
    if set(letters) - set("TCZYX") or len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters):
        raise DataError(
            f"{source}: axes={axes!r}: write a letter for each stored axis in its order, out of T, C, Z, Y, X, as in "
            '"ZCYX"; Y and X are always there'
        )

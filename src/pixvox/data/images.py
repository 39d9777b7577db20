"""The one reader of images and label maps: every file comes in through here, under the same rules.

- Pictures are turned upright as EXIF says; image and label map alike.
- Intensities keep their range: a 16-bit file reads as 16 bit.
- Alpha is dropped, palettes and CMYK become RGB; then ``channels`` decides: as given, ``"rgb"`` or
``"grey"``. - Spacing comes from ImageJ, OME, NIfTI and Zarr metadata where it is stated.
- A file that is damaged, cut off, or larger than a stated limit is an error that names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pixvox.data.readers.axes import in_array_order
from pixvox.data.readers.raw_array import RawArray, channels_first, missing_first
from pixvox.errors import DataError

Channels = Literal["rgb", "grey"]

MAX_PIXELS = 200_000_000
"""Pixels of one picture or page that are decoded without asking: a picture of 1 kB can claim to be larger."""

RASTER = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
TIFF = (".ome.tiff", ".ome.tif", ".tiff", ".tif", ".lsm")
ZARR = (".ome.zarr", ".zarr")
NIFTI = (".nii.gz", ".nii")
NUMPY = (".npy",)


@dataclass(frozen=True)
class ImageFile:
    """An image as read.

    Args:
        data: Values ``(channels, *spatial)`` in the type of the file.
        spacing: Size of a pixel or voxel per axis in array order, or None when the file does not say.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        missing: True where values are not stored, ``(*spatial)``; None when all are.
    """

    data: np.ndarray
    spacing: tuple[float, ...] | None
    unit: str
    missing: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Lengths of the spatial axes in array order."""
        return tuple(self.data.shape[1:])


def supported_suffixes() -> tuple[str, ...]:
    """Return the suffixes that can be read, longest first."""
    return tuple(sorted(RASTER + TIFF + ZARR + NIFTI + NUMPY, key=len, reverse=True))


def suffix_of(path: str | Path) -> str | None:
    """Return the supported suffix of a name, double ones whole, or None.

    Example:
        >>> suffix_of("brain.NII.gz"), suffix_of("notes.txt")
        ('.nii.gz', None)
    """
    name = Path(path).name.lower()
    return next((suffix for suffix in supported_suffixes() if name.endswith(suffix)), None)


def list_images(folder: Path) -> dict[str, Path]:
    """Return the images below ``folder`` by their path without suffix, sorted; hidden files are left out.

    Links to folders are followed, each target once and none that leads back up.

    Raises:
        DataError: If two files differ only in their suffix.
    """
    found: dict[str, Path] = {}
    for path in sorted(_files(folder)):
        suffix = suffix_of(path)
        if suffix is None:
            continue
        name = path.relative_to(folder).as_posix()[: -len(suffix)]
        if name in found:
            raise DataError(f"{found[name]} and {path} have the same name; keep one of them")
        found[name] = path
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Yield files and arrays, also those behind links to folders; each such folder is entered once."""
    entered = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        arrays = [name for name in folders if name.lower().endswith(ZARR)]
        below = sorted(name for name in folders if name not in arrays and not name.startswith("."))
        folders[:] = [name for name in below if _may_enter(Path(root, name), entered)]
        yield from (Path(root, name) for name in (*files, *arrays) if not name.startswith("."))


def _may_enter(folder: Path, entered: set[str]) -> bool:
    """Tell whether a folder is no link in circles, and note where a link leads to."""
    if not folder.is_symlink():
        return True
    target = os.path.realpath(folder)
    if target in entered or Path(os.path.realpath(folder.parent)).is_relative_to(target):
        return False
    entered.add(target)
    return True


def read_image(
    path: str | Path,
    spatial_dims: int | None = None,
    channels: Channels | None = None,
    max_pixels: int = MAX_PIXELS,
    allow_missing_chunks: bool = False,
) -> ImageFile:
    """Read an image or volume.

    Args:
        path: JPEG, PNG, TIFF, Zarr (a folder), NIfTI or npy.
        spatial_dims: 2 or 3; found from the axes when None.
        channels: ``"rgb"`` or ``"grey"`` to convert, None for as given (without alpha).
        max_pixels: Limit on the pixels of a picture or page, checked before decoding.
        allow_missing_chunks: Accept Zarr arrays with chunks that were never written; their places are marked.

    Raises:
        DataError: If the file is missing, damaged, too large, or its axes do not fit.
    """
    path = Path(path)
    raw = _read(path, max_pixels, allow_missing_chunks, keep_palette=False)
    data, spatial = channels_first(raw, spatial_dims, str(path))
    if data.dtype.kind not in "biuf":
        raise DataError(f"{path}: values of type {data.dtype} are no intensities; store them as numbers")
    if data.size == 0:
        raise DataError(f"{path}: shape {raw.data.shape} holds no pixel; export the image again")
    if suffix_of(path) in RASTER + TIFF and data.dtype == np.uint8 and data.shape[0] in (2, 4):
        data = _without_alpha(data, path, raw)
    missing = missing_first(raw, spatial_dims, str(path))
    return ImageFile(
        convert_channels(data, channels, str(path)), in_array_order(raw.spacing, spatial), raw.unit, missing
    )


def read_labels(
    path: str | Path,
    spatial_dims: int | None = None,
    max_pixels: int = MAX_PIXELS,
    allow_missing_chunks: bool = False,
) -> np.ndarray:
    """Read a label map ``(*spatial)`` as integers; palette pictures give their indices.

    Raises:
        DataError: As ``read_label_map``.
    """
    return read_label_map(path, spatial_dims, max_pixels, allow_missing_chunks)[0]


def read_label_map(
    path: str | Path,
    spatial_dims: int | None = None,
    max_pixels: int = MAX_PIXELS,
    allow_missing_chunks: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a label map ``(*spatial)`` as integers, and where its values are not stored (None when all are).

    Raises:
        DataError: If the file is missing or damaged, or if its values are not one integer per pixel.
    """
    path = Path(path)
    raw = _read(path, max_pixels, allow_missing_chunks, keep_palette=True)
    data, _ = channels_first(raw, spatial_dims, str(path))
    if data.size == 0:
        raise DataError(f"{path}: shape {raw.data.shape} holds no pixel; export the label map again")
    if data.dtype.kind not in "biuf":
        raise DataError(f"{path}: values of type {data.dtype} are no labels; store whole numbers")
    if not all(np.array_equal(data[0], channel) for channel in data[1:3]):
        raise DataError(
            f"{path}: a label map needs one channel of class or object numbers, this has {data.shape[0]} "
            f"different ones; save colours as a palette PNG or as numbers"
        )
    labels = data[0]
    if labels.dtype.kind == "f":
        whole = np.rint(labels)
        if not np.array_equal(whole, labels):
            raise DataError(f"{path}: labels must be whole numbers, found {labels[whole != labels].flat[0]}")
        labels = whole.astype(np.int64)
    labels = np.asarray(labels.astype(np.uint8) if labels.dtype == bool else labels)
    return labels, missing_first(raw, spatial_dims, str(path))


def convert_channels(data: np.ndarray, channels: Channels | None, source: str) -> np.ndarray:
    """Apply the channel rule to ``(channels, *spatial)``: grey is repeated to RGB, RGB is weighted to grey.

    Raises:
        DataError: If there is no rule for the number of channels.
    """
    count = data.shape[0]
    if channels is None or (channels == "rgb" and count == 3) or (channels == "grey" and count == 1):
        return data
    if channels == "rgb" and count == 1:
        return np.repeat(data, 3, axis=0)
    if channels == "grey" and count == 3:
        grey = np.tensordot(np.array([0.299, 0.587, 0.114]), data, axes=1)  # luma of ITU-R BT.601
        if data.dtype.kind in "iu":
            grey = np.rint(grey)
        return np.asarray(grey.astype(data.dtype)[None])
    if channels not in ("rgb", "grey"):
        raise DataError(f"channels must be 'rgb', 'grey' or None (as given), got {channels!r}")
    raise DataError(f"{source}: {count} channels cannot become {channels}; leave channels unset to keep them")


def _without_alpha(data: np.ndarray, path: Path, raw: RawArray) -> np.ndarray:
    """Drop the last channel of grey + alpha and RGB + alpha pictures; separate channels are kept."""
    if suffix_of(path) in TIFF and not (raw.axes or "").endswith("S"):
        return data
    return data[:-1]


def _read(path: Path, max_pixels: int, allow_missing_chunks: bool, keep_palette: bool) -> RawArray:
    suffix = suffix_of(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if suffix is None:
        raise DataError(f"{path}: no reader for this suffix; supported are {', '.join(supported_suffixes())}")
    if suffix in RASTER:
        from pixvox.data.readers.raster import read_raster

        return read_raster(path, max_pixels, keep_palette)
    if suffix in TIFF:
        from pixvox.data.readers.tiff import read_tiff

        return read_tiff(path, max_pixels, keep_palette)
    if suffix in ZARR:
        from pixvox.data.readers.zarr_array import read_zarr

        return read_zarr(path, allow_missing_chunks)
    if suffix in NIFTI:
        from pixvox.data.readers.nifti import read_nifti

        return read_nifti(path)
    from pixvox.data.readers.npy import read_npy

    return read_npy(path)

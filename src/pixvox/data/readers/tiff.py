"""TIFF, plain, ImageJ and OME, through tifffile, with a check that the file is whole."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.raw_array import RawArray
from pixvox.errors import DataError

_MICROMETRES = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "\\u00b5m": 1.0, "nm": 1e-3,
                "mm": 1e3, "cm": 1e4}  # fmt: skip


def read_tiff(path: Path, max_pixels: int, keep_palette: bool) -> RawArray:
    """Read the first series of a TIFF file.

    A file that was cut off can read as fewer planes without an error, so the chain of pages is followed
    first.

    Args:
        path: The file.
        max_pixels: Limit on the elements of one page, unless the file is tiled.
        keep_palette: Return palette indices (label maps) instead of colours (images).

    Raises:
        DataError: If the file is damaged, cut off, or larger than the limit.
    """
    import tifffile

    pages = check_whole(path)
    try:
        with quiet_tifffile(), tifffile.TiffFile(path) as file:
            series = file.series[0]
            page = file.pages.first
            pixels = page.imagelength * page.imagewidth
            if pixels > max_pixels and not page.is_tiled:
                raise DataError(
                    f"{path}: pages of {pixels} pixels are more than max_pixels={max_pixels}; raise "
                    f"max_pixels if the file is sound, or store it as Zarr or tiled TIFF"
                )
            for held in series.pages:
                check_lengths(path, held)
            check_shape(path, file, series, pages)
            data = np.asarray(series.asarray())
            axes = series.axes
            spacing = spacing_of(file, page)
            colours = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                data = inverted(data)
    except DataError:
        raise
    except Exception as error:  # tifffile and its codecs raise their own, unrelated types
        raise DataError(f"{path}: the TIFF is damaged or cut off ({error})") from error
    if data.dtype == bool:
        data = data.astype(np.uint8)
    indexed = colours is not None and keep_palette
    if colours is not None and not keep_palette:
        if data.dtype.kind not in "iu" or int(data.max(initial=0)) >= colours.shape[1]:
            raise DataError(
                f"{path}: the palette does not fit the values of type {data.dtype}; save it as RGB"
            )
        data, axes = (colours.T[data] >> 8).astype(np.uint8), axes + "S"
    return RawArray(data, axes, spacing, indexed=indexed)


def check_whole(path: Path) -> int:
    """Follow the chain of pages to its end; return the number of pages.

    Raises:
        DataError: If it leads out of the file, as it does when the file was cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        big = order is not None and len(head) == 16 and struct.unpack(order + "H", head[2:4])[0] == 43
        if order is None or len(head) < 8 or (head[2:4] in (b"+\0", b"\0+") and not big):
            state = "is empty" if size == 0 else "is not a TIFF file"
            raise DataError(f"{path} {state}; copy it again from its source")
        count_format, entry, offset_format = ("Q", 20, "Q") if big else ("H", 12, "I")
        count_size, offset_size = struct.calcsize(count_format), struct.calcsize(offset_format)
        start = 8 if big else 4
        offset = struct.unpack(order + offset_format, head[start : start + offset_size])[0]
        pages, seen = 0, set()
        while offset:
            if offset in seen or offset + count_size > size:
                raise _cut_off(path, pages, size)
            seen.add(offset)
            file.seek(offset)
            entries = struct.unpack(order + count_format, file.read(count_size))[0]
            link = offset + count_size + entries * entry
            if link + offset_size > size:
                raise _cut_off(path, pages, size)
            file.seek(link)
            offset = struct.unpack(order + offset_format, file.read(offset_size))[0]
            pages += 1
    return pages


def _cut_off(path: Path, pages: int, size: int) -> DataError:
    return DataError(
        f"{path}: the file is damaged or cut off: after {pages} pages the next lies outside its {size} "
        f"bytes; copy it again from its source"
    )


def check_lengths(path: Path, page: Any) -> None:
    """Refuse a page with strips or tiles that claim to be longer than the file: they would be given that much memory.

    Raises:
        DataError: If there is one.
    """
    size = path.stat().st_size
    longest = max(page.databytecounts, default=0) if page is not None else 0
    if longest > size:
        raise DataError(
            f"{path}: the file is damaged or cut off: a strip or tile claims {longest} bytes, the file has {size}; "
            f"copy it again from its source"
        )


def check_shape(path: Path, file: Any, series: Any, pages: int) -> None:
    """Compare what the description promises with what the pages hold.

    Args:
        path: For the message.
        file: As opened by tifffile.
        series: Its first series.
        pages: Number of pages in the chain.

    Raises:
        DataError: If pages are missing.
    """
    promised = None
    if file.is_shaped and file.shaped_metadata:
        promised = file.shaped_metadata[0].get("shape")
    elif file.is_imagej and file.imagej_metadata:
        planes = file.imagej_metadata.get("images", 1)
        promised = None if int(np.prod(series.shape[:-2])) >= planes else (planes, *series.shape[-2:])
    if promised is not None and int(np.prod(promised)) != int(np.prod(series.shape)):
        raise DataError(
            f"{path}: its description promises shape {tuple(promised)}, but it reads as "
            f"{tuple(series.shape)} from {pages} pages; the file is cut off, copy it again from its source"
        )


def inverted(values: np.ndarray) -> np.ndarray:
    """Return values of a file that stores white as 0 with black as 0.

    Example:
        >>> inverted(np.array([0, 250], np.uint8))
        array([255,   5], dtype=uint8)
    """
    return ~values if values.dtype == bool else np.iinfo(values.dtype).max - values


def spacing_of(file: Any, page: Any) -> dict[str, float]:
    """Return the pixel size by axis in micrometres, where ImageJ's or OME's metadata state a unit."""
    if file.is_imagej and file.imagej_metadata:
        metadata = file.imagej_metadata
        scale = _MICROMETRES.get(str(metadata.get("unit", "")).strip())
        if scale is None:
            return {}
        spacing = {}
        for axis, tag in (("X", "XResolution"), ("Y", "YResolution")):
            if tag in page.tags:
                numerator, denominator = page.tags[tag].value
                if numerator:
                    spacing[axis] = scale * denominator / numerator
        if metadata.get("spacing"):
            spacing["Z"] = scale * abs(float(metadata["spacing"]))
        return spacing
    return _ome_spacing(file.ome_metadata) if file.is_ome and file.ome_metadata else {}


def _ome_spacing(xml: str) -> dict[str, float]:
    import tifffile

    image = tifffile.xml2dict(xml).get("OME", {}).get("Image", {})
    image = image[0] if isinstance(image, list) else image
    pixels = image.get("Pixels", {})
    spacing = {}
    for axis in "XYZ":
        scale = _MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        value = pixels.get(f"PhysicalSize{axis}")
        if value and scale:
            spacing[axis] = float(value) * scale
    return spacing


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Keep tifffile from logging what is raised as an error here."""
    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)

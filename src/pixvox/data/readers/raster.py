"""JPEG, PNG and other pictures, through Pillow."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from pixvox.data.readers.raw_array import RawArray
from pixvox.errors import DataError

_LIMIT_LOCK = threading.Lock()
# Modes whose values are intensities as they stand; others are converted to the mode named.
_AS_STORED = {"L", "RGB", "RGBA", "LA", "F", "I", "I;16", "I;16B", "I;16L"}
_CONVERTED = {
    "1": "L",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
    "PA": "RGBA",
    "RGBX": "RGB",
}


def read_raster(path: Path, max_pixels: int, keep_palette: bool) -> RawArray:
    """Decode a picture, turned upright as its EXIF orientation says.

    Args:
        path: The file.
        max_pixels: Limit on height times width, checked before anything is decoded.
        keep_palette: Return palette indices (label maps) instead of colours (images).

    Raises:
        DataError: If the file is damaged, cut off, or larger than the limit.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _LIMIT_LOCK:  # Pillow's own limit is global and cannot be passed; ours follows at once
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with picture:
            _check_limit(path, picture.size, max_pixels)
            picture.load()  # a file that was cut off fails here
            upright = ImageOps.exif_transpose(picture)
            indexed = upright.mode == "P" and keep_palette
            if upright.mode == "P" and not keep_palette:
                upright = upright.convert("RGB")
            elif upright.mode in _CONVERTED:
                upright = upright.convert(_CONVERTED[upright.mode])
            elif upright.mode not in _AS_STORED and not indexed:
                raise DataError(
                    f"{path}: pictures of mode {upright.mode} are unknown; save it as RGB or grey"
                )
            data = np.asarray(upright)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: the picture is damaged or cut off ({_reason(path, error)}); "
            f"copy it again from its source"
        ) from error
    if data.dtype == np.int32 and data.size and data.min() >= 0 and data.max() <= 65535:
        data = data.astype(np.uint16)  # how older versions of Pillow open 16-bit PNG
    return RawArray(data, "YX" if data.ndim == 2 else "YXC", {}, indexed=indexed)


def _reason(path: Path, error: Exception) -> str:
    return "the file is empty" if path.is_file() and path.stat().st_size == 0 else str(error)


def _check_limit(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise DataError(
            f"{path}: {width} x {height} pixels are more than max_pixels={max_pixels}; raise max_pixels if "
            f"the file is sound, or store it as Zarr or tiled TIFF"
        )

"""From a file to the tensor, spacing and intensity range of a sample, under the options of one dataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixvox.data.images import MAX_PIXELS, Channels, read_image, suffix_of
from pixvox.data.sample import Sample, intensity_range
from pixvox.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSource:
    """Reads the images of a dataset, all in one way.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels that every image must have after conversion; None to take what comes.
        channels: ``"rgb"`` or ``"grey"`` to convert, None for as given.
        spacing: Size of a pixel or voxel per axis in array order, for files that do not say.
        unit: Unit of ``spacing``.
        percentiles: Low and high percentile of ``Sample.intensity_range``.
        max_pixels: Limit on the pixels of a picture or page.
        allow_missing_chunks: Accept Zarr arrays with chunks that were never written.
    """

    spatial_dims: int
    in_channels: int | None = None
    channels: Channels | None = None
    spacing: tuple[float, ...] | None = None
    unit: str = "um"
    percentiles: tuple[float, float] = (1.0, 99.8)
    max_pixels: int = MAX_PIXELS
    allow_missing_chunks: bool = False

    def read(self, path: Path, index: int) -> tuple[Sample, Tensor | None]:
        """Return the image without annotations, and where values are missing or not finite (None when nowhere).

        Raises:
            DataError: If the file cannot be used, or its channels are not those of the dataset.
        """
        file = read_image(path, self.spatial_dims, self.channels, self.max_pixels, self.allow_missing_chunks)
        if self.in_channels is not None and file.data.shape[0] != self.in_channels:
            raise DataError(
                f"{path} has {file.data.shape[0]} channels, the first image of the dataset has "
                f"{self.in_channels}; set channels=rgb or channels=grey to convert all"
            )
        values, invalid = finite_values(file.data, path)
        if file.missing is not None:
            logger.warning(
                "%s: %.1f %% of it is not stored; that is ignored", path, 100 * file.missing.mean()
            )
            invalid = file.missing if invalid is None else invalid | file.missing
        limits = intensity_range(values, self.percentiles)
        if bool((limits[:, 0] == limits[:, 1]).all()) and values.min() == values.max():
            logger.warning("%s is constant (%s everywhere)", path, values.flat[0])
        found = file.spacing is not None
        sample = Sample(
            image=torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)),
            spacing=file.spacing if found else self.spacing,
            unit=file.unit if found else self.unit,
            source=str(path),
            index=index,
            intensity_range=limits,
        )
        return sample, torch.from_numpy(invalid) if invalid is not None else None


def finite_values(data: np.ndarray, path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Replace NaN and infinite values by the lowest finite one of the channel; return where they were, if anywhere.

    Args:
        data: Values ``(channels, *spatial)``.
        path: Where they come from, for messages.

    Raises:
        DataError: If there is no finite one.
    """
    if data.dtype.kind != "f":
        return data, None
    finite = np.isfinite(data)
    if finite.all():
        return data, None
    if not finite.any():
        raise DataError(f"{path} has no finite value")
    logger.warning(
        "%s: %d of %d values are NaN or infinite; they are ignored", path, (~finite).sum(), data.size
    )
    cleaned = data.copy()
    for channel, good in zip(cleaned, finite, strict=True):
        channel[~good] = channel[good].min() if good.any() else data[finite].min()
    return cleaned, ~finite.all(axis=0)


def common_channels(paths: Sequence[Path], spatial_dims: int, max_pixels: int = MAX_PIXELS) -> int:
    """Return the channels of a dataset: 3 as soon as one picture has colours, else those of the first file.

    Pictures are looked at by their headers alone, at most 500 evenly spaced ones.
    """
    step = max(1, len(paths) // 500)
    pictures = [
        path for path in paths[::step] if suffix_of(path) in (".png", ".jpg", ".jpeg", ".bmp", ".webp")
    ]
    if any(_is_colour(path) for path in pictures):
        return 3
    return int(
        read_image(paths[0], spatial_dims, max_pixels=max_pixels, allow_missing_chunks=True).data.shape[0]
    )


def _is_colour(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB", "HSV")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return False  # reading it will tell

"""Whatever a user calls an image becomes a sample: files, folders, arrays, tensors, pictures, Zarr arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixvox.data.image_source import ImageSource
from pixvox.data.images import convert_channels, list_images, suffix_of
from pixvox.data.sample import Sample, intensity_range
from pixvox.errors import DataError


def is_many(inputs: Any, spatial_dims: int) -> bool:
    """Tell whether an input stands for several images: a folder, a list, or a batch of tensors."""
    if isinstance(inputs, str | Path):
        path = Path(inputs)
        return path.is_dir() and suffix_of(path) is None
    if isinstance(inputs, Tensor):
        return inputs.ndim == spatial_dims + 2
    return isinstance(inputs, list | tuple | Iterator)


def samples(inputs: Any, spatial_dims: int, in_channels: int) -> Iterator[Sample]:
    """Yield a sample per image, one at a time, so that a folder of any length needs the memory of one image.

    Args:
        inputs: Path, folder, list or iterator of inputs, PIL image, array, tensor, or Zarr array.
        spatial_dims: 2 or 3.
        in_channels: Channels that the model takes; grey becomes RGB and RGB grey where that is what it needs.

    Raises:
        DataError: If an input cannot be read, or has other dimensions or channels.
    """
    if is_many(inputs, spatial_dims):
        yield from _each(inputs, spatial_dims, in_channels)
        return
    if isinstance(inputs, str | Path):
        source = str(inputs)
        sample, _ = ImageSource(spatial_dims).read(Path(inputs), 0)
        values = sample.image.numpy()
        yield _sample(values, in_channels, source, sample.spacing, sample.unit)
        return
    if isinstance(inputs, Tensor):
        if inputs.ndim != spatial_dims + 1:
            raise DataError(
                f"a tensor must be (channels, {_axes(spatial_dims)}), with or without a batch axis before; "
                f"got {tuple(inputs.shape)}"
            )
        yield _sample(inputs.detach().cpu().float().numpy(), in_channels, "tensor", None)
        return
    if hasattr(inputs, "getexif"):
        inputs = _picture(inputs)
    attributes = getattr(inputs, "attrs", None)
    spacing = dict(attributes).get("spacing") if attributes is not None else None
    if not hasattr(inputs, "__array__") and not hasattr(inputs, "chunks"):
        raise DataError(
            f"an input of type {type(inputs).__name__} is no image; give a path, a folder, a list, an array, "
            "a tensor, a PIL image or a Zarr array"
        )
    array = channels_first(np.asarray(inputs[...]), spatial_dims, in_channels)
    known = tuple(float(step) for step in spacing) if spacing and len(spacing) == spatial_dims else None
    yield _sample(array, in_channels, "array", known)


def _each(inputs: Any, spatial_dims: int, in_channels: int) -> Iterator[Sample]:
    """Yield the samples of a folder, a batch or a list."""
    if isinstance(inputs, str | Path):
        files = list_images(Path(inputs))
        if not files:
            raise DataError(f"{inputs}: no image was found in this folder")
        inputs = files.values()
    for i, item in enumerate(inputs):
        for sample in samples(item, spatial_dims, in_channels):
            if not isinstance(item, str | Path):
                sample.source = f"{sample.source}[{i}]"
            sample.index = i
            yield sample


def channels_first(array: np.ndarray, spatial_dims: int, in_channels: int) -> np.ndarray:
    """Return an array as ``(channels, *spatial)``.

    The rule: ``(*spatial)`` has one channel; with one axis more, the last axis is the channels if it is as
    long as the model's channels (or 1, 3 or 4 long, for pictures), else the first one.

    Raises:
        DataError: If there are too few or too many axes.

    Example:
        >>> shapes = ((8, 9), (8, 9, 3), (3, 8, 9))
        >>> [channels_first(np.zeros(shape), 2, in_channels=3).shape for shape in shapes]
        [(1, 8, 9), (3, 8, 9), (3, 8, 9)]
    """
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim == spatial_dims:
        return array[None]
    if array.ndim != spatial_dims + 1:
        spatial = _axes(spatial_dims)
        raise DataError(
            f"this model takes {'images' if spatial_dims == 2 else 'volumes'}: an array ({spatial}), "
            f"({spatial}, channels) or (channels, {spatial}); got {array.ndim} axes, shape {array.shape}"
        )
    if array.shape[-1] == in_channels or (array.shape[0] != in_channels and array.shape[-1] in (1, 3, 4)):
        array = np.moveaxis(array, -1, 0)
    return array[:3] if array.shape[0] == 4 and in_channels in (1, 3) else array


def _picture(picture: Any) -> np.ndarray:
    """Return a PIL image as an array: upright, palettes and CMYK as RGB, without alpha."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "1" or upright.mode == "LA":
        upright = upright.convert("L")
    elif upright.mode not in ("L", "RGB", "F") and not upright.mode.startswith("I"):
        upright = upright.convert("RGB")
    return np.asarray(upright)


def _sample(
    values: np.ndarray, in_channels: int, source: str, spacing: tuple[float, ...] | None, unit: str = "um"
) -> Sample:
    """Bring the channels to what the model takes, and note the range of the full image."""
    if values.size == 0:
        raise DataError(f"{source} has shape {values.shape}: there is nothing in it")
    if values.dtype.kind not in "iufb":
        raise DataError(f"{source}: values of type {values.dtype} are no intensities")
    values = model_channels(values, in_channels, source)
    values = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        lowest = values[finite].min() if finite.any() else 0.0
        values = np.where(finite, values, np.float32(lowest))
    return Sample(
        image=torch.from_numpy(values),
        spacing=spacing,
        unit=unit,
        source=source,
        intensity_range=intensity_range(values),
    )


def model_channels(values: np.ndarray, in_channels: int, source: str) -> np.ndarray:
    """Return ``(channels, *spatial)`` with the channels that a model takes: grey as RGB, RGB as grey.

    Raises:
        DataError: If the channels are neither the model's, nor grey or RGB.
    """
    if values.shape[0] == in_channels:
        return values
    if in_channels not in (1, 3) or values.shape[0] not in (1, 3):
        raise DataError(
            f"{source} has {values.shape[0]} channels, this model takes {in_channels}; "
            "only grey and RGB are converted into each other"
        )
    return convert_channels(values, "grey" if in_channels == 1 else "rgb", source)


def _axes(spatial_dims: int) -> str:
    return ", ".join(("depth", "height", "width")[-spatial_dims:])

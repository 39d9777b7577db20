"""NIfTI volumes, through nibabel (an extra)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.raw_array import RawArray
from pixvox.errors import DataError


@dataclass(frozen=True)
class NiftiFacts:
    """What the header of a NIfTI file tells.

    Args:
        shape: Lengths of the axes as stored: x, y, z and further ones.
        dtype: Type of the stored values, with their byte order.
        scaled: True when stored values are multiplied or shifted to become intensities.
        axes: A letter per axis; Q for those without a name.
        spacing: Size of a voxel by axis letter, in millimetres.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    scaled: bool
    axes: str
    spacing: dict[str, float]


def read_nifti(path: Path) -> RawArray:
    """Read a volume; its axes x, y, z become z, y, x, its voxels keep their order and its spacing is in mm.

    Raises:
        DataError: If nibabel is not installed, or the file is damaged.
    """
    image = open_nifti_image(path)
    facts = facts_of(image)
    try:
        data = image.get_fdata(dtype=np.float32) if facts.scaled else np.asarray(image.dataobj)
    except Exception as error:  # nibabel and gzip raise their own, unrelated types
        raise _damaged(path, error) from error
    return RawArray(data, facts.axes, facts.spacing, unit="mm")


def open_nifti_image(path: Path) -> Any:
    """Return nibabel's image, whose values stay on disk.

    Raises:
        DataError: If nibabel is not installed, or the file is damaged.
    """
    try:
        import nibabel
    except ImportError as error:
        raise DataError(f"{path}: NIfTI files need nibabel: pip install pixvox[medical]") from error
    try:
        image = nibabel.load(path)
        facts_of(image)
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    return image


def facts_of(image: Any) -> NiftiFacts:
    """Return what the header of nibabel's image tells."""
    header, values = image.header, image.dataobj
    scaled = values.slope != 1.0 or values.inter != 0.0  # the header of a loaded image has forgotten them
    shape = tuple(int(length) for length in image.shape)
    axes = "XYZC"[: len(shape)] if len(shape) < 5 else "XYZTC" + "Q" * len(shape[5:])
    unit = header.get_xyzt_units()[0]
    scale = 1e-3 if unit == "micron" else 1e3 if unit == "meter" else 1.0
    zooms = (float(step) for step in header.get_zooms())
    spacing = {axis: step * scale for axis, step in zip("XYZ", zooms, strict=False) if step > 0}
    return NiftiFacts(shape, header.get_data_dtype(), scaled, axes, spacing)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: the NIfTI file is damaged or cut off ({error})")

"""NIfTI volumes, through nibabel (an extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.raw_array import RawArray
from pixvox.errors import DataError


def read_nifti(path: Path) -> RawArray:
    """Read a volume; its axes x, y, z become z, y, x, its voxels keep their order and its spacing is in mm.

    Raises:
        DataError: If nibabel is not installed, or the file is damaged.
    """
    try:
        import nibabel
    except ImportError as error:
        raise DataError(f"{path}: NIfTI files need nibabel: pip install pixvox[medical]") from error
    try:
        image: Any = nibabel.load(path)
        slope, intercept = image.header.get_slope_inter()
        scaled = slope not in (None, 1.0) or intercept not in (None, 0.0)
        data = image.get_fdata(dtype=np.float32) if scaled else np.asarray(image.dataobj)
        zooms = [float(step) for step in image.header.get_zooms()]
        unit = image.header.get_xyzt_units()[0]
    except Exception as error:  # nibabel and gzip raise their own, unrelated types
        raise DataError(f"{path}: the NIfTI file is damaged or cut off ({error})") from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    axes = "XYZC"[: data.ndim] if data.ndim <= 4 else None
    scale = 1e-3 if unit == "micron" else 1e3 if unit == "meter" else 1.0
    spacing = {axis: step * scale for axis, step in zip("XYZ", zooms, strict=False) if step > 0}
    return RawArray(data, axes, spacing, unit="mm")

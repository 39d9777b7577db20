"""NIfTI volumes read slice by slice, through nibabel's array proxy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.handle import Handle
from pixvox.data.readers.nifti import facts_of, open_nifti_image
from pixvox.data.readers.regions import Index
from pixvox.data.volumes.formats.stored_array import Header
from pixvox.errors import DataError

log = logging.getLogger("pixvox")


class NiftiProxy:
    """A NIfTI file of which only what is asked for is read; values with a scale become float32.

    Args:
        path: ``.nii``, or ``.nii.gz``, which has to be unpacked from its start for each read.

    Raises:
        DataError: If nibabel is not installed, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._image = Handle(open_nifti_image, path)
        facts = facts_of(self._image())
        dtype = np.dtype(np.float32) if facts.scaled else facts.dtype.newbyteorder("=")
        self.header = Header(facts.shape, dtype, facts.axes, facts.spacing, "mm")
        if path.name.lower().endswith(".gz"):
            log.info(
                "%s is one compressed stream, so each region is slow to read; pixvox data convert %s %s.zarr helps",
                path, path, path.name.partition(".")[0],
            )  # fmt: skip
        else:
            self._check_size(facts.dtype.itemsize)

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index``.

        Raises:
            DataError: If the file is damaged or cut off.
        """
        image: Any = self._image()
        try:
            return np.asarray(image.dataobj[index])
        except Exception as error:  # nibabel and gzip raise their own, unrelated types
            raise DataError(f"{self.path}: the NIfTI file is damaged or cut off ({error})") from error

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return nothing: every value has its place in the file."""
        return ()

    def _check_size(self, itemsize: int) -> None:
        needed = int(self._image().dataobj.offset) + itemsize * int(np.prod(self.header.shape, dtype=object))
        size = self.path.stat().st_size
        if size < needed:
            raise DataError(
                f"{self.path}: the NIfTI file is damaged or cut off: shape {self.header.shape} takes {needed} bytes, "
                f"the file has {size}; copy it again from its source"
            )

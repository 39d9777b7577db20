"""An image or volume that is read region by region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pixvox.data.readers.axes import Layout, in_array_order
from pixvox.data.readers.regions import Index, overlap
from pixvox.data.volumes.formats.stored_array import StoredArray, refuse_missing
from pixvox.errors import DataError


class Volume:
    """A picture, slide or volume on disk, of which only what is asked for is read.

    It can be pickled: other processes open the file again. ``pixvox.open_volume`` makes one of a path.

    Args:
        array: Where values are stored, with its axes as they are.
        layout: Which of its axes are channels, z, y and x.
        source: Path or name, for messages.
        allow_missing_chunks: Read places that were never written as what the file says of them (0 mostly);
            ``missing`` marks them. Otherwise reading them is an error.

    Attributes:
        source: Path or name.
        size: Lengths of the spatial axes in array order, ``(z, y, x)`` or ``(y, x)``.
        channels: Number of channels.
        dtype: Type of the values.
        spacing: Size of a pixel or voxel per axis in array order, or None when it is not stated.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        chunks: Lengths of what the file keeps together, per spatial axis; None when it keeps single values.

    Raises:
        DataError: If it holds no values, or none that are intensities or labels.

    Example:
        >>> from pixvox.data.volumes.open import open_volume
        >>> volume = open_volume(np.arange(4 * 5 * 6).reshape(4, 5, 6), spatial_dims=3)
        >>> volume.size, volume.read((slice(1, 2), slice(0, 2), slice(4, 6))).tolist()
        ((4, 5, 6), [[[[34, 35], [40, 41]]]])
    """

    def __init__(
        self, array: StoredArray, layout: Layout, source: str, allow_missing_chunks: bool = False
    ) -> None:
        header = array.header
        if header.dtype.kind not in "biuf":
            raise DataError(
                f"{source}: values of type {header.dtype} are no intensities; store them as numbers"
            )
        if 0 in header.shape:
            raise DataError(f"{source}: shape {header.shape} holds no voxel; export it again")
        self.array, self.layout, self.source = array, layout, source
        self.allow_missing_chunks = allow_missing_chunks
        self.channels, *size = layout.lengths(header.shape)
        self.size = tuple(size)
        self.dtype: np.dtype[Any] = header.dtype
        self.spacing = in_array_order(header.spacing, layout.spatial)
        self.unit = header.unit
        self.chunks = None if header.chunks is None else layout.lengths(header.chunks)[1:]

    @property
    def spatial_dims(self) -> int:
        """2 for images and slides, 3 for volumes."""
        return len(self.size)

    def __repr__(self) -> str:
        return (
            f"Volume({self.source!r}, size={self.size}, channels={self.channels}, dtype={self.dtype}, "
            f"spacing={self.spacing}, unit={self.unit!r}, chunks={self.chunks})"
        )

    def read(self, region: Sequence[slice]) -> np.ndarray:
        """Return the values of a region as ``(channels, *region)``, contiguous and the caller's own.

        Args:
            region: A slice per spatial axis in array order, within the volume, with steps of 1.

        Raises:
            DataError: If what holds the values is damaged, or was never written and that is not allowed.
            ValueError: If the region does not fit the volume.
        """
        region = self._inside(region)
        expected = (self.channels, *(part.stop - part.start for part in region))
        if 0 in expected:
            return np.zeros(expected, self.dtype)
        index = self.layout.index(region)
        if not self.allow_missing_chunks:
            refuse_missing(self.array, index, self.source)
        block = self.layout.arrange(self.array.read(index))
        if block.shape != expected:
            raise DataError(
                f"{self.source}: reads as {block.shape} where {expected} was to be; it has changed or is damaged, "
                "copy it again from its source"
            )
        return np.array(block, dtype=self.dtype, order="C")

    def missing(self, region: Sequence[slice]) -> np.ndarray | None:
        """Return where values of any channel were never written, ``(*region)``; None when all were.

        Raises:
            ValueError: If the region does not fit the volume.
        """
        region = self._inside(region)
        index = self.layout.index(region)
        absent = self.array.missing(index)
        if not absent:
            return None
        marked = np.zeros([part.stop - part.start for part in region], dtype=bool)
        for _, place in absent:
            spatial = tuple(
                slice(0, 1)
                if axis is None
                else slice(*place[axis].indices(self.array.header.shape[axis])[:2])
                for axis in self.layout.places[1:]
            )
            marked[overlap(region, spatial)[0]] = True
        return marked

    def _inside(self, region: Sequence[slice]) -> Index:
        """Return the region with its bounds as numbers."""
        if len(region) != len(self.size):
            raise self._outside(f"a region of {len(region)} axes, {tuple(region)}")
        bounds = []
        for part, length in zip(region, self.size, strict=True):
            start = 0 if part.start is None else int(part.start)
            stop = length if part.stop is None else int(part.stop)
            if part.step not in (None, 1) or not 0 <= start <= stop <= length:
                raise self._outside(f"the region {tuple(region)} is not inside")
            bounds.append(slice(start, stop))
        return tuple(bounds)

    def _outside(self, what: str) -> ValueError:
        return ValueError(
            f"{self.source}: {what}; give {len(self.size)} slices within {self.size}, in array order"
        )

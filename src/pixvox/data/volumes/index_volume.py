"""What the index finds out about one volume: its header, its intensities, and the objects of its crops."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixvox.data.readers.regions import Index
from pixvox.data.volumes.catalogue import SCHEMA_VERSION, below
from pixvox.data.volumes.crop_grid import CropGrid
from pixvox.data.volumes.crop_size import crop_voxels
from pixvox.data.volumes.file_state import file_state, sampled_checksum
from pixvox.data.volumes.index_source import Entry
from pixvox.data.volumes.label_objects import label_objects
from pixvox.data.volumes.part import Part
from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError

BLOCK_VOXELS = 1 << 24
"""Voxels of a label map that are read at once, unless one crop has more."""

_SAMPLED_VALUES = 1 << 22
"""Values of a volume that its percentiles are taken from; a smaller volume is read whole."""


@dataclass(frozen=True)
class IndexOptions:
    """What decides on crops and objects, beside the files.

    Args:
        size: Lengths of a crop in array order, in voxels or ``size_unit``.
        overlap: Share of a crop that the next one along an axis has, too, in [0, 1).
        cover: See ``CropGrid``.
        min_volume: Objects with fewer voxels in a crop are left out there.
        spacing: Size of a pixel or voxel per axis in array order, for files that do not say.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        percentiles: Low and high percentile of the intensities that are noted.
        allow_missing_chunks: Accept places that were never written.
        min_intensity: Voxels of volumes without labels that are this bright in any channel are foreground; crops with
            fewer of them than ``min_volume`` are empty. None: nothing is known of them.
        size_unit: Unit of ``size``, ``"um"`` or ``"mm"``; None where it is in voxels.
    """

    size: tuple[float, ...]
    overlap: float = 0.0
    cover: bool = False
    min_volume: int = 1
    spacing: tuple[float, ...] | None = None
    unit: str = "um"
    percentiles: tuple[float, float] = (1.0, 99.8)
    allow_missing_chunks: bool = False
    min_intensity: float | None = None
    size_unit: str | None = None

    def of(self, header: VolumeHeader, source: str) -> IndexOptions:
        """Return the options for one volume, where the size of crops is in its voxels.

        Raises:
            DataError: If the size is not in voxels, and the volume has no spacing.
        """
        voxels = crop_voxels(self.size, self.size_unit, header.spacing, header.unit, source)
        return replace(self, size=voxels, size_unit=None)

    def grid(self, size: Sequence[int]) -> CropGrid:
        """Return the crops of a volume."""
        return CropGrid(size, [int(length) for length in self.size], self.overlap, self.cover)


@dataclass(frozen=True)
class VolumeHeader:
    """What is known of a volume before its values are read.

    Args:
        size: Lengths of the spatial axes in array order.
        channels: Number of channels.
        dtype: Type of its values.
        spacing: Size of a pixel or voxel per axis in array order, or None when it is unknown.
        unit: Unit of ``spacing``.
        state: ``file_state`` of image and label map.
        checksum: Of samples of both files.
        key: Of all that decides on crops and objects.
    """

    size: tuple[int, ...]
    channels: int
    dtype: str
    spacing: tuple[float, ...] | None
    unit: str
    state: list[list[int] | None]
    checksum: str
    key: str


@dataclass(frozen=True)
class IndexedBlock:
    """Crops that were read at once, and their objects.

    Args:
        crops: ``(n, 3)``: number on the grid, objects, voxels of these. Without labels -1 objects, and the voxels are
            the bright ones, or -1.
        objects: ``(m, 9)``: number of the crop, id, ``x0 y0 z0 x1 y1 z1`` in the crop, voxels.
    """

    crops: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]


def read_header(root: Path, entry: Entry, options: IndexOptions) -> VolumeHeader:
    """Open the files of a volume.

    Raises:
        DataError: If they cannot be opened, or do not fit each other or the crops.
    """
    image = _open(root, entry.path, entry.part, options)
    files: list[Path | None] = [below(root, entry.path, root)]
    if entry.label_path is None:
        files.append(None)
    else:
        labels = _open_labels(root, entry.label_path, entry.label_part, options)
        if labels.size != image.size:
            raise DataError(
                f"{image.source} has the size {image.size}, its label map {labels.source} {labels.size}; one of them "
                "is cut off, resized or of another volume"
            )
        files.append(below(root, entry.label_path, root))
    sums = [None if file is None else sampled_checksum(file) for file in files]
    state = [None if file is None else file_state(file) for file in files]
    spacing, unit = _spacing(image, entry, options)
    crop_voxels(options.size, options.size_unit, spacing, unit, image.source)  # refuses what has no spacing
    decides = {
        "version": SCHEMA_VERSION,
        "options": asdict(options),
        "parts": [asdict(entry.part), asdict(entry.label_part)],
        "spacing": entry.spacing,
        "state": state,
        "checksums": sums,
        "size": image.size,
        "dtype": str(image.dtype),
    }
    return VolumeHeader(
        image.size,
        image.channels,
        str(image.dtype),
        spacing,
        unit,
        state,
        _sum(sums),
        _sum(decides),
    )


def _spacing(image: Volume, entry: Entry, options: IndexOptions) -> tuple[tuple[float, ...] | None, str]:
    """Return spacing and unit: of the file, else the user's, else of the folder."""
    if image.spacing is not None:
        return image.spacing, image.unit
    if options.spacing is not None:
        return options.spacing, options.unit
    if entry.spacing is not None and len(entry.spacing) != len(image.size):
        raise DataError(
            f"dataset.json above {image.source} states a spacing of {len(entry.spacing)} axes, {list(entry.spacing)}; "
            f"it needs {len(image.size)}, in array order"
        )
    return entry.spacing, "um"


def measure_intensity(root: Path, entry: Entry, options: IndexOptions) -> list[list[float]]:
    """Return low and high percentile of each channel, from boxes spread evenly where the volume is large.

    Raises:
        DataError: If values cannot be read, or a channel has no finite one.
    """
    volume = _open(root, entry.path, entry.part, options)
    seen: list[npt.NDArray[Any]] = []
    for region in _sampled_regions(volume):
        values = volume.read(region)
        missing = volume.missing(region) if options.allow_missing_chunks else None
        seen.append(values.reshape(volume.channels, -1) if missing is None else values[:, ~missing])
    limits = []
    for channel, values in enumerate(np.concatenate(seen, axis=1)):
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if not finite.size:
            raise DataError(f"{volume.source}: channel {channel} has no finite value where it was looked at")
        limits.append([float(value) for value in np.percentile(finite, options.percentiles)])
    return limits


def index_block(root: Path, entry: Entry, options: IndexOptions, block: Index) -> IndexedBlock:
    """Return the crops in a block of the grid, with their objects.

    Raises:
        DataError: If the label map cannot be read, or holds no ids.
    """
    if entry.label_path is None:
        return _without_labels(_open(root, entry.path, entry.part, options), options, block)
    volume = _open_labels(root, entry.label_path, entry.label_part, options)
    grid = options.grid(volume.size)
    region = grid.region_of(block)
    labels = whole_numbers(volume.read(region)[0], volume.source)
    crops, objects = [], []
    for number, crop in grid.crops_of(block):
        inside = _within(crop, region)
        found = label_objects(labels[inside], volume.source)
        kept = found.voxels >= options.min_volume
        count = int(kept.sum())
        crops.append((number, count, int(found.voxels[kept].sum())))
        rows = np.zeros((count, 9), dtype=np.int64)
        axes = len(grid.size)
        rows[:, 0], rows[:, 1], rows[:, 7], rows[:, 8] = number, found.ids[kept], 1, found.voxels[kept]
        rows[:, 2 : 2 + axes] = found.low[kept, ::-1]
        rows[:, 5 : 5 + axes] = found.high[kept, ::-1]
        objects.append(rows)
    return IndexedBlock(np.array(crops, dtype=np.int64), np.concatenate(objects))


def whole_numbers(values: npt.NDArray[Any], source: str) -> npt.NDArray[Any]:
    """Return the values of a label map as integers.

    Raises:
        DataError: If they are no whole numbers.

    Example:
        >>> whole_numbers(np.array([0.0, 3.0]), "labels.nii").tolist()
        [0, 3]
    """
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind != "f":
        return values
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise DataError(f"{source}: labels must be whole numbers, found {values[whole != values].flat[0]}")
    return whole


def _without_labels(volume: Volume, options: IndexOptions, block: Index) -> IndexedBlock:
    """Return the crops in a block of the grid; which show more than background, their intensities tell."""
    grid = options.grid(volume.size)
    counts = [-1] * len(crops := list(grid.crops_of(block)))
    if options.min_intensity is not None:
        region = grid.region_of(block)
        bright: npt.NDArray[np.bool_] = np.any(volume.read(region) >= options.min_intensity, axis=0)
        missing = volume.missing(region) if options.allow_missing_chunks else None
        if missing is not None:
            bright &= ~missing
        counts = [int(np.count_nonzero(bright[_within(crop, region)])) for _, crop in crops]
        counts = [count if count >= options.min_volume else 0 for count in counts]
    rows = [(number, -1, count) for (number, _), count in zip(crops, counts, strict=True)]
    return IndexedBlock(np.array(rows, dtype=np.int64), np.zeros((0, 9), dtype=np.int64))


def _within(crop: Index, region: Index) -> Index:
    """Return where a crop lies in a region that holds it."""
    return tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(crop, region, strict=True)
    )


def _open(root: Path, path: str, part: Part, options: IndexOptions) -> Volume:
    return part.open(below(root, path, root), len(options.size), options.allow_missing_chunks)


def _open_labels(root: Path, path: str, part: Part, options: IndexOptions) -> Volume:
    volume = _open(root, path, part, options)
    if volume.channels != 1:
        raise DataError(f"{volume.source}: a label map has one channel, this has {volume.channels}")
    return volume


def _sampled_regions(volume: Volume) -> list[Index]:
    """Return the whole volume, or 64 boxes of whole chunks in the middle of the cells of a grid."""
    values = math.prod(volume.size) * volume.channels
    if values <= _SAMPLED_VALUES:
        return [tuple(slice(0, length) for length in volume.size)]
    dims = len(volume.size)
    each = round((_SAMPLED_VALUES / volume.channels / 64) ** (1 / dims))
    axes = []
    for length in volume.size:
        cells = min(round(64 ** (1 / dims)), max(1, length // each))
        side = min(each, length)
        middles = [length * (2 * cell + 1) // (2 * cells) for cell in range(cells)]
        starts = [min(max(0, middle - side // 2), length - side) for middle in middles]
        axes.append([slice(start, start + side) for start in starts])
    return list(product(*axes))


def _sum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

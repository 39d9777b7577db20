"""Instances in HDF5 arrays: images, and the masks of all images in one flat list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pixvox.data.dataset import Dataset
from pixvox.data.datasets.ragged import read_ragged
from pixvox.data.metadata import Metadata
from pixvox.data.readers.handle import Handle
from pixvox.data.readers.hdf5 import open_hdf5
from pixvox.data.sample import Sample, intensity_range, layers_from_masks
from pixvox.errors import DataError
from pixvox.structures import Masks


class Hdf5Instances(Dataset):
    """Images ``(n, channels, *spatial)`` with masks ``(m, *spatial)``: image i has the masks after those of i - 1.

    How many objects an image has is told by ``labels``: one array per image, in a ``.npy`` file of arrays.
    Such files hold pickles; they are read by an unpickler that makes arrays and nothing else.

    Args:
        images: HDF5 file of the images.
        masks: HDF5 file of the masks of all images, 0 where an object is not.
        labels: ``.npy`` file of one array of class numbers per image, or of the numbers of all images in one
            array, with ``offsets``.
        boxes: ``.npy`` file of one array ``(objects, 4 or 6)`` per image as ``[x0, y0, (z0,) x1, y1, (z1)]``, or
            of all in one; they are compared with the masks and not used otherwise. None leaves that out.
        offsets: ``.npy`` file of n + 1 ascending numbers: image i has the objects ``offsets[i]`` up to
            ``offsets[i + 1]``. Only for labels in one array.
        class_names: Names by class index; by default ``class_1`` and so on as found.
        first_label: Number of the first class in the file.
        image_key: Name of the array in the file; by default its only one.
        mask_key: The same for masks.
        channels_last: Images are ``(n, *spatial, channels)``.
        check_masks: Look at every mask at start: an object without a pixel is then an error at once instead
            of being left out when it is read.
        spacing: Size of a pixel or voxel per axis in array order.
        percentiles: Those of ``Sample.intensity_range``.
        name: Name of the dataset.

    Raises:
        DataError: If h5py is not installed, a file cannot be read, or the files do not fit each other.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path,
        labels: str | Path,
        boxes: str | Path | None = None,
        offsets: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        first_label: int = 1,
        image_key: str | None = None,
        mask_key: str | None = None,
        channels_last: bool = False,
        check_masks: bool = False,
        spacing: Sequence[float] | None = None,
        percentiles: Sequence[float] = (1.0, 99.8),
        name: str = "hdf5",
    ) -> None:
        self.arrays = {"images": _Array(Path(images), image_key), "masks": _Array(Path(masks), mask_key)}
        self.channels_last = channels_last
        self.percentiles = (float(percentiles[0]), float(percentiles[1]))
        shape, mask_shape = (array.shape for array in self.arrays.values())
        dims = len(mask_shape) - 1
        if dims not in (2, 3) or len(shape) not in (dims + 1, dims + 2):
            raise DataError(
                f"{images} has the shape {shape}, {masks} {mask_shape}; images must be (n, channels, *spatial) and "
                "masks (m, *spatial), with two or three spatial axes"
            )
        self.grey = len(shape) == dims + 1
        size = shape[1:] if self.grey else shape[1:-1] if channels_last else shape[2:]
        channels = 1 if self.grey else shape[-1] if channels_last else shape[1]
        if size != mask_shape[1:]:
            raise DataError(
                f"{images} holds images of size {size}, {masks} masks of size {mask_shape[1:]}; they must be the "
                "same, in array order (channels_last=true for images with channels in the end)"
            )
        per_image = read_ragged(Path(labels), Path(offsets) if offsets is not None else None)
        if len(per_image) != shape[0]:
            raise DataError(f"{labels} is for {len(per_image)} images, {images} holds {shape[0]}")
        self.offsets = np.cumsum([0, *(len(own) for own in per_image)])
        if self.offsets[-1] != mask_shape[0]:
            raise DataError(f"{labels} lists {self.offsets[-1]} objects, {masks} holds {mask_shape[0]} masks")
        self.labels = [_whole(own, labels, i) - first_label for i, own in enumerate(per_image)]
        names = _names(class_names, self.labels, first_label, labels)
        steps = tuple(float(step) for step in spacing) if spacing is not None else None
        self.metadata = Metadata("instance", dims, names, channels, spacing=steps, name=name)
        if boxes is not None:
            self._check_boxes(Path(boxes), Path(offsets) if offsets is not None else None, size)
        if check_masks:
            self._check_masks()

    def __len__(self) -> int:
        return len(self.labels)

    def source(self, index: int) -> str:
        """Return the file and place of image ``index``."""
        return f"{self.arrays['images'].path}[{index}]"

    def source_files(self, index: int) -> list[Path]:
        """Return the files that all images come from."""
        return [array.path for array in self.arrays.values()]

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows, from its labels alone."""
        return {int(label) for label in self.labels[index]}

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        values = self.arrays["images"][index]
        if self.grey:
            values = values[None]
        elif self.channels_last:
            values = np.moveaxis(values, -1, 0)
        if not np.isfinite(values).all():
            raise DataError(
                f"{self.source(index)} holds values that are not finite; replace them in the file"
            )
        masks = Masks.from_dense(torch.from_numpy(self._masks(index)))
        count = len(self.labels[index])
        sample = Sample(
            image=torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)),
            spacing=self.metadata.spacing,
            source=self.source(index),
            index=index,
            intensity_range=intensity_range(values, self.percentiles),
        )
        return replace(
            sample,
            layers=layers_from_masks(masks),
            labels=torch.from_numpy(self.labels[index]),
            ignore=torch.zeros(count, dtype=torch.bool),
        )

    def _masks(self, index: int) -> np.ndarray:
        start, end = self.offsets[index], self.offsets[index + 1]
        masks: np.ndarray = self.arrays["masks"][int(start) : int(end)] != 0
        return masks

    def _check_boxes(self, file: Path, offsets: Path | None, size: Sequence[int]) -> None:
        """Refuse boxes that cannot be those of the objects."""
        per_image = read_ragged(file, offsets)
        width = 2 * len(size)
        limit = np.tile(np.array(size[::-1], dtype=float), 2) + 1
        if len(per_image) != len(self):
            raise DataError(f"{file} is for {len(per_image)} images, the labels are for {len(self)}")
        for index, (boxes, labels) in enumerate(zip(per_image, self.labels, strict=True)):
            rows = boxes.reshape(-1, width) if boxes.size % width == 0 else boxes
            if rows.shape != (len(labels), width):
                raise DataError(
                    f"{file}: image {index} has boxes of shape {boxes.shape} for {len(labels)} labels; it takes one "
                    f"row of {width} numbers for each"
                )
            if len(rows) and not (np.isfinite(rows) & (rows >= -1) & (rows <= limit)).all():
                raise DataError(f"{file}: image {index} has a box outside its frame of {tuple(size)}")

    def _check_masks(self) -> None:
        for index in range(len(self)):
            empty = np.flatnonzero(~self._masks(index).reshape(len(self.labels[index]), -1).any(1))
            if len(empty):
                raise DataError(
                    f"{self.arrays['masks'].path}: mask {self.offsets[index] + empty[0]} (object {empty[0]} of image "
                    f"{index}) has no pixel; remove it with its label"
                )


class _Array:
    """One array of an HDF5 file."""

    def __init__(self, path: Path, key: str | None) -> None:
        self.path = path
        self._opened = Handle(open_hdf5, path, key, "image_key or mask_key")
        self.shape = tuple(int(length) for length in self._opened()[1].shape)

    def __getitem__(self, place: int | slice) -> np.ndarray:
        try:
            return np.asarray(self._opened()[1][place])
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"{self.path}[{place}] cannot be read: {error}; the file is damaged") from error


def _whole(values: np.ndarray, file: str | Path, index: int) -> np.ndarray:
    numbers = np.asarray(values).reshape(-1)
    if numbers.size and (numbers.dtype.kind not in "iuf" or not np.array_equal(numbers, np.rint(numbers))):
        raise DataError(
            f"{file}: the labels of image {index} must be whole numbers, got {numbers[:5].tolist()}"
        )
    return numbers.astype(np.int64)


def _names(
    given: Sequence[str] | None, labels: Sequence[np.ndarray], first: int, file: str | Path
) -> tuple[str, ...]:
    highest = max((int(own.max()) for own in labels if len(own)), default=0)
    names = tuple(given) if given is not None else tuple(f"class_{i + first}" for i in range(highest + 1))
    for index, own in enumerate(labels):
        wrong = own[(own < 0) | (own >= len(names))]
        if len(wrong):
            raise DataError(
                f"{file}: image {index} has the label {wrong[0] + first}; with {len(names)} classes from "
                f"first_label={first} on they run to {len(names) + first - 1}"
            )
    return names

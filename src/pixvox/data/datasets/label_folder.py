"""A folder of images beside a folder of label maps with the same names, in 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixvox.data.dataset import Dataset
from pixvox.data.datasets.pairing import pair_files
from pixvox.data.image_source import ImageSource, common_channels
from pixvox.data.images import MAX_PIXELS, Channels, read_label_map
from pixvox.data.metadata import Metadata, Task
from pixvox.data.sample import Sample, renumber
from pixvox.errors import DataError
from pixvox.structures import Size


class LabelFolder(Dataset):
    """Images and label maps, paired by name: object ids (instance) or class numbers (semantic).

    Images without a label map are unlabelled; a label map without an image is an error.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps; None when there are none.
        task: ``"instance"``: values are object ids, 0 is background; ``"semantic"``: values are classes.
        class_names: Names by class index; one name for an instance task.
        spatial_dims: 2 or 3.
        ignore_value: Value in the files of what is neither learned nor scored (semantic); it becomes 255.
        values: Class index by value in the files, when they are not the same, as in masks of 0 and 255.
        channels: ``"rgb"`` or ``"grey"`` to convert, None for as given.
        spacing: Size of a pixel or voxel per axis in array order, for files that do not say.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        percentiles: Those of ``Sample.intensity_range``.
        max_pixels: Limit on the pixels of a picture or page.
        allow_missing_chunks: Accept Zarr arrays with chunks that were never written.
        name: Name of the dataset.

    Raises:
        DataError: If there are no images, or names do not match.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path | None,
        task: Task = "instance",
        class_names: Sequence[str] = ("object",),
        spatial_dims: int = 2,
        ignore_value: int | None = 255,
        values: Mapping[int, int] | None = None,
        channels: Channels | None = None,
        spacing: Sequence[float] | None = None,
        unit: str = "um",
        percentiles: Sequence[float] = (1.0, 99.8),
        max_pixels: int = MAX_PIXELS,
        allow_missing_chunks: bool = False,
        name: str = "folder",
    ) -> None:
        self.pairs = pair_files(Path(images), Path(labels) if labels is not None else None)
        self.ignore_value = ignore_value
        self.values = dict(values) if values else None
        paths = [image for image, _ in self.pairs]
        in_channels = {"rgb": 3, "grey": 1}.get(channels or "") or common_channels(
            paths, spatial_dims, max_pixels
        )
        steps = tuple(float(step) for step in spacing) if spacing is not None else None
        self.reader = ImageSource(
            spatial_dims,
            in_channels,
            channels,
            steps,
            unit,
            (float(percentiles[0]), float(percentiles[1])),
            max_pixels,
            allow_missing_chunks,
        )
        if task == "instance" and len(class_names) != 1:
            raise DataError(
                f"label maps of object ids cannot tell {len(class_names)} classes {list(class_names)} apart; "
                f"use COCO files, or task=semantic"
            )
        self.metadata = Metadata(
            task, spatial_dims, tuple(class_names), in_channels, spacing=steps, unit=unit, name=name
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def source(self, index: int) -> str:
        """Return the file of image ``index``."""
        return str(self.pairs[index][0])

    def source_files(self, index: int) -> list[Path]:
        """Return image and label map ``index``."""
        return [file for file in self.pairs[index] if file is not None]

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows, from its label map alone."""
        label = self.pairs[index][1]
        if label is None:
            return set()
        reader = self.reader
        label_map, missing = read_label_map(
            label, reader.spatial_dims, reader.max_pixels, reader.allow_missing_chunks
        )
        if self.metadata.task == "instance":
            return {0} if label_map.any() else set()
        class_map = self._class_map(label_map, label, None if missing is None else torch.from_numpy(missing))
        return set(np.unique(class_map.numpy()).tolist()) - {self.metadata.ignore_index}

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images without a label map."""
        return [index for index, (_, label) in enumerate(self.pairs) if label is None]

    def __getitem__(self, index: int) -> Sample:
        image, label = self.pairs[index]
        sample, invalid = self.reader.read(image, index)
        if label is None:
            return sample
        reader = self.reader
        label_map, missing = read_label_map(
            label, reader.spatial_dims, reader.max_pixels, reader.allow_missing_chunks
        )
        check_same_size(image, sample.size, label, label_map.shape)
        if missing is not None:
            unknown = torch.from_numpy(missing)
            invalid = unknown if invalid is None else invalid | unknown
        if self.metadata.task == "semantic":
            return replace(sample, class_map=self._class_map(label_map, label, invalid))
        return _with_instances(sample, label_map, label, invalid)

    def _class_map(self, label_map: np.ndarray, file: Path, invalid: Tensor | None) -> Tensor:
        """Return class indices, with the ignored value as that of the metadata."""
        ignored, classes = self.metadata.ignore_index, self.metadata.num_classes
        present = np.unique(label_map).tolist()
        table: dict[int, int] = {}
        for value in present:
            target = self.values.get(value) if self.values is not None else value
            if value == self.ignore_value:
                target = ignored
            elif target is None or not 0 <= target < classes:
                known = sorted(self.values) if self.values is not None else f"0..{classes - 1}"
                raise DataError(
                    f"{file}: label value {value} ({int((label_map == value).sum())} pixels) is none of the "
                    f"classes {known}; mend the file, name more classes, or set ignore_value={value}"
                )
            table[int(value)] = target
        lookup = torch.tensor([table[int(value)] for value in present])
        positions = (
            np.searchsorted(np.array(present), label_map) if len(present) > 1 else np.zeros_like(label_map)
        )
        class_map = lookup[torch.from_numpy(positions.astype(np.int64))]
        if invalid is not None:
            class_map[invalid] = ignored
        return class_map


def _with_instances(sample: Sample, label_map: np.ndarray, file: Path, invalid: Tensor | None) -> Sample:
    try:
        numbers, ids = renumber(label_map)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    layers, count = numbers[None], len(ids)
    ignore = torch.zeros(count + (invalid is not None), dtype=torch.bool)
    if invalid is not None:  # a region of its own that is neither learned nor scored
        layers = torch.cat([layers, (invalid * (count + 1)).to(layers.dtype)[None]])
        ignore[-1] = True
    return replace(sample, layers=layers, labels=torch.zeros(len(ignore), dtype=torch.int64), ignore=ignore)


def check_same_size(image: Path, size: Size, label: Path, label_size: Size) -> None:
    """Refuse a label map of another size than its image.

    Raises:
        DataError: If they differ.
    """
    if size != label_size:
        raise DataError(
            f"{image} has the size {_by(size)}, its label map {label} {_by(label_size)}; "
            f"one of them is cut off, resized or of another image"
        )


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(length) for length in size)

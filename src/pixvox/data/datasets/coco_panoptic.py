"""Panoptic annotations as COCO has them: a JSON file, and one picture of segment ids per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixvox.data.dataset import Dataset
from pixvox.data.datasets.coco import read_json
from pixvox.data.image_source import ImageSource
from pixvox.data.images import MAX_PIXELS, Channels, read_image
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.errors import DataError


@dataclass(frozen=True)
class _Entry:
    """One image: its picture, its segments, and the class and crowd flag of each segment's id."""

    image: Path
    segments: Path
    classes: Mapping[int, tuple[int, bool]]


class CocoPanoptic(Dataset):
    """Things and stuff of a panoptic COCO file, as instances: one per object, one per stuff class.

    "Panoptic Segmentation" (Kirillov et al., 2019, https://arxiv.org/abs/1801.00868), format of the COCO
    challenge. Pixels without a segment, and crowds, are ignored.

    Args:
        images: Folder of the images.
        annotations: The JSON file.
        segments: Folder of the pictures of ids (red + 256 green + 65536 blue); by default the folder beside the
            JSON file that has its name.
        channels: ``"rgb"`` or ``"grey"``: what images are converted to.
        percentiles: Those of ``Sample.intensity_range``.
        max_pixels: Limit on the pixels of a picture.
        name: Name of the dataset.

    Raises:
        DataError: If the file is no panoptic COCO file, or a picture is missing.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        segments: str | Path | None = None,
        channels: Channels = "rgb",
        percentiles: Sequence[float] = (1.0, 99.8),
        max_pixels: int = MAX_PIXELS,
        name: str = "coco panoptic",
    ) -> None:
        self.file = Path(annotations)
        folder = Path(segments) if segments is not None else self.file.with_suffix("")
        content = read_json(self.file)
        try:
            categories = sorted(content["categories"], key=lambda one: one["id"])
            is_thing = tuple(bool(one["isthing"]) for one in categories)
            names = tuple(str(one["name"]) for one in categories)
            labels = {one["id"]: label for label, one in enumerate(categories)}
            files = {one["id"]: Path(images) / one["file_name"] for one in content["images"]}
            self.entries = [
                _Entry(files[one["image_id"]], folder / one["file_name"], _classes(one, labels))
                for one in content["annotations"]
            ]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self.file} is not a panoptic COCO file: {error} is missing or unknown; annotations need image_id, "
                "file_name and segments_info, categories isthing"
            ) from error
        missing = [
            path for entry in self.entries for path in (entry.image, entry.segments) if not path.is_file()
        ]
        if missing:
            raise DataError(
                f"{self.file}: {len(missing)} pictures are not there, first {missing[0]}; check images and segments"
            )
        low, high = (float(percentile) for percentile in percentiles)
        in_channels = {"rgb": 3, "grey": 1}[channels]
        self.reader = ImageSource(2, in_channels, channels, percentiles=(low, high), max_pixels=max_pixels)
        self.metadata = Metadata("panoptic", 2, names, in_channels, name=name, is_thing=is_thing)

    def __len__(self) -> int:
        return len(self.entries)

    def source(self, index: int) -> str:
        """Return the file of image ``index``."""
        return str(self.entries[index].image)

    def source_files(self, index: int) -> list[Path]:
        """Return image ``index``, its segments and the JSON file."""
        return [self.entries[index].image, self.entries[index].segments, self.file]

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows, from its annotations alone."""
        return {label for label, crowd in self.entries[index].classes.values() if not crowd}

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        sample, invalid = self.reader.read(entry.image, index)
        ids = _read_ids(entry.segments, self.reader.max_pixels)
        if ids.shape != sample.size:
            raise DataError(
                f"{entry.image} is {sample.size} (height, width), its segments {entry.segments} are {ids.shape}; "
                "they belong to another image"
            )
        present, places = np.unique(ids, return_inverse=True)
        strange = [int(one) for one in present if one and int(one) not in entry.classes]
        if strange:
            raise DataError(f"{entry.segments}: segment ids {strange[:5]} are not in {self.file}")
        layer = torch.from_numpy(places.reshape(ids.shape).astype(np.int32) + 1)
        # What has no segment is a region of its own, which is neither learned nor scored.
        known = [entry.classes.get(int(one), (0, True)) for one in present]
        if invalid is not None:
            layer[invalid] = len(known) + 1
            known.append((0, True))
        return replace(
            sample,
            layers=layer[None],
            labels=torch.tensor([label for label, _ in known], dtype=torch.int64),
            ignore=torch.tensor([crowd for _, crowd in known], dtype=torch.bool),
        )


def _classes(annotation: Mapping[str, Any], labels: Mapping[Any, int]) -> dict[int, tuple[int, bool]]:
    """Return class and crowd flag by segment id."""
    return {
        int(one["id"]): (labels[one["category_id"]], bool(one.get("iscrowd", 0)))
        for one in annotation["segments_info"]
    }


def _read_ids(path: Path, max_pixels: int) -> np.ndarray:
    red, green, blue = read_image(path, 2, "rgb", max_pixels).data.astype(np.int64)
    ids: np.ndarray = red + 256 * green + 65536 * blue
    return ids

"""COCO: images and one JSON file of instances as polygons or run-length encodings."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pixvox.data.dataset import Dataset
from pixvox.data.image_source import ImageSource, common_channels
from pixvox.data.images import MAX_PIXELS, Channels
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample, layers_from_masks
from pixvox.errors import DataError
from pixvox.ops.masks import RLE, polygons_to_rle
from pixvox.ops.polygons import polygon_problem
from pixvox.structures import Masks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotation:
    """One object of one image: ``segmentation`` is a list of polygons or an RLE."""

    identity: Any
    label: int
    crowd: bool
    segmentation: list[list[float]] | RLE


@dataclass(frozen=True)
class Entry:
    """One image of the index."""

    path: Path
    size: tuple[int, int] | None
    annotations: tuple[Annotation, ...]


class CocoDataset(Dataset):
    """Instances of a COCO JSON file.

    "Microsoft COCO: Common Objects in Context" (Lin et al., 2014, https://arxiv.org/abs/1405.0312).

    Category ids become contiguous labels in ascending order; annotation ids are not used, so 0 and missing
    ones do no harm; crowds become ignored regions.

    Args:
        images: Folder of the images; ``file_name`` is looked for below it.
        annotations: The JSON file.
        channels: ``"rgb"`` or ``"grey"`` to convert; when None, grey pictures among coloured ones become RGB.
        on_invalid: ``"raise"`` on the first annotation that cannot be used, or ``"drop"`` all of them and
            log how many there were: invalid polygons, encodings of another size, unknown image or category
            ids, duplicate ids.
        spacing: Size of a pixel (y, x), when it is known.
        percentiles: Those of ``Sample.intensity_range``.
        max_pixels: Limit on the pixels of a picture.
        name: Name of the dataset.

    Raises:
        DataError: If the file is not COCO JSON, images are missing on disk, or an annotation is invalid.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        channels: Channels | None = None,
        on_invalid: Literal["raise", "drop"] = "raise",
        spacing: Sequence[float] | None = None,
        percentiles: Sequence[float] = (1.0, 99.8),
        max_pixels: int = MAX_PIXELS,
        name: str = "coco",
    ) -> None:
        if on_invalid not in ("raise", "drop"):
            raise ValueError(f"on_invalid must be 'raise' or 'drop', got {on_invalid!r}")
        self.file = Path(annotations)
        self.on_invalid = on_invalid
        try:
            index = _Index(self.file, Path(images), on_invalid)
        except (TypeError, KeyError, AttributeError) as error:  # lists where objects belong, and the like
            raise DataError(f"{self.file} is not a COCO file: an entry has another form ({error})") from error
        self.entries = index.entries
        self.dropped: dict[str, int] = dict(index.dropped)
        self.category_ids = index.category_ids
        paths = [entry.path for entry in self.entries]
        in_channels = {"rgb": 3, "grey": 1}.get(channels or "") or common_channels(paths, 2, max_pixels)
        steps = tuple(float(step) for step in spacing) if spacing is not None else None
        self.reader = ImageSource(
            2,
            in_channels,
            channels or ("rgb" if in_channels == 3 else None),
            steps,
            percentiles=(float(percentiles[0]), float(percentiles[1])),
            max_pixels=max_pixels,
        )
        self.metadata = Metadata("instance", 2, index.class_names, in_channels, spacing=steps, name=name)

    def __len__(self) -> int:
        return len(self.entries)

    def source(self, index: int) -> str:
        """Return the file of image ``index``."""
        return str(self.entries[index].path)

    def source_files(self, index: int) -> list[Path]:
        """Return image ``index`` and the JSON file."""
        return [self.entries[index].path, self.file]

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows, from its annotations alone."""
        return {annotation.label for annotation in self.entries[index].annotations if not annotation.crowd}

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        sample, invalid = self.reader.read(entry.path, index)
        height, width = sample.size
        if entry.size is not None and entry.size != (height, width):
            raise DataError(
                f"{entry.path} is {height} x {width} pixels (height x width), but {self.file} says "
                f"{entry.size[0]} x {entry.size[1]}; the annotations belong to another image or orientation"
            )
        encodings, kept = [], []
        # Crowds last: they overlap many objects, and a first fit then needs fewer layers.
        for annotation in sorted(entry.annotations, key=lambda one: one.crowd):
            encoded = self._encode(annotation, (height, width))
            if encoded is not None:
                encodings.append(encoded)
                kept.append(annotation)
        masks = Masks.from_rle(encodings) if encodings else Masks.empty((height, width))
        labels = [annotation.label for annotation in kept]
        crowds = [annotation.crowd for annotation in kept]
        if invalid is not None:
            masks, labels, crowds = (
                Masks.cat([masks, Masks.from_dense(invalid[None])]),
                [*labels, 0],
                [*crowds, True],
            )
        return replace(
            sample,
            layers=layers_from_masks(masks),
            labels=torch.tensor(labels, dtype=torch.int64),
            ignore=torch.tensor(crowds, dtype=torch.bool),
        )

    def _encode(self, annotation: Annotation, size: tuple[int, int]) -> RLE | None:
        """Return the mask as RLE, or None when it is invalid and such are dropped."""
        shape = annotation.segmentation
        try:
            encoded = shape if isinstance(shape, dict) else polygons_to_rle(shape, size, self.on_invalid)
            if list(encoded["size"]) != list(size):
                raise DataError(f"its RLE has size {encoded['size']}, the image {list(size)}")
            Masks.from_rle([encoded])
        except (ValueError, KeyError, TypeError) as error:
            if self.on_invalid == "drop":
                logger.warning("%s: annotation %s dropped: %s", self.file, annotation.identity, error)
                return None
            raise DataError(
                f"{self.file}: annotation {annotation.identity}: {error}; mend it, or set on_invalid=drop"
            ) from error
        return encoded


class _Index:
    """The JSON file, checked and sorted by image."""

    def __init__(self, file: Path, folder: Path, on_invalid: str) -> None:
        self.file, self.folder, self.on_invalid = file, folder, on_invalid
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        content = read_json(file)
        self.category_ids, self.class_names = self._categories(content["categories"])
        images = self._images(content["images"])
        by_image = self._annotations(content["annotations"], images)
        self.entries = [
            Entry(self._path(image), _size(image), tuple(by_image.get(identity, ())))
            for identity, image in images.items()
        ]
        self._check_files()
        if self.dropped:
            counts = ", ".join(
                f"{count} x {reason} ({'the first: ' if count > 1 else ''}{self.examples[reason]})"
                for reason, count in sorted(self.dropped.items())
            )
            logger.warning("%s: annotations dropped: %s", file, counts)

    def _invalid(self, reason: str, detail: str) -> None:
        if self.on_invalid == "raise":
            raise DataError(f"{self.file}: {detail}; mend the file, or set on_invalid=drop to leave it out")
        self.dropped[reason] += 1
        self.examples.setdefault(reason, detail)

    def _categories(self, categories: Sequence[Mapping[str, Any]]) -> tuple[list[int], tuple[str, ...]]:
        names: dict[int, str] = {}
        for category in categories:
            if not isinstance(category.get("id"), int) or category["id"] in names:
                self._invalid(
                    "category without an id of its own",
                    f"category {dict(category)} has no whole number of its own as id",
                )
                continue
            names[category["id"]] = str(category.get("name", category["id"]))
        if not names:
            raise DataError(f"{self.file} has no categories")
        ids = sorted(names)
        return ids, tuple(names[identity] for identity in ids)

    def _images(self, images: Sequence[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
        found: dict[Any, Mapping[str, Any]] = {}
        for image in images:
            if "id" not in image or not isinstance(image.get("file_name"), str):
                raise DataError(f"{self.file}: image {dict(image)} needs an id and a file_name")
            if not all(isinstance(image.get(key) or 0, int) for key in ("height", "width")):
                raise DataError(f"{self.file}: image {dict(image)} needs whole numbers as height and width")
            if image["id"] in found:
                self._invalid(
                    "duplicate image id",
                    f"{found[image['id']]['file_name']} and {image['file_name']} share the id {image['id']}",
                )
                continue
            found[image["id"]] = image
        if not found:
            raise DataError(f"{self.file} lists no images")
        return found

    def _annotations(
        self, annotations: Sequence[Mapping[str, Any]], images: Mapping[Any, Mapping[str, Any]]
    ) -> dict[Any, list[Annotation]]:
        labels = {identity: label for label, identity in enumerate(self.category_ids)}
        by_image: dict[Any, list[Annotation]] = {}
        seen: set[Any] = set()
        for annotation in annotations:
            identity, image, category = (annotation.get(key) for key in ("id", "image_id", "category_id"))
            if any(isinstance(value, (list, dict)) for value in (identity, image, category)):
                raise DataError(
                    f"{self.file}: annotation {identity}: id, image_id and category_id must be single values, "
                    f"image_id is {image} and category_id {category}"
                )
            if image not in images:
                self._invalid("unknown image id", f"annotation {identity} has the unknown image id {image}")
            elif category not in labels:
                known = f"known are {self.category_ids[0]}..{self.category_ids[-1]}"
                self._invalid(
                    "unknown category id",
                    f"annotation {identity} has the unknown category id {category}, {known}",
                )
            elif identity is not None and identity in seen:
                self._invalid("duplicate annotation id", f"two annotations have the id {identity}")
            else:
                seen.add(identity)
                shape = self._shape(annotation, images[image])
                if shape is not None:
                    crowd = bool(annotation.get("iscrowd", 0))
                    by_image.setdefault(image, []).append(
                        Annotation(identity, labels[category], crowd, shape)
                    )
        return by_image

    def _shape(
        self, annotation: Mapping[str, Any], image: Mapping[str, Any]
    ) -> list[list[float]] | RLE | None:
        """Return the segmentation, checked as far as that needs no decoding."""
        identity, shape, size = annotation.get("id"), annotation.get("segmentation"), _size(image)
        if isinstance(shape, dict) and "counts" in shape and "size" in shape:
            counts = shape["counts"]
            numbers = (
                [*counts, *_listed(shape["size"])] if isinstance(counts, list) else _listed(shape["size"])
            )
            if len(_listed(shape["size"])) != 2 or not all(
                isinstance(number, (int, float)) for number in numbers
            ):
                self._invalid(
                    "RLE of another form",
                    f"annotation {identity}: an RLE takes size [height, width] and counts, a text or a list "
                    "of whole numbers",
                )
                return None
            if isinstance(counts, list) and sum(counts) != math.prod(shape["size"]):
                self._invalid(
                    "RLE that does not fill its size",
                    f"annotation {identity}: RLE counts sum to {sum(counts)}, size {shape['size']} has "
                    f"{math.prod(shape['size'])} pixels",
                )
                return None
            return RLE(size=shape["size"], counts=counts)
        if not isinstance(shape, list) or not shape:
            self._invalid(
                "no mask", f"annotation {identity} has no polygon and no RLE (boxes alone are not enough)"
            )
            return None
        if not isinstance(shape[0], list):
            shape = [shape]
        if size is None:
            return shape
        parts = []
        for part in shape:
            problem = polygon_problem(part, size)
            if problem is None:
                parts.append(part)
            else:
                self._invalid("invalid polygon", f"annotation {identity}: a polygon {problem}")
        return parts or None

    def _path(self, image: Mapping[str, Any]) -> Path:
        name = image["file_name"]
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(f"{self.file}: file_name {name!r} leaves the image folder {self.folder}")
        path = self.folder / inside
        return path if path.exists() else self.folder / inside.name

    def _check_files(self) -> None:
        missing = [str(entry.path) for entry in self.entries if not entry.path.is_file()]
        if missing:
            raise DataError(
                f"{self.file}: {len(missing)} of {len(self.entries)} images are not below {self.folder}, "
                f"the first: {', '.join(missing[:3])}"
            )
        empty = [str(entry.path) for entry in self.entries if entry.path.stat().st_size == 0]
        if empty:
            logger.warning("%s: %d images are empty files, the first: %s", self.file, len(empty), empty[0])


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    if image.get("height") and image.get("width"):
        return int(image["height"]), int(image["width"])
    return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a COCO file.

    Raises:
        DataError: If it is no JSON, or lacks images, annotations or categories.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not valid JSON ({error})") from error
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or key not in content
    ]
    if missing:
        raise DataError(f"{file} is not a COCO file: it lacks {', '.join(missing)}")
    for key in ("images", "annotations", "categories"):
        entries = content[key]
        strange = (
            [entry for entry in entries if not isinstance(entry, dict)]
            if isinstance(entries, list)
            else [entries]
        )
        if strange:
            found = f"found {strange[0]!r:.80}"
            raise DataError(f"{file} is not a COCO file: {key} must be a list of objects, {found}")
    return dict(content)

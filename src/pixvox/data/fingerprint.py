"""The fingerprint of a dataset: the facts from which a configuration can be derived.

"nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation" (Isensee et al., 2021,
https://doi.org/10.1038/s41592-020-01008-z) derives a network from such a fingerprint for semantic volumes; here it
also holds what instance heads need: sides, counts and crowding of objects.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixvox.data.dataset import Dataset, seeded_subset
from pixvox.data.images import read_image
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.transforms.resample import Resample
from pixvox.data.views import read_sample
from pixvox.errors import DataError
from pixvox.ops.boxes import box_iou

logger = logging.getLogger(__name__)

MOST_IMAGES = 200
MOST_SECONDS = 60.0
_MOST_OBJECTS = 2000  # of one image, whose boxes are compared with each other
_TELL_EVERY = 10.0  # seconds
_COLOUR = 2.0  # grey levels of 255 by which channels differ on average before a picture counts as coloured


@dataclass(frozen=True)
class Fingerprint:
    """Facts of the images of one split; sizes and sides are per axis in array order.

    Args:
        metadata: Task, classes, channels and dimensions.
        num_images: Images in the split.
        image_sizes: Size of each image that was read.
        objects_per_image: Objects in each annotated image, ignored ones left out (instance tasks).
        object_sides: Sides of each object's box, in pixels or voxels.
        object_volumes: Pixels or voxels of each object.
        box_overlaps: Highest IoU of each object's box with the box of another object of its image.
        touching: Share of the objects that touch another one.
        foreground: Share of each annotated image that objects, or classes other than the first, cover.
        class_shares: Share of the objects (instance) or of the labelled pixels (semantic) by class name.
        spacing: Median size of a pixel or voxel, None when unknown.
        unit: Unit of ``spacing``.
        spacing_ratio: How many times as long a pixel or voxel is in one image as in another, on the axis where they
            differ most.
        channel_ranges: Lowest value, low percentile, high percentile and highest value of each channel.
        dtypes: Number types in the files.
        saturated: Share of the pixels that stand at the highest value of their image.
        coloured: True when the images are 8-bit pictures in colour.
        broken: Images that could not be read.
        seconds: Time that reading took.
    """

    metadata: Metadata
    num_images: int
    image_sizes: np.ndarray
    objects_per_image: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    object_sides: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float64))
    object_volumes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    box_overlaps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    touching: float = 0.0
    foreground: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    class_shares: dict[str, float] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    unit: str = "um"
    spacing_ratio: float = 1.0
    channel_ranges: tuple[tuple[float, float, float, float], ...] = ()
    dtypes: tuple[str, ...] = ()
    saturated: float = 0.0
    coloured: bool = False
    broken: int = 0
    seconds: float = 0.0

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return self.metadata.spatial_dims

    @property
    def median_size(self) -> tuple[int, ...]:
        """Median length of the images along each axis."""
        return tuple(round(float(length)) for length in np.median(self.image_sizes, axis=0))

    @property
    def relative_spacing(self) -> tuple[float, ...]:
        """Spacing divided by the finest axis'; all 1 when the spacing is unknown."""
        spacing = self.spacing or (1.0,) * self.spatial_dims
        return tuple(step / min(spacing) for step in spacing)

    def resized(self, factor: float) -> Fingerprint:
        """Return the facts of the same images, resized by one factor."""
        return replace(
            self,
            image_sizes=np.maximum(1, np.rint(self.image_sizes * factor)).astype(np.int64),
            object_sides=self.object_sides * factor,
            object_volumes=self.object_volumes * factor**self.spatial_dims,
        )

    def side(self, percentile: float) -> tuple[float, ...]:
        """Return a percentile of the objects' sides along each axis."""
        return tuple(float(side) for side in np.percentile(self.object_sides, percentile, axis=0))

    def count(self, percentile: float) -> float:
        """Return a percentile of the objects per image."""
        return float(np.percentile(self.objects_per_image, percentile))

    def objects_per_patch(self, size: tuple[int, ...], percentile: float) -> float:
        """Return a percentile of the objects to expect in a patch, as dense as its image."""
        volume = np.prod(np.minimum(self.image_sizes, size), axis=1)
        shares = (volume / np.prod(self.image_sizes, axis=1))[: len(self.objects_per_image)]
        return float(np.percentile(self.objects_per_image * shares, percentile))

    def to_dict(self) -> dict[str, Any]:
        """Return percentiles instead of lists, as plain types for JSON."""
        percentiles = (5, 50, 95)
        plain: dict[str, Any] = {
            "metadata": self.metadata.to_dict(),
            "images": {"all": self.num_images, "read": len(self.image_sizes), "broken": self.broken},
            "image_sizes": _percentiles(self.image_sizes, (0, 50, 100)),
            "spacing": list(self.spacing) if self.spacing is not None else None,
            "unit": self.unit,
            "spacing_ratio": round(self.spacing_ratio, 4),
            "channel_ranges": [list(limits) for limits in self.channel_ranges],
            "dtypes": list(self.dtypes),
            "saturated": self.saturated,
            "coloured": self.coloured,
            "class_shares": self.class_shares,
            "foreground": _percentiles(self.foreground, percentiles),
            "seconds": round(self.seconds, 1),
        }
        if self.metadata.task == "instance":
            plain["objects"] = len(self.object_sides)
            plain["objects_per_image"] = _percentiles(self.objects_per_image, (0, 50, 99, 100))
            plain["object_sides"] = _percentiles(self.object_sides, percentiles)
            plain["object_volumes"] = _percentiles(self.object_volumes, percentiles)
            if self.spacing is not None:
                physical = self.object_sides * np.array(self.spacing)
                plain[f"object_sides_{self.unit}"] = _percentiles(physical, percentiles)
            plain["box_overlaps"] = _percentiles(self.box_overlaps, (50, 95, 99))
            plain["touching"] = self.touching
        return plain


def read_fingerprint(
    dataset: Dataset,
    most_images: int = MOST_IMAGES,
    seed: int = 0,
    most_seconds: float = MOST_SECONDS,
    resample: Resample | None = None,
) -> Fingerprint:
    """Read a seeded subset of a dataset, within a limit of time.

    Args:
        dataset: Whose images, annotated ones.
        most_images: Images that are read at most.
        seed: Seed of the draw.
        most_seconds: No further image is begun after this time.
        resample: Brings the images to the spacing that they are learned at.

    Raises:
        DataError: If no annotated image can be read.
    """
    begun = told = time.monotonic()
    missing = set(dataset.unlabelled_indices())
    annotated = [index for index in range(len(dataset)) if index not in missing]
    places = seeded_subset(len(annotated), min(most_images, len(annotated)), seed)
    tally = _Tally(dataset.metadata)
    for done, place in enumerate(places):
        now = time.monotonic()
        if now - begun > most_seconds and done:
            logger.info(
                "fingerprint: stopped after %d of %d images and %.0f s", done, len(places), now - begun
            )
            break
        if now - told > _TELL_EVERY:
            logger.info("fingerprint: %d of %d images", done, len(places))
            told = now
        try:
            sample = read_sample(dataset, annotated[place])
            tally.add(sample if resample is None else resample(sample, torch.Generator()))
        except DataError as error:
            tally.broken += 1
            logger.warning("left out of the fingerprint: %s", error)
    if not tally.sizes:
        raise DataError(
            f"{dataset.metadata.name or 'the dataset'}: none of {len(places)} annotated images can be read; "
            "pixvox data check names what is wrong with each"
        )
    dtypes = stored_types(dataset, [annotated[place] for place in places[:5]])
    return tally.finish(len(dataset), tuple(dtypes), time.monotonic() - begun)


def stored_types(dataset: Dataset, indices: list[int]) -> list[str]:
    """Return the number types in the files of some images; those of images without a file are left out."""
    found = set()
    for index in indices:
        try:
            found.add(str(read_image(dataset.source(index), dataset.metadata.spatial_dims).data.dtype))
        except DataError:
            continue  # drawn in memory, or reported where the image itself is read
    return sorted(found)


class _Tally:
    """Facts over the samples that are read."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.sizes: list[tuple[int, ...]] = []
        self.spacings: list[tuple[float, ...]] = []
        self.unit = metadata.unit
        self.counts: list[int] = []
        self.sides: list[np.ndarray] = []
        self.volumes: list[np.ndarray] = []
        self.overlaps: list[np.ndarray] = []
        self.touching = 0
        self.foreground: list[float] = []
        self.classes = torch.zeros(metadata.num_classes, dtype=torch.int64)
        self.limits: list[np.ndarray] = []
        self.saturated: list[float] = []
        self.coloured: Counter[bool] = Counter()
        self.broken = 0

    def add(self, sample: Sample) -> None:
        self.sizes.append(sample.size)
        if sample.spacing is not None:
            self.spacings.append(sample.spacing)
            self.unit = sample.unit
        self._intensities(sample)
        if sample.layers is not None:
            self._objects(sample)
        elif sample.class_map is not None:
            self._areas(sample.class_map)

    def _intensities(self, sample: Sample) -> None:
        flat = sample.image.flatten(1)
        lowest, highest = flat.amin(dim=1), flat.amax(dim=1)
        low, high = (
            sample.intensity_range.unbind(1) if sample.intensity_range is not None else (lowest, highest)
        )
        self.limits.append(torch.stack([lowest, low, high, highest], dim=1).numpy())
        constant = (lowest == highest)[:, None]
        self.saturated.append(float(((flat == highest[:, None]) & ~constant).float().mean()))
        eight_bit = float(highest.max()) <= 255 and float(lowest.min()) >= 0 and float(highest.max()) > 1
        differ = len(flat) == 3 and float((flat - flat.mean(dim=0)).abs().mean()) > _COLOUR
        self.coloured[eight_bit and differ] += 1

    def _objects(self, sample: Sample) -> None:
        if sample.layers is None or sample.labels is None or sample.ignore is None:
            return
        kept = torch.cat([torch.zeros(1, dtype=torch.bool), ~sample.ignore])  # by id, 0 is background
        layers = sample.layers * kept[sample.layers.long()]
        boxes, volumes, labels = [], [], []
        for layer in layers:
            areas = torch.bincount(layer.flatten(), minlength=len(sample.labels) + 1)[1:]
            present = areas.nonzero()[:, 0]
            if len(present):
                boxes.append(_boxes_of(layer, present + 1))
                volumes.append(areas[present])
                labels.append(sample.labels[present])
        self.counts.append(sum(map(len, boxes)))
        self.foreground.append(float((layers > 0).any(dim=0).float().mean()))
        if not boxes:
            return
        joined, half = torch.cat(boxes), sample.spatial_dims
        self.sides.append((joined[:, half:] - joined[:, :half]).flip(1).double().numpy())
        self.volumes.append(torch.cat(volumes).numpy())
        self.classes += torch.bincount(torch.cat(labels), minlength=len(self.classes))
        some = joined[:_MOST_OBJECTS]
        overlaps = box_iou(some, some).fill_diagonal_(0)
        self.overlaps.append(overlaps.amax(dim=1).double().numpy())
        self.touching += len(set().union(*(_touching(layer) for layer in layers)))

    def _areas(self, class_map: Tensor) -> None:
        counts = torch.bincount(class_map.flatten(), minlength=len(self.classes))[: len(self.classes)]
        self.classes += counts
        self.foreground.append(float(counts[1:].sum()) / max(1, int(counts.sum())))

    def finish(self, num_images: int, dtypes: tuple[str, ...], seconds: float) -> Fingerprint:
        dims = self.metadata.spatial_dims
        spacing = tuple(np.median(self.spacings, axis=0).tolist()) if self.spacings else self.metadata.spacing
        shares = (self.classes / self.classes.sum().clamp(min=1)).tolist()
        limits = np.stack(self.limits)
        ranges = zip(
            limits[:, :, 0].min(0), np.median(limits[:, :, 1], 0), np.median(limits[:, :, 2], 0),
            limits[:, :, 3].max(0), strict=True,
        )  # fmt: skip
        count = sum(self.counts)
        return Fingerprint(
            metadata=self.metadata,
            num_images=num_images,
            image_sizes=np.array(self.sizes),
            objects_per_image=np.array(self.counts, dtype=np.int64),
            object_sides=np.concatenate(self.sides) if self.sides else np.zeros((0, dims)),
            object_volumes=np.concatenate(self.volumes) if self.volumes else np.zeros(0, np.int64),
            box_overlaps=np.concatenate(self.overlaps) if self.overlaps else np.zeros(0),
            touching=self.touching / count if count else 0.0,
            foreground=np.array(self.foreground),
            class_shares=dict(zip(self.metadata.class_names, shares, strict=True)),
            spacing=spacing,
            unit=self.unit,
            spacing_ratio=_spread(self.spacings),
            channel_ranges=tuple(tuple(float(v) for v in row) for row in ranges),  # type: ignore[misc]
            dtypes=dtypes,
            saturated=float(np.mean(self.saturated)),
            coloured=self.coloured[True] > self.coloured[False],
            broken=self.broken,
            seconds=seconds,
        )


def _spread(spacings: list[tuple[float, ...]]) -> float:
    """Return the largest ratio between two spacings on one axis."""
    if not spacings:
        return 1.0
    steps = np.array(spacings)
    return float((steps.max(axis=0) / steps.min(axis=0)).max())


def _boxes_of(layer: Tensor, ids: Tensor) -> Tensor:
    """Return the boxes of some ids of a label map, in one pass over it."""
    from scipy.ndimage import find_objects

    found = find_objects(layer.numpy())
    rows = []
    for identity in ids.tolist():
        region = found[identity - 1]
        rows.append([float(s.start) for s in region[::-1]] + [float(s.stop) for s in region[::-1]])
    return torch.tensor(rows)


def _touching(layer: Tensor) -> set[int]:
    """Return the ids that have another id beside them along an axis."""
    found: set[int] = set()
    for axis in range(layer.ndim):
        one, other = (
            layer.narrow(axis, 0, layer.shape[axis] - 1),
            layer.narrow(axis, 1, layer.shape[axis] - 1),
        )
        meet = (one != other) & (one > 0) & (other > 0)
        found.update(torch.unique(torch.cat([one[meet], other[meet]])).tolist())
    return found


def _percentiles(values: np.ndarray, which: tuple[int, ...]) -> dict[str, Any]:
    """Return percentiles by name, ``p50`` for the median; nothing of nothing."""
    if not len(values):
        return {}
    table = np.percentile(values, which, axis=0)
    return {f"p{name}": np.round(row, 4).tolist() for name, row in zip(which, table, strict=True)}

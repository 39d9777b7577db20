"""Read a whole dataset once: what it holds, and what would make a training fail."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pixvox.data.datamodule import check_fits
from pixvox.data.dataset import Dataset
from pixvox.data.datasets.layout import split_names
from pixvox.data.datasets.open import open_dataset
from pixvox.data.fingerprint import stored_types
from pixvox.data.metadata import Metadata
from pixvox.data.options import check_options
from pixvox.data.sample import Sample
from pixvox.data.views import read_sample
from pixvox.errors import DataError
from pixvox.signatures import signature

_SHOWN = 10
_DTYPES_LOOKED_AT = 20


@dataclass
class SplitReport:
    """What one split holds; sizes are in array order.

    Args:
        metadata: Task, classes, channels, dimensions.
        images: Number of images.
        unlabelled: Images without annotations.
        empty: Annotated images without an object (instance tasks).
        broken: Images that could not be used.
        sizes: Number of images by size, as ``"256 x 256"``.
        dtypes: Number types in the files, of the first images.
        spacings: Number of images by spacing.
        intensity: Lowest low and highest high percentile of all images.
        objects: Objects of all images, ignored ones left out.
        ignored: Crowds and other ignored objects.
        objects_per_image: Fewest, mean, most.
        object_sizes: Smallest, median and largest object in pixels or voxels.
        classes: Objects by class name (instance), or share of the labelled pixels (semantic).
    """

    metadata: dict[str, Any]
    images: int = 0
    unlabelled: int = 0
    empty: int = 0
    broken: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    dtypes: list[str] = field(default_factory=list)
    spacings: dict[str, int] = field(default_factory=dict)
    intensity: tuple[float, float] | None = None
    objects: int = 0
    ignored: int = 0
    objects_per_image: tuple[int, float, int] | None = None
    object_sizes: tuple[int, int, int] | None = None
    classes: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """What a dataset holds.

    Args:
        path: Where it is.
        splits: Report by split.
        errors: What would make a training fail.
        warnings: What is worth a look.
    """

    path: str
    splits: dict[str, SplitReport] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when a training would not fail on the data."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        lines = [self.path]
        for name, split in self.splits.items():
            lines += ["", *_split_lines(name, split)]
        for title, messages in (("errors", self.errors), ("warnings", self.warnings)):
            if messages:
                lines += ["", f"{title}:", *(f"  - {message}" for message in messages[:_SHOWN])]
                if len(messages) > _SHOWN:
                    lines.append(f"  ... and {len(messages) - _SHOWN} more")
        lines += ["", "ready for training" if self.ok else "a training would fail; see the errors above"]
        return "\n".join(lines)


def check_dataset(path: str | Path, **options: Any) -> Report:
    """Read every image and annotation of a dataset.

    Args:
        path: The dataset.
        **options: Those of ``open_dataset``; ``on_invalid="drop"`` turns invalid annotations into warnings.

    Raises:
        ConfigError: If an option is unknown or of another type.
    """
    check_options(options, open_dataset, given=("path", "split"))
    report = Report(str(path))
    try:
        names = split_names(path)
    except DataError as error:
        report.errors.append(str(error))
        return report
    tolerant = options.pop("on_invalid", "raise") == "drop"
    metadata: dict[str, Metadata] = {}
    for split in ["train", "val", *(name for name in names if name in ("test", "unlabelled"))]:
        with _Collected() as messages:
            try:
                dataset = open_dataset(path, split, on_invalid="drop", **options)
            except DataError as error:
                report.errors.append(f"{split}: {error}")
                continue
            metadata[split] = dataset.metadata
            report.splits[split] = _check_split(dataset, split, report)
        dropped = [text for text in messages if "dropped" in text]
        if tolerant:
            report.warnings.extend(dropped)
        else:
            repair = "mend the file, or train without them by on_invalid=drop"
            report.errors.extend(f"{text}; {repair}" for text in dropped)
        report.warnings.extend(text for text in messages if text not in dropped)
    _compare(metadata, report)
    return report


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the ``key=value`` that are options of the data, and those that are left for a training.

    Example:
        >>> split_overrides(["task=instance", "backbone=simple"])
        (['task=instance'], ['backbone=simple'])
    """
    takes = signature(open_dataset).annotations
    of_data = [text for text in overrides if text.partition("=")[0] in takes]
    return of_data, [text for text in overrides if text not in of_data]


def _check_split(dataset: Dataset, split: str, report: Report) -> SplitReport:
    """Read all images of a split."""
    tally = _Tally(dataset.metadata)
    for index in range(len(dataset)):
        try:
            tally.add(read_sample(dataset, index))
        except DataError as error:
            tally.report.broken += 1
            report.errors.append(f"{split}: {error}")
    result = tally.finish()
    result.images = len(dataset)
    result.dtypes = stored_types(dataset, list(range(min(len(dataset), _DTYPES_LOOKED_AT))))
    if result.images == result.broken + result.unlabelled and split == "train":
        report.errors.append("train: there is no annotated image")
    if result.empty:
        report.warnings.append(f"{split}: {result.empty} of {result.images} images hold no object")
    absent = [name for name in dataset.metadata.class_names if not result.classes.get(name)]
    if absent and split == "train":
        report.warnings.append(f"train: no example of {len(absent)} classes: {', '.join(absent[:_SHOWN])}")
    return result


class _Tally:
    """Counts over the samples of one split."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.report = SplitReport(metadata.to_dict())
        self.sizes: Counter[str] = Counter()
        self.spacings: Counter[str] = Counter()
        self.counts: list[int] = []
        self.areas: list[int] = []
        self.classes = torch.zeros(metadata.num_classes, dtype=torch.int64)
        self.limits: list[tuple[float, float]] = []

    def add(self, sample: Sample) -> None:
        self.sizes[_by(sample.size)] += 1
        if sample.spacing is not None:
            self.spacings[f"{_by(sample.spacing)} {sample.unit}"] += 1
        if sample.intensity_range is not None:
            low, high = sample.intensity_range.unbind(1)
            self.limits.append((float(low.min()), float(high.max())))
        if not sample.annotated:
            self.report.unlabelled += 1
        if sample.layers is not None and sample.labels is not None and sample.ignore is not None:
            learned = ~sample.ignore
            areas = torch.bincount(sample.layers.flatten(), minlength=len(learned) + 1)[1:][learned]
            labels = sample.labels[learned][areas > 0]
            self.areas += areas[areas > 0].tolist()
            self.counts.append(len(labels))
            self.classes += torch.bincount(labels, minlength=len(self.classes))
            self.report.ignored += int(sample.ignore.sum())
        elif sample.class_map is not None:
            counts = torch.bincount(sample.class_map.flatten(), minlength=len(self.classes))
            self.classes += counts[: len(self.classes)]

    def finish(self) -> SplitReport:
        report = self.report
        report.sizes = dict(self.sizes.most_common())
        report.spacings = dict(self.spacings.most_common())
        if self.limits:
            report.intensity = (min(low for low, _ in self.limits), max(high for _, high in self.limits))
        if self.counts:
            report.objects = sum(self.counts)
            report.empty = self.counts.count(0)
            mean = report.objects / len(self.counts)
            report.objects_per_image = (min(self.counts), mean, max(self.counts))
        if self.areas:
            ordered = sorted(self.areas)
            report.object_sizes = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        values = self.classes.tolist()
        if self.metadata.task == "semantic":
            total = max(sum(values), 1)
            values = [value / total for value in values]
        report.classes = dict(zip(self.metadata.class_names, values, strict=True))
        return report


def _compare(metadata: dict[str, Metadata], report: Report) -> None:
    for split, other in metadata.items():
        if split != "train" and "train" in metadata:
            try:
                check_fits(metadata["train"], other, split)
            except DataError as error:
                report.errors.append(str(error))


def _split_lines(name: str, split: SplitReport) -> list[str]:
    data = split.metadata
    sizes = [f"{size} ({count})" for size, count in list(split.sizes.items())[:4]]
    if len(split.sizes) > 4:
        sizes.append(f"... {len(split.sizes)} sizes")
    state = f"{split.unlabelled} unlabelled, {split.broken} broken, {split.empty} empty"
    rows = [
        ("images", f"{split.images}, {state}"),
        ("kind", f"{data['task']}, {data['spatial_dims']}-D, {data['in_channels']} channels"),
        ("sizes", ", ".join(sizes) or "-"),
        ("types", ", ".join(split.dtypes) or "-"),
        ("spacing", ", ".join(list(split.spacings)[:4]) or "unknown"),
    ]
    if split.intensity is not None:
        rows.append(("intensities", f"{split.intensity[0]:g} .. {split.intensity[1]:g} (percentiles)"))
    if split.objects_per_image is not None:
        fewest, mean, most = split.objects_per_image
        ignored = f", {split.ignored} ignored" if split.ignored else ""
        rows.append(("objects", f"{split.objects}{ignored}; per image {fewest} .. {most}, mean {mean:.1f}"))
    if split.object_sizes is not None:
        small, middle, large = split.object_sizes
        rows.append(("object size", f"{small} .. {large}, median {middle} {_unit(data)}"))
    shares = data["task"] == "semantic"
    ordered = sorted(split.classes.items(), key=lambda item: -item[1])[:_SHOWN]
    balance = [f"{name} {value:.1%}" if shares else f"{name} {value}" for name, value in ordered]
    more = ", ..." if len(split.classes) > _SHOWN else ""
    rows.append(("classes", f"{len(split.classes)}: {', '.join(balance)}{more}"))
    return [name, *(f"  {title:<12} {text}" for title, text in rows)]


def _unit(data: dict[str, Any]) -> str:
    return "pixels" if data["spatial_dims"] == 2 else "voxels"


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


class _Collected(logging.Handler):
    """Collect the warnings of the readers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        self.log = logging.getLogger("pixvox.data")
        self.log.addHandler(self)
        self.propagated, self.log.propagate = self.log.propagate, False
        return self.messages

    def __exit__(self, *_: object) -> None:
        self.log.removeHandler(self)
        self.log.propagate = self.propagated

"""Open one split of a dataset at a path, whatever its layout, and say what was found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pixvox.data.dataset import Dataset, Subset
from pixvox.data.datasets.coco import CocoDataset
from pixvox.data.datasets.description import read_description
from pixvox.data.datasets.guess import guess_labels
from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.data.datasets.layout import SPLITS, Layout, Split, find_layout
from pixvox.data.images import MAX_PIXELS, Channels, list_images, read_image
from pixvox.data.metadata import Task
from pixvox.data.split import drawn_splits
from pixvox.errors import DataError

logger = logging.getLogger(__name__)


def open_dataset(
    path: str | Path,
    split: str = "train",
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    channels: Channels | None = None,
    spatial_dims: int | None = None,
    spacing: Sequence[float] | None = None,
    ignore_value: int | None = None,
    val_fraction: float = 0.2,
    seed: int = 42,
    on_invalid: Literal["raise", "drop"] = "raise",
    percentiles: Sequence[float] = (1.0, 99.8),
    max_pixels: int = MAX_PIXELS,
    allow_missing_chunks: bool = False,
) -> Dataset:
    """Open one split of the dataset at ``path``, whatever its layout.

    Layouts: COCO (``annotations/instances_{split}.json`` with ``images/{split}``, ``{split}/*.json`` beside the
    images, or one JSON file), and label folders (``images/{split}`` with ``labels/{split}``, or
    ``{split}/images`` with ``{split}/labels``, or ``images`` with ``labels``; ``masks`` means ``labels``). A
    ``dataset.json`` may state name, task, dims, classes, ignore_index and voxel_size_um; options given here
    win; the rest is found from the files.

    Args:
        path: Folder of the dataset, or a COCO JSON file.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"unlabelled"``.
        task: ``"instance"`` or ``"semantic"`` for label maps.
        classes: Names by class index, for label maps.
        channels: ``"rgb"`` or ``"grey"`` to convert, None for as given.
        spatial_dims: 2 or 3.
        spacing: Size of a pixel or voxel per axis in array order, for files that do not say.
        ignore_value: Value in semantic files of what is neither learned nor scored.
        val_fraction: Share of the images that becomes the val split when the dataset has none.
        seed: Seed of that draw.
        on_invalid: What ``CocoDataset`` does with annotations that cannot be used.
        percentiles: Those of ``Sample.intensity_range``.
        max_pixels: Limit on the pixels of a picture or page.
        allow_missing_chunks: Accept Zarr arrays with chunks that were never written.

    Raises:
        DataError: If nothing is found, or what is found cannot be used.
    """
    root = Path(path)
    if len(percentiles) != 2 or not 0 <= percentiles[0] <= percentiles[1] <= 100:
        raise DataError(f"percentiles must be two ascending numbers in 0..100, got {list(percentiles)}")
    if spatial_dims not in (None, 2, 3):
        raise DataError(f"spatial_dims must be 2 (images) or 3 (volumes), got {spatial_dims}")
    stated = read_description(root)
    layout = find_layout(root)
    chosen, part = _choose(layout, root, split)
    common: dict[str, Any] = {
        "channels": channels,
        "percentiles": percentiles,
        "max_pixels": max_pixels,
        "name": str(stated.get("name", root.stem)),
        "spacing": spacing if spacing is not None else stated.get("voxel_size_um", stated.get("spacing")),
    }
    dims = 2
    if layout.kind == "labels":
        reference = _choose(layout, root, "train")[0]
        dims = int(spatial_dims or stated.get("dims") or _find_dims(reference.images))
    if common["spacing"] is not None and len(common["spacing"]) != dims:
        raise DataError(f"{root}: spacing {list(common['spacing'])} needs {dims} values, in array order")
    dataset: Dataset
    if layout.kind == "coco" and task not in (None, "instance"):
        raise DataError(
            f"{root}: task={task}, but COCO files hold instances; leave task out, and choose an instance head"
        )
    if layout.kind == "coco" and chosen.annotations is not None:
        dataset = CocoDataset(chosen.images, chosen.annotations, on_invalid=on_invalid, **common)
    elif layout.kind == "coco":
        dataset = LabelFolder(chosen.images, None, **common)
    else:
        names = classes if classes is not None else stated.get("classes")
        ignored = ignore_value if ignore_value is not None else stated.get("ignore_index")
        values = _describe_labels(reference, dims, task or stated.get("task"), names, ignored)
        common |= values | {"spatial_dims": dims, "allow_missing_chunks": allow_missing_chunks}
        dataset = LabelFolder(chosen.images, chosen.annotations, unit=str(stated.get("unit", "um")), **common)
    _log_found(dataset, split, chosen)
    if part is not None:
        dataset = drawn_splits(dataset, {"val": val_fraction}, seed)[part]
    return _labelled_only(dataset) if split in ("val", "test") else dataset


def _describe_labels(
    split: Split, dims: int, task: Task | None, names: Any, ignored: int | None
) -> dict[str, Any]:
    """Return what is known and what must be guessed of label values, always from the train split."""
    listed = (
        list(names) if isinstance(names, (list, tuple)) else None
    )  # dataset.json may describe them in words
    return guess_labels(split.images, split.annotations, dims, task, listed, ignored)


def _choose(layout: Layout, root: Path, split: str) -> tuple[Split, str | None]:
    """Return where a split lies, and ``"train"`` or ``"val"`` when it is a part drawn from there."""
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    whole = layout.splits.get("all") or layout.splits.get("train")
    if split == "val" and "val" not in layout.splits and whole is not None:
        return whole, "val"
    if split == "train" and "val" not in layout.splits and whole is not None:
        return whole, "train"
    if split in layout.splits:
        return layout.splits[split], None
    raise DataError(f"{root} has no split {split!r}; it has {', '.join(layout.splits)}")


def _labelled_only(dataset: Dataset) -> Dataset:
    missing = set(dataset.unlabelled_indices())
    if not missing:
        return dataset
    logger.warning("%d images without annotations are left out of evaluation", len(missing))
    return Subset(dataset, [index for index in range(len(dataset)) if index not in missing])


def _find_dims(images: Path) -> int:
    first = next(iter(list_images(images).values()), None)
    if first is None:
        raise DataError(f"{images} holds no image that can be read")
    return len(read_image(first, allow_missing_chunks=True).size)


def _log_found(dataset: Dataset, split: str, chosen: Split) -> None:
    data = dataset.metadata
    missing = len(dataset.unlabelled_indices()) if chosen.annotations else 0
    logger.info(
        "%s, split %s: %d images%s with %s; %s, %d-D, %d channels, classes: %s",
        data.name,
        split,
        len(dataset),
        f", {len(dataset) - missing} of them" if missing else "",
        f"annotations in {chosen.annotations}" if chosen.annotations else "no annotations",
        data.task,
        data.spatial_dims,
        data.in_channels,
        ", ".join(data.class_names[:12]) + (", ..." if len(data.class_names) > 12 else ""),
    )

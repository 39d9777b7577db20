"""Find out from label maps what was not stated: task, classes, ignored value."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.datasets.pairing import pair_files
from pixvox.data.images import read_labels
from pixvox.data.metadata import Task

logger = logging.getLogger(__name__)

_LOOKED_AT = 32
_MOST_CLASSES = 64


def guess_labels(
    images: Path,
    labels: Path | None,
    spatial_dims: int,
    task: Task | None,
    names: list[str] | None,
    ignored: int | None,
) -> dict[str, Any]:
    """Return the arguments of ``LabelFolder`` that describe label values; whatever is guessed is logged."""
    if task == "instance":
        return {"task": task, "class_names": names or ["object"]}
    if task == "semantic" and names:
        return {"task": task, "class_names": names, "ignore_value": 255 if ignored is None else ignored}
    present = _values(images, labels, spatial_dims)
    union = sorted(set().union(*present)) if present else [0]
    if task is None:
        task = _guess_task(present, union)
        logger.info("label maps: taken for %s (values up to %d); task=... says otherwise", task, max(union))
    if task == "instance":
        return {"task": task, "class_names": names or ["object"]}
    if union == [0, 255] and ignored is None:
        logger.info("label maps: values 0 and 255 are taken for background and foreground")
        return {
            "task": task, "class_names": names or ["background", "foreground"],
            "values": {0: 0, 255: 1}, "ignore_value": None,
        }  # fmt: skip
    ignored = 255 if ignored is None else ignored
    highest = max((value for value in union if value != ignored), default=0)
    if names is None:
        names = ["background", *(f"class_{value}" for value in range(1, max(highest, 1) + 1))]
        logger.info(
            "label maps: %d classes found in %d files; classes=[...] names them", len(names), len(present)
        )
    return {"task": task, "class_names": names, "ignore_value": ignored}


def _values(images: Path, labels: Path | None, spatial_dims: int) -> list[set[int]]:
    """Return the values of each of some label maps, evenly spaced over the split."""
    maps = [label for _, label in pair_files(images, labels) if label is not None]
    step = max(1, len(maps) // _LOOKED_AT)
    return [
        set(np.unique(read_labels(path, spatial_dims, allow_missing_chunks=True)).tolist())
        for path in maps[::step]
    ]


def _guess_task(present: Sequence[set[int]], union: Sequence[int]) -> Task:
    """Object ids run from 1 to a different number in each file; classes recur."""
    if max(union) > 255 or len(union) > _MOST_CLASSES:
        return "instance"
    counts = [len(values - {0}) for values in present]
    highest = [max(values) for values in present]
    consecutive = sum(count == top for count, top in zip(counts, highest, strict=True))
    if max(union) > 3 and len(set(highest)) > len(present) / 2 and consecutive > len(present) / 2:
        return "instance"
    return "semantic"

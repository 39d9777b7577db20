"""Open several datasets at their paths as one, in one label space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pixvox.data.concatenation import Concatenation
from pixvox.data.dataset import Dataset
from pixvox.data.datasets.layout import split_names
from pixvox.data.datasets.open import open_dataset
from pixvox.data.options import check_options
from pixvox.errors import DataError


def open_concatenated(
    sources: Mapping[str, Mapping[str, Any]],
    split: str = "train",
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Dataset:
    """Open one split of several datasets as one.

    Args:
        sources: By a name of your choice: ``path``, any option of ``open_dataset`` for this one, and
            ``mapping``, new class name by old class name, null for what is to be ignored there.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"unlabelled"``; sources that lack a test or unlabelled
            split are left out of it.
        class_names: The common classes; by default the union in the order of the sources.
        **options: Options of ``open_dataset`` for all.

    Raises:
        ConfigError: If an option is unknown or of another type.
        DataError: If a source cannot be opened, or they do not go together.
    """
    if not sources:
        raise DataError("there is nothing to join; list the datasets as sources={NAME: {path: FOLDER}, ...}")
    opened: dict[str, Dataset] = {}
    mapping: dict[str, Mapping[str, str | None]] = {}
    for name, source in sources.items():
        own = {**options, **source}
        if "path" not in own:
            raise DataError(f"sources.{name} needs a path: {name}: {{path: FOLDER}}")
        path, mapping[name] = own.pop("path"), own.pop("mapping", None) or {}
        check_options(own, open_dataset, given=("path", "split"))
        if split in ("test", "unlabelled") and split not in split_names(path):
            continue
        opened[name] = open_dataset(path, split, **own)
    if not opened:
        raise DataError(f"no source has a split {split!r}: {', '.join(sources)}")
    return Concatenation(opened, class_names, {name: mapping[name] for name in opened})

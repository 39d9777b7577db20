"""Open several datasets, at their paths or by their names, as one, in one label space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pixvox.data.concatenation import Concatenation
from pixvox.data.dataset import Dataset
from pixvox.data.datasets.layout import split_names
from pixvox.data.datasets.named import named_splits, open_named
from pixvox.data.datasets.open import open_dataset
from pixvox.data.options import check_options
from pixvox.errors import DataError


def open_concatenated(
    sources: Mapping[str, Mapping[str, Any] | None],
    split: str = "train",
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Dataset:
    """Open one split of several datasets as one.

    Args:
        sources: By a name of your choice: ``path`` and any option of ``open_dataset`` for this one, or ``data``,
            the name of a configuration such as ``cityscapes``, and any option of that dataset; and ``mapping``, new
            class name by old class name, null for what is to be ignored there, ``"*"`` for all that is not listed.
            A source that is null is left out.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"unlabelled"``; sources that lack a test or unlabelled
            split are left out of it, those by name that lack a val split as well.
        class_names: The common classes; by default the union in the order of the sources.
        **options: Options of ``open_dataset`` for all that are given by a path.

    Raises:
        ConfigError: If an option is unknown or of another type.
        DataError: If a source cannot be opened, or they do not go together.
    """
    if not sources:
        raise DataError("there is nothing to join; list the datasets as sources={NAME: {path: FOLDER}, ...}")
    opened: dict[str, Dataset] = {}
    mapping: dict[str, Mapping[str, str | None]] = {}
    for name, source in sources.items():
        if source is None:
            continue
        mapping[name] = source.get("mapping") or {}
        own = {key: value for key, value in source.items() if key != "mapping"}
        part = _named(own, split) if "data" in own else _at_path(name, {**options, **own}, split)
        if part is not None:
            opened[name] = part
    if not opened:
        raise DataError(f"no source has a split {split!r}: {', '.join(sources)}")
    return Concatenation(opened, class_names, {name: mapping[name] for name in opened})


def _named(source: Mapping[str, Any], split: str) -> Dataset | None:
    """Return a split of a dataset given by the name of its configuration, None when it has no such split."""
    own = dict(source)
    name = own.pop("data")
    return open_named(name, split, **own) if split in named_splits(name) else None


def _at_path(name: str, source: Mapping[str, Any], split: str) -> Dataset | None:
    """Return a split of a dataset given by its path, None when it has no such split."""
    own = dict(source)
    if "path" not in own:
        raise DataError(
            f"sources.{name} needs a path: {name}: {{path: FOLDER}}, or a name: {name}: {{data: NAME}}"
        )
    path = own.pop("path")
    check_options(own, open_dataset, given=("path", "split"))
    if split in ("test", "unlabelled") and split not in split_names(path):
        return None
    return open_dataset(path, split, **own)

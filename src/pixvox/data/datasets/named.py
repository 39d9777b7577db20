"""Open one split of a dataset by the name of its configuration."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pixvox.data.dataset import Dataset
from pixvox.data.options import check_options
from pixvox.errors import DataError


def open_named(name: str, split: str = "train", **options: Any) -> Dataset:
    """Open one split of what ``data=NAME`` on the command line means.

    Args:
        name: Name of a configuration of data, such as ``"cityscapes"``.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"unlabelled"``.
        **options: Options of its dataset that are to be others, such as ``root="/big/disk/cityscapes"``.

    Raises:
        ConfigError: If there is no such configuration, or it takes no such option.
        DataError: If it has no such split, or files are missing.

    Example:
        >>> len(open_named("shapes", "val", num_images=3, image_size=32, radius=(4, 8)))
        3
    """
    from pixvox.configuration import instantiate
    from pixvox.signatures import locate

    splits = _splits(name)
    if split not in splits:
        raise DataError(f"data={name} has no split {split!r}; it has {', '.join(splits)}")
    check_options(options, locate(splits[split]._target_))
    dataset: Dataset = instantiate(splits[split], f"data.{split}", **options)
    return dataset


def named_splits(name: str) -> tuple[str, ...]:
    """Return the splits that the configuration of a dataset states.

    Example:
        >>> named_splits("coco2017")
        ('train', 'val')
    """
    return tuple(_splits(name))


@lru_cache(maxsize=32)
def _splits(name: str) -> dict[str, Any]:
    from pixvox.configuration import compose

    data = compose("train", [f"data={name}"]).data
    return {
        split: data[split]
        for split in ("train", "val", "test", "unlabelled")
        if split in data and data[split] is not None
    }

"""Which label map belongs to which image: the one of the same name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pixvox.data.images import list_images
from pixvox.errors import DataError

logger = logging.getLogger(__name__)

LABEL_ENDINGS = ("_mask", "_masks", "_label", "_labels", "_seg", "_gt")
"""Endings that a label map's name may have beyond its image's name."""


def pair_files(images: Path, labels: Path | None) -> list[tuple[Path, Path | None]]:
    """Pair images and label maps by name, sorted by name.

    Raises:
        DataError: If there are no images, or label maps without an image.
    """
    found = list_images(images)
    if not found:
        raise DataError(f"{images} holds no image that can be read")
    if labels is None:
        return [(image, None) for image in found.values()]
    maps = {_image_name(name, found): path for name, path in list_images(labels).items()}
    orphans = sorted(str(path) for name, path in maps.items() if name not in found)
    if orphans:
        raise DataError(
            f"{len(orphans)} label maps in {labels} have no image of the same name in {images}, the first: "
            f"{', '.join(orphans[:3])}"
        )
    bare = len(found) - len(maps)
    if bare:
        logger.info("%s: %d of %d images have no label map and are unlabelled", images, bare, len(found))
    return [(image, maps.get(name)) for name, image in found.items()]


def _image_name(name: str, images: Mapping[str, Path]) -> str:
    """Return the name of the image that a label map belongs to."""
    if name in images:
        return name
    shortened = [name[: -len(ending)] for ending in LABEL_ENDINGS if name.endswith(ending)]
    return next((short for short in shortened if short in images), name)

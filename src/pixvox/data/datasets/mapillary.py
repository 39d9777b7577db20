"""Mapillary Vistas, which says itself what its labels are."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pixvox.data.datasets.paired_files import PairedFiles
from pixvox.data.label_space import IGNORED, LabelSpace, get_label_space
from pixvox.data.roots import dataset_root
from pixvox.errors import DataError
from pixvox.structures import IGNORE_INDEX

logger = logging.getLogger(__name__)

Version = Literal["v1.2", "v2.0"]

_KNOWN: dict[str, str] = {"v1.2": "Mapillary{v1.2}", "v2.0": "Mapillary"}


def mapillary_vistas(
    split: str = "training", version: Version = "v2.0", root: str | Path | None = None, **options: Any
) -> PairedFiles:
    """Open one split of Mapillary Vistas: 18,000 images to train on, 2,000 to validate.

    "The Mapillary Vistas Dataset for Semantic Understanding of Street Scenes" (Neuhold et al., 2017,
    https://doi.org/10.1109/ICCV.2017.534). Labels that are not evaluated are ignored: 116 of 124 stay in version 2.0,
    65 of 66 in version 1.2.

    Args:
        split: ``"training"``, ``"validation"``, or ``"testing"``, which has no label maps.
        version: ``"v1.2"`` or ``"v2.0"``; a download of version 2.0 holds both.
        root: Folder that holds ``training`` and ``config_v2.0.json`` (``config.json`` in the first downloads).
        **options: Further options of ``PairedFiles``.

    Raises:
        DataError: If files are missing or do not match.
    """
    if version not in _KNOWN:
        raise DataError(f"version must be one of {', '.join(_KNOWN)}, got {version!r}")
    folder = dataset_root(options.get("name", "mapillary"), root)
    labels = [f"{{split}}/{version}/labels/{{name}}.png"]
    if version == "v1.2":
        labels.append("{split}/labels/{name}.png")  # as before there was a second version
    return PairedFiles(
        **{
            "images": "{split}/images/{name}.jpg",
            "labels": None if split == "testing" else labels,
            "label_space": vistas_labels(folder, version),
            "name": "mapillary",
            "split": split,
            "root": folder,
            **options,
        }
    )


def mirrored_names(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return pairs of classes whose names differ in left and right alone, as painted arrows do.

    Example:
        >>> mirrored_names(["Road", "Arrow (Left)", "Arrow (Straight)", "Arrow (Right)"])
        ((1, 3),)
    """
    places = {name: place for place, name in enumerate(names)}
    return tuple(
        (place, places[name.replace("Left", "Right")])
        for name, place in places.items()
        if "Left" in name and name.replace("Left", "Right") in places
    )


def vistas_labels(folder: Path, version: Version) -> LabelSpace:
    """Return the label space that the configuration of a download states, the known one when it has none.

    Raises:
        DataError: If the configuration is damaged.
    """
    files = [f"config_{version}.json", *(["config.json"] if version == "v1.2" else [])]
    file = next((folder / name for name in files if (folder / name).is_file()), None)
    known = get_label_space(_KNOWN[version])
    if file is None:
        logger.warning("%s holds no %s; labels are taken as known", folder, files[0])
        return known
    try:
        labels = json.loads(file.read_bytes())["labels"]
        evaluated = [bool(label.get("evaluate", True)) for label in labels]
        kept = [index for index, keep in enumerate(evaluated) if keep]
        names = tuple(str(labels[index]["readable"]) for index in kept)
        return LabelSpace(
            name=known.name,
            class_names=names,
            colors=tuple((int(r), int(g), int(b)) for r, g, b in (labels[index]["color"] for index in kept)),
            codes={
                **dict.fromkeys([*range(len(labels)), IGNORE_INDEX], IGNORED),
                **{index: label for label, index in enumerate(kept)},
            },
            is_thing=tuple(bool(labels[index].get("instances", False)) for index in kept),
            flip_pairs=mirrored_names(names),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} is damaged: it should hold labels with readable, color, evaluate and instances ({error!r})"
        ) from error

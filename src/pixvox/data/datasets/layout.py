"""Find out how a folder holds a dataset, or say what was looked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixvox.errors import DataError

SPLITS = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled"),
}
LABEL_FOLDERS = ("labels", "masks", "annotations", "label", "mask")
IMAGE_FOLDERS = ("images", "image", "imgs")


@dataclass(frozen=True)
class Split:
    """Where one split lies: ``annotations`` is a JSON file (COCO), a folder of label maps, or None."""

    images: Path
    annotations: Path | None


@dataclass(frozen=True)
class Layout:
    """What a folder holds: splits by name; the only one of a dataset without splits is called ``"all"``."""

    kind: Literal["coco", "labels"]
    splits: dict[str, Split]


def split_names(path: str | Path) -> tuple[str, ...]:
    """Return the names of the splits at ``path``; ``("all",)`` for a dataset without splits."""
    return tuple(find_layout(Path(path)).splits)


def find_layout(root: Path) -> Layout:
    """Return the layout of a folder, or of a COCO file.

    Raises:
        DataError: If none is known; the message names what was looked for.
    """
    if not root.exists():
        raise DataError(f"the dataset {root} does not exist")
    if root.is_file():
        return Layout("coco", {"all": Split(_images_of(root, root.parent, ""), root)})
    coco = _find_coco(root)
    if coco:
        bare = (root / folder / name for folder in IMAGE_FOLDERS for name in SPLITS["unlabelled"])
        unlabelled = next((folder for folder in bare if folder.is_dir()), None)
        if unlabelled is not None:
            coco["unlabelled"] = Split(unlabelled, None)
        return Layout("coco", coco)
    labels = _find_label_folders(root)
    if labels:
        return Layout("labels", labels)
    raise DataError(
        f"{root} holds no dataset of a known layout; looked for annotations/*.json with images/ (COCO), for "
        f"images/train with labels/train, train/images with train/labels, and images/ with labels/ or "
        f"masks/; found {', '.join(sorted(entry.name for entry in root.iterdir())[:8]) or 'an empty folder'}"
    )


def _find_coco(root: Path) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for split, aliases in SPLITS.items():
        for alias in aliases:
            candidates = [
                *sorted((root / "annotations").glob(f"*{alias}.json")),
                *sorted((root / alias).glob("*.json")),
                *sorted(root.glob(f"*{alias}.json")),
            ]
            candidates = [
                file for file in candidates if not file.name.startswith(("captions", "person_keypoints"))
            ]
            if candidates and split not in splits:
                splits[split] = Split(_images_of(candidates[0], root, alias), candidates[0])
    if splits:
        return splits
    single = [
        *sorted((root / "annotations").glob("*.json")),
        *(file for file in sorted(root.glob("*.json")) if file.name != "dataset.json"),
    ]
    return {"all": Split(_images_of(single[0], root, ""), single[0])} if len(single) == 1 else {}


def _images_of(file: Path, root: Path, alias: str) -> Path:
    """Return the first folder that holds the first image of a COCO file."""
    candidates = [
        root / "images" / alias,
        root / alias / "images",
        root / alias,
        root / "images",
        file.parent,
        root,
    ]
    try:
        first = json.loads(file.read_bytes())["images"][0]["file_name"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return candidates[0]  # reading the file properly will tell what is wrong with it
    for folder in candidates:
        if (folder / first).is_file() or (folder / Path(first).name).is_file():
            return folder
    return candidates[0]


def _find_label_folders(root: Path) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for split, aliases in SPLITS.items():
        for alias in aliases:
            for images in IMAGE_FOLDERS:
                for folder, parent in ((root / images / alias, root), (root / alias / images, root / alias)):
                    if split in splits or not folder.is_dir():
                        continue
                    nested = [parent / labels / (alias if parent is root else "") for labels in LABEL_FOLDERS]
                    found = next((labels for labels in nested if labels.is_dir()), None)
                    if found is not None or split == "unlabelled":
                        splits[split] = Split(folder, found)
    if "train" in splits:
        return splits
    images_folder = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    labels_folder = next((root / name for name in LABEL_FOLDERS if (root / name).is_dir()), None)
    if images_folder is None or labels_folder is None:
        return {}
    return {"all": Split(images_folder, labels_folder)}

"""COCO 2017: downloaded, checked and unpacked when it is not there yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pixvox.data.archives import unpack
from pixvox.data.dataset import Dataset, Subset, seeded_subset
from pixvox.data.datasets.coco import CocoDataset
from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.data.download import RemoteFile, locked
from pixvox.data.download import download as fetched
from pixvox.data.images import MAX_PIXELS
from pixvox.data.roots import download_root
from pixvox.errors import DataError

BASE_URLS = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")

ARCHIVES = {
    "train2017": ("zips/train2017.zip", "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
    "val2017": ("zips/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80"),
    "test2017": ("zips/test2017.zip", "md5:77ad2c53ac5d0aea611d422c0938fb35"),
    "unlabeled2017": ("zips/unlabeled2017.zip", "md5:7ebc562819fdb32847aab79530457326"),
    "annotations": ("annotations/annotations_trainval2017.zip", "md5:f4bbac642086de4f52a3fdda2de5fa2c"),
}
"""Path and sum by what an archive holds; the sums are those that several projects check independently."""


def coco2017(
    root: str | Path | None = None,
    split: Literal["train", "val", "test", "unlabelled"] = "train",
    download: bool = True,
    unlabelled_from: Literal["unlabeled2017", "test2017"] = "unlabeled2017",
    base_urls: Sequence[str] = BASE_URLS,
    keep_archives: bool = False,
    seed: int = 42,
    on_invalid: Literal["raise", "drop"] = "drop",
    percentiles: Sequence[float] = (1.0, 99.8),
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Open one split of COCO 2017, and fetch what it needs first: 20 GB for train and val.

    "Microsoft COCO: Common Objects in Context" (Lin et al., 2014, https://arxiv.org/abs/1405.0312). The 80
    categories, whose ids run to 90 with gaps, become the labels 0..79 in the order of their ids.

    Args:
        root: Folder of the dataset: ``annotations/``, ``train2017/`` and so on, here or below ``images/``.
            What is there is used and not downloaded. None takes that of ``datasets.toml``, or ``coco2017``
            below the folder of ``PIXVOX_DATA`` or below ``datasets/``.
        split: ``"train"`` (118,287 images), ``"val"`` (5,000), ``"test"`` or ``"unlabelled"``; the last two
            have no public annotations.
        download: Fetch what is missing; otherwise it is an error.
        unlabelled_from: Where unlabelled images come from: ``"unlabeled2017"`` (123,403), with all of test2017
            (40,670) as ``test``; or ``"test2017"``, halved by ``seed`` into ``unlabelled`` and ``test``.
        base_urls: Addresses that hold ``zips/`` and ``annotations/``, tried in order.
        keep_archives: Keep the archives in ``root`` once they are unpacked.
        seed: Seed of the halves.
        on_invalid: What ``CocoDataset`` does with the few annotations without an area.
        percentiles: Those of ``Sample.intensity_range``.
        max_pixels: Limit on the pixels of a picture.

    Raises:
        DataError: If something is missing and cannot be fetched.
    """
    root = download_root("coco2017", root)
    if split not in ("train", "val", "test", "unlabelled"):
        raise DataError(f"split must be train, val, test or unlabelled, got {split!r}")

    def folder(name: str) -> Path:
        return _present(root, name, download, base_urls, keep_archives)

    if split in ("train", "val"):
        annotations = folder("annotations") / f"instances_{split}2017.json"
        return CocoDataset(
            folder(f"{split}2017"),
            annotations,
            channels="rgb",
            on_invalid=on_invalid,
            percentiles=percentiles,
            max_pixels=max_pixels,
            name="coco2017",
        )
    source = unlabelled_from if split == "unlabelled" else "test2017"
    images = LabelFolder(
        folder(source), None, channels="rgb", percentiles=percentiles, max_pixels=max_pixels, name="coco2017"
    )
    if unlabelled_from != "test2017":
        return images
    half = seeded_subset(len(images), len(images) // 2, seed)
    if split == "unlabelled":
        half = sorted(set(range(len(images))) - set(half))
    return Subset(images, half)


def _present(root: Path, name: str, fetch: bool, base_urls: Sequence[str], keep: bool) -> Path:
    """Return the folder of images or annotations, fetched when it is missing."""
    path, checksum = ARCHIVES[name]
    archive = Path(path).name
    places = [root / name, root / "images" / name]

    def found() -> Path | None:
        return next((place for place in places if place.is_dir() and any(place.iterdir())), None)

    present = found()
    if present is not None:
        return present
    if not fetch:
        raise DataError(
            f"{root} holds no {name}; set download=true, or unpack {archive} of cocodataset.org there "
            f"(looked for {' and '.join(map(str, places))})"
        )
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / name):
        present = found()  # by the process that had the lock before
        if present is not None:
            return present
        urls = tuple(f"{base.rstrip('/')}/{path}" for base in base_urls)
        packed = fetched(RemoteFile(archive, urls, checksum), root)
        unpack(packed, root)
        if not keep:
            packed.unlink(missing_ok=True)
    present = found()
    if present is None:
        raise DataError(f"{archive} holds no folder {name}; give the right address as base_urls")
    return present

"""Images and semantic label maps whose names match: the shape of most public datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, Integer

from pixvox.data.dataset import Dataset
from pixvox.data.datasets.fetch import Archive, fetch
from pixvox.data.datasets.label_folder import check_same_size
from pixvox.data.datasets.patterns import Pattern, find_first, only, pair
from pixvox.data.image_source import ImageSource
from pixvox.data.images import MAX_PIXELS, Channels, read_image, read_labels
from pixvox.data.label_space import Color, LabelSpace, get_label_space, packed
from pixvox.data.metadata import metadata_of
from pixvox.data.roots import dataset_root
from pixvox.data.sample import Sample
from pixvox.errors import DataError

LabelReader = Callable[[Path], Integer[np.ndarray, "*spatial"]]
"""Reads a label map from a file that is no picture."""


class PairedFiles(Dataset):
    """Pictures and label maps that belong together by their names, read through a label space.

    A dataset is thus a configuration: two patterns, and the name of a label space. Nothing relies on the order of
    files; whatever has no partner is said.

    Args:
        images: Where images lie, below the root: ``"images/{split}/{name}.jpg"``. ``{split}`` and ``fields`` are put
            in; other names in braces stand for part of a file's or folder's name, which image and label map share;
            ``*`` is anything, ``**`` any folders. Of several patterns the first that fits any file counts.
        labels: Where label maps lie, in the same way; None when there are none.
        label_space: Name of a label space, the path of its TOML file, or the label space.
        name: Name of the dataset, by which its folder is found.
        split: What stands for ``{split}``.
        root: Folder of the dataset; None looks it up, see ``dataset_root``.
        inside: Folder below the root that an archive brings along; the root itself when it is not there.
        fields: What stands for other fields, such as ``scene: Urban``; None leaves a field open.
        names_file: File with a ``{name}`` at the start of each line, to which the split is limited.
        names: The same as a list.
        unpaired: ``"error"``, or ``"skip"`` to leave out what has no partner, and count it.
        reduce_zero_label: Ignore the first class and count the others from 0.
        reader: Reads label maps that are no pictures.
        download: Fetch what is missing.
        archives: Where from; see ``fetch``.
        channels: ``"rgb"`` or ``"grey"``.
        percentiles: Those of ``Sample.intensity_range``.
        max_pixels: Limit on the pixels of a picture.

    Raises:
        DataError: If files are missing or do not match; the message says what was looked for and what is there.
    """

    def __init__(
        self,
        images: str | Sequence[str],
        labels: str | Sequence[str] | None,
        label_space: str | Path | LabelSpace,
        name: str,
        split: str = "train",
        root: str | Path | None = None,
        inside: str | None = None,
        fields: Mapping[str, str | None] | None = None,
        names_file: str | None = None,
        names: Sequence[str] | None = None,
        unpaired: Literal["error", "skip"] = "error",
        reduce_zero_label: bool = False,
        reader: LabelReader | None = None,
        download: bool = False,
        archives: Sequence[Archive] = (),
        channels: Channels = "rgb",
        percentiles: Sequence[float] = (1.0, 99.8),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if unpaired not in ("error", "skip"):
            raise DataError(f"unpaired must be 'error' or 'skip', got {unpaired!r}")
        self.root = fetch(name, archives, root) if download else dataset_root(name, root)
        if inside is not None and (self.root / inside).is_dir():
            self.root = self.root / inside
        fixed = {"split": split, **{key: value for key, value in (fields or {}).items() if value is not None}}
        listed = _listed(self.root, names_file, names, fixed)
        self.pairs = _pairs(
            self.root, _filled(images, fixed), _filled(labels, fixed), listed, unpaired == "skip"
        )
        self.space = label_space if isinstance(label_space, LabelSpace) else get_label_space(label_space)
        if reduce_zero_label:
            self.space = self.space.without_first()
        self.reader, self.max_pixels = reader, max_pixels
        low, high = percentiles
        in_channels = 1 if channels == "grey" else 3
        self.images = ImageSource(
            2, in_channels, channels, percentiles=(float(low), float(high)), max_pixels=max_pixels
        )
        self.metadata = metadata_of(self.space, in_channels, name)

    def __len__(self) -> int:
        return len(self.pairs)

    def source(self, index: int) -> str:
        """Return the file of image ``index``."""
        return str(self.pairs[index][0])

    def source_files(self, index: int) -> list[Path]:
        """Return image and label map ``index``."""
        return [file for file in self.pairs[index] if file is not None]

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows, from its label map alone."""
        label = self.pairs[index][1]
        if label is None:
            return set()
        return set(_present(self._class_map(label))) - {self.metadata.ignore_index}

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images without a label map: all or none."""
        return [index for index, (_, label) in enumerate(self.pairs) if label is None]

    def __getitem__(self, index: int) -> Sample:
        image, label = self.pairs[index]
        sample, invalid = self.images.read(image, index)
        if label is None:
            return sample
        class_map = torch.from_numpy(self._class_map(label))
        check_same_size(image, sample.size, label, tuple(class_map.shape))
        if invalid is not None:
            class_map[invalid] = self.metadata.ignore_index
        return replace(sample, class_map=class_map)

    def _class_map(self, path: Path) -> Int64[np.ndarray, "height width"]:
        return read_class_map(path, self.space, self.reader, self.max_pixels)


def read_class_map(
    path: Path, space: LabelSpace, reader: LabelReader | None = None, max_pixels: int = MAX_PIXELS
) -> Int64[np.ndarray, "height width"]:
    """Read a label map as class indices.

    Args:
        path: The file.
        space: What its values or colours mean.
        reader: Reads it when it is no picture.
        max_pixels: Limit on the pixels of a picture.

    Raises:
        DataError: If it cannot be read, or holds something that stands for no class.
    """
    if reader is not None:
        return space.encode(reader(path), path)
    if space.masks == "colors":
        picture = read_image(path, 2, max_pixels=max_pixels).data
        if picture.shape[0] != 3:
            raise DataError(
                f"{path}: label maps of {space.name} are pictures of 3 channels, a colour for each class; this one has "
                f"{picture.shape[0]}: take the coloured files, or a label space of values"
            )
        return space.encode(packed(picture), path)
    labels = read_labels(path, 2, max_pixels)
    if space.palette:
        space.check_palette(_palette(path), _present(labels), path)
    return space.encode(labels, path)


def _pairs(
    root: Path,
    images: Sequence[Pattern],
    labels: Sequence[Pattern],
    listed: tuple[Sequence[str], str] | None,
    skip: bool,
) -> list[tuple[Path, Path | None]]:
    """Return images with their label maps, None where there are no patterns for these."""
    pattern, files = find_first(images, root)
    if listed is not None:
        files = only(files, *listed)
    if not labels:
        return [(path, None) for path in files.values()]
    label_pattern, label_files = find_first(labels, root)
    if label_pattern.fields != pattern.fields:
        raise DataError(
            f"images={pattern} has the fields {', '.join(pattern.fields)}, labels={label_pattern} "
            f"{', '.join(label_pattern.fields)}; both need the same, to tell what belongs together"
        )
    if listed is not None:
        chosen = set(listed[0])
        label_files = {key: path for key, path in label_files.items() if dict(key)["name"] in chosen}
    return [*pair(files, label_files, (pattern, label_pattern), skip)]


def _filled(patterns: str | Sequence[str] | None, fixed: Mapping[str, str]) -> list[Pattern]:
    """Return patterns with the fields that are known put in."""
    texts = [patterns] if isinstance(patterns, str) else list(patterns or ())
    for field, value in fixed.items():
        texts = [text.replace(f"{{{field}}}", value) for text in texts]
    return [Pattern(text) for text in texts]


def _listed(
    root: Path, file: str | None, names: Sequence[str] | None, fixed: Mapping[str, str]
) -> tuple[Sequence[str], str] | None:
    """Return the names to which a split is limited, and where they stand; None when it is not."""
    if names is not None:
        return [str(name) for name in names], "names"
    if file is None:
        return None
    (pattern,) = _filled(file, fixed)
    _, found = find_first([pattern], root)
    path = next(iter(found.values()))
    # Lines of Oxford-IIIT Pet go on with numbers, some of its files begin with comments.
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    listed = [words[0] for words in lines if words and not words[0].startswith("#")]
    if not listed:
        raise DataError(f"{path} names no image; it should hold one name at the start of each line")
    return listed, str(path)


def _palette(path: Path) -> list[Color]:
    """Return the palette of a picture, empty when it has none."""
    from PIL import Image

    with Image.open(path) as picture:
        flat = picture.getpalette("RGB") if picture.mode == "P" else None
    return [(red, green, blue) for red, green, blue in zip(*[iter(flat or ())] * 3, strict=True)]


def _present(labels: Integer[np.ndarray, "*spatial"]) -> list[int]:
    """Return the values that a label map holds."""
    return np.flatnonzero(np.bincount(labels.ravel())).tolist()

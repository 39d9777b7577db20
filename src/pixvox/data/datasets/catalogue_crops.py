"""Crops of volumes of any size, out of a catalogue: only the crops that are asked for are read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Set
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int

from pixvox.data.dataset import Dataset, seeded_subset
from pixvox.data.image_source import finite_values
from pixvox.data.metadata import Metadata
from pixvox.data.readers.regions import Index
from pixvox.data.sample import Sample, renumber
from pixvox.data.volumes.catalogue import Catalogue, CatalogueVolume
from pixvox.data.volumes.index import renew_catalogue
from pixvox.data.volumes.index_volume import whole_numbers
from pixvox.data.volumes.part import Part
from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError

logger = logging.getLogger(__name__)

OnChange = Literal["renew", "raise", "ignore"]
SplitBy = Literal["volume", "experiment"]


class CatalogueCrops(Dataset):
    """Crops with their instances, from a catalogue of ``pixvox data index``.

    What a crop has of an object below the least volume of the catalogue is neither learned nor scored. All crops of a
    volume, or of an experiment, are in the same split; which one does not depend on ``where``. Crops without labels are
    in ``"train"`` alone, where semi-supervised methods learn from them; nothing could be scored on them.

    Args:
        catalogue: The file.
        split: ``"train"``, ``"val"`` or ``"test"``: as the catalogue says for each volume, else drawn by seed. None
            takes all crops.
        where: SQL on the columns of volumes and crops, as in ``"grade > 2 AND objects >= 5"``.
        foreground: Share of the crops that show an object, or without labels something bright, above 0; below 1 empty
            crops are added, drawn by seed. None takes all there are.
        split_by: Of what no part is in two splits. A volume without an experiment is one of its own.
        val_fraction: Share of the volumes or experiments to validate on, where the catalogue names none.
        test_fraction: The same to test on.
        seed: Seed of splits and empty crops.
        class_name: What the objects are.
        average_channels: Make one channel of all, their mean.
        on_change: When files have changed since they were indexed: ``"renew"`` reads them again, ``"raise"`` is an
            error, ``"ignore"`` does not look.
        root: Folder of the volumes, where they have moved since.
        name: Name of the dataset; that of the file by default.

    Raises:
        DataError: If the catalogue cannot be used, or no crop is left.
    """

    def __init__(
        self,
        catalogue: str | Path,
        split: str | None = None,
        where: str | None = None,
        foreground: float | None = 1.0,
        split_by: SplitBy = "volume",
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        seed: int = 42,
        class_name: str = "object",
        average_channels: bool = False,
        on_change: OnChange = "renew",
        root: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        if foreground is not None and not 0 < foreground <= 1:
            raise DataError(
                f"foreground is the share of crops with objects, above 0 and at most 1; got {foreground}"
            )
        self.catalogue = _open(catalogue, on_change, root)
        self.average_channels = average_channels
        volumes = self.catalogue.volumes
        fractions = {"test": test_fraction, "val": val_fraction}
        chosen = set(volumes) if split is None else split_volumes(volumes, split_by, fractions, seed)[split]
        self.crops = self._select(where, chosen, foreground, seed)
        if not len(self.crops):
            raise DataError(
                f"{catalogue} has no crop to choose: split={split} holds {len(chosen)} of {len(volumes)} volumes, "
                f"where={where}; loosen one of them"
            )
        seen = [volumes[number] for number in np.unique(self.catalogue.volumes_of(self.crops)).tolist()]
        channels = {1 if average_channels else volume.channels for volume in seen}
        if len(channels) > 1:
            raise DataError(
                f"{catalogue} holds volumes of {' and '.join(map(str, sorted(channels)))} channels; choose some by "
                "where='channels = 1', or set average_channels=true"
            )
        spacings = {(volume.spacing, volume.unit) for volume in seen}
        spacing, unit = spacings.pop() if len(spacings) == 1 else (None, "um")
        self.metadata = Metadata(
            "instance",
            self.catalogue.spatial_dims,
            (class_name,),
            channels.pop(),
            spacing=spacing,
            unit=unit,
            name=name or Path(catalogue).stem,
        )
        logger.info(
            "%s, split %s: %d crops of %d volumes",
            self.metadata.name,
            split or "of all",
            len(self),
            len(seen),
        )

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Sample:
        return self.part(index)

    def part(self, index: int, within: Index | None = None) -> Sample:
        """Return a part of crop ``index``; nothing else is read.

        Args:
            index: Place in the dataset.
            within: A slice per axis in the frame of the crop; the whole crop when None.
        """
        volume, region = self._place(index)
        if within is not None:
            pairs = zip(region, within, strict=True)
            region = tuple(
                slice(whole.start + part.start, min(whole.start + part.stop, whole.stop))
                for whole, part in pairs
            )
        source = _named(volume, region)
        image, missing = self._read(volume.path, volume.part, volume, region)
        values, invalid = finite_values(image, source)
        values, limits = values.astype(np.float32), np.array(volume.intensity, dtype=np.float32)
        if self.average_channels:
            values, limits = values.mean(axis=0, keepdims=True), limits.mean(axis=0, keepdims=True)
        sample = Sample(
            image=torch.from_numpy(values),
            spacing=volume.spacing,
            unit=volume.unit,
            source=source,
            index=index,
            intensity_range=torch.from_numpy(limits),
        )
        if volume.label_path is None:
            return sample
        labels, unlabelled = self._read(volume.label_path, volume.label_part, volume, region)
        unknown = [places for places in (missing, invalid, unlabelled) if places is not None]
        learned = self.catalogue.objects(self.crops[index : index + 1]).ids
        return _with_objects(
            sample,
            whole_numbers(labels[0], str(volume.label_path)),
            learned,
            np.any(unknown, axis=0) if unknown else None,
            whole=within is None,
        )

    def source(self, index: int) -> str:
        """Return the file of crop ``index``, and its place there."""
        return _named(*self._place(index))

    def region(self, index: int) -> Index:
        """Return where crop ``index`` lies in its volume."""
        return self._place(index)[1]

    def source_files(self, index: int) -> list[Path]:
        """Return the volume of crop ``index`` and its label map."""
        volume, _ = self._place(index)
        return [file for file in (volume.path, volume.label_path) if file is not None]

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that crop ``index`` shows, from the catalogue alone."""
        return {0} if self.catalogue.crops(self.crops[index : index + 1]).objects[0] > 0 else set()

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of crops of volumes without labels."""
        bare = [number for number, volume in self.catalogue.volumes.items() if volume.label_path is None]
        places: list[int] = np.flatnonzero(np.isin(self.catalogue.volumes_of(self.crops), bare)).tolist()
        return places

    def _select(
        self, where: str | None, volumes: Set[int], foreground: float | None, seed: int
    ) -> Int[np.ndarray, " n"]:
        def of_split(crops: Int[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
            return crops[np.isin(self.catalogue.volumes_of(crops), list(volumes))]

        shown = of_split(self.catalogue.select(where))
        if foreground == 1:
            return shown
        every = of_split(self.catalogue.select(where, empty=True))
        if foreground is None:
            return every
        empty = np.setdiff1d(every, shown)
        wanted = min(len(empty), round(len(shown) * (1 - foreground) / foreground))
        return np.union1d(shown, empty[seeded_subset(len(empty), wanted, seed)])

    def _place(self, index: int) -> tuple[CatalogueVolume, Index]:
        """Return the volume of crop ``index``, and its region."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} crops")
        found = self.catalogue.crops(self.crops[index : index + 1])
        volume = self.catalogue.volumes[int(found.volumes[0])]
        lengths = zip(found.starts[0].tolist(), self.catalogue.crop_size(volume), volume.size, strict=True)
        return volume, tuple(slice(start, min(start + crop, length)) for start, crop, length in lengths)

    def _read(
        self, file: Path, part: Part, volume: CatalogueVolume, region: Index
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the values of a region, and where they are missing (None where that is not allowed, or nowhere)."""
        allowed = bool(self.catalogue.options["allow_missing_chunks"])
        opened = _opened(file, part, len(volume.size), allowed, volume.key)
        if opened.size != volume.size:
            raise DataError(
                f"{file} has the size {opened.size}, in the catalogue {volume.size}; it has changed since it was "
                f"indexed: pixvox data index FOLDER --out {self.catalogue.path}"
            )
        return opened.read(region), opened.missing(region) if allowed else None


def split_volumes(
    volumes: Mapping[int, CatalogueVolume], by: SplitBy, fractions: Mapping[str, float], seed: int
) -> dict[str, set[int]]:
    """Return the numbers of the volumes of each split.

    A split that the catalogue names for any volume of an origin is what it says. Others are drawn from the labelled
    volumes that are left, for each ``origin`` by itself; adding volumes moves few from one split to another, because
    each has its place in the draw by its name. Volumes without labels are in ``"train"``, or in none where their
    experiment is in another.

    Args:
        volumes: Volumes by number.
        by: ``"volume"`` or ``"experiment"``: what is not parted.
        fractions: Share of what is drawn by name of the split, in [0, 1); what is left is ``"train"``.
        seed: Seed of the draw.

    Raises:
        DataError: If the shares are out of range, or there are too few volumes or experiments for every split.
    """
    if by not in ("volume", "experiment"):
        raise DataError(f"split_by takes volume or experiment, got {by!r}")
    if not all(0 <= share < 1 for share in fractions.values()) or sum(fractions.values()) >= 1:
        raise DataError(f"the shares {dict(fractions)} must lie in [0, 1), together below 1")
    splits: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    groups: dict[str, set[int]] = {}
    for number, volume in volumes.items():
        name = (volume.experiment if by == "experiment" else None) or volume.entry
        groups.setdefault(name, set()).add(number)
    origins: dict[str, dict[str, set[int]]] = {}
    for name, own in groups.items():
        held_out = {"val", "test"} & {volumes[number].split or "" for number in own}
        if held_out:  # what is not named goes with the rest of its experiment
            for number in own:
                splits[volumes[number].split or max(held_out)].add(number)
        else:
            origins.setdefault(_origin(volumes[min(own)]), {})[name] = own
    for origin, alike in origins.items():
        named = {volume.split for volume in volumes.values() if _origin(volume) == origin}
        shares = {name: share for name, share in fractions.items() if share and name not in named}
        what = f"{by}s" if len(origins) == 1 else f"{by}s of origin {origin}"
        for name, own in _draw(volumes, alike, shares, seed, what).items():
            splits[name] |= own
    bare = {number for number, volume in volumes.items() if volume.label_path is None}
    return {name: own if name == "train" else own - bare for name, own in splits.items()}


def _origin(volume: CatalogueVolume) -> str:
    return str(volume.flags.get("origin"))


def _draw(
    volumes: Mapping[int, CatalogueVolume],
    groups: Mapping[str, set[int]],
    shares: Mapping[str, float],
    seed: int,
    what: str,
) -> dict[str, set[int]]:
    """Part groups of volumes: those with labels by their shares, what is left is for training."""
    labelled = [name for name, own in groups.items() if any(volumes[number].label_path for number in own)]
    order = sorted(labelled, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    if shares and labelled and len(order) <= len(shares):
        raise DataError(
            f"{len(order)} labelled {what} cannot be parted into train and {' and '.join(shares)}; add some, name the "
            "splits in a column split of the table, or part by volume"
        )
    left = dict(groups)
    parts: dict[str, set[int]] = {name: set() for name in shares}
    for place, (name, share) in enumerate(shares.items(), 1):
        spare = len(shares) - place + 1  # one is left for train and for each split to come
        for group in order[: min(max(1, round(share * len(labelled))), len(order) - spare)]:
            parts[name] |= left.pop(group)
            order.remove(group)
    return parts | {"train": set().union(*left.values())}


def _open(path: str | Path, on_change: OnChange, root: str | Path | None) -> Catalogue:
    """Open a catalogue, and do what is to be done when files have changed since."""
    if on_change not in ("renew", "raise", "ignore"):
        raise DataError(f"on_change takes renew, raise or ignore, got {on_change!r}")
    catalogue = Catalogue(path, root)
    changes = [] if on_change == "ignore" else catalogue.changes()
    if not changes:
        return catalogue
    told = f"{path} is out of date: {changes[0]}" + (f" and {len(changes) - 1} more" if changes[1:] else "")
    if on_change == "raise":
        raise DataError(f"{told}; index again: pixvox data index FOLDER --out {path}")
    logger.warning("%s; it is made again", told)
    renew_catalogue(path)
    return Catalogue(path, root)


@lru_cache(maxsize=64)
def _opened(file: Path, part: Part, dims: int, allow_missing_chunks: bool, key: str) -> Volume:
    """Return a volume; the latest stay open, until a file has another key in the catalogue."""
    return part.open(file, dims, allow_missing_chunks)


def _named(volume: CatalogueVolume, region: Index) -> str:
    """Return a part of a volume in words."""
    return f"{volume.path}{volume.part}[{', '.join(f'{part.start}:{part.stop}' for part in region)}]"


def _with_objects(
    sample: Sample,
    labels: np.ndarray,
    learned: Int[np.ndarray, " n"],
    unknown: np.ndarray | None,
    whole: bool,
) -> Sample:
    """Return a sample with the objects of a label map, of which those that are not learned are ignored."""
    numbers, ids = renumber(labels)
    ignore = ~np.isin(ids.astype(np.int64), learned)
    if whole and len(learned) != len(ids) - int(ignore.sum()):
        raise DataError(
            f"{sample.source} shows {len(ids)} objects, some of {len(learned)} in the catalogue are not among them; "
            "its label map has changed: index again"
        )
    layers = numbers[None]
    if unknown is not None:  # a region of its own that is neither learned nor scored
        layers = torch.cat([layers, (torch.from_numpy(unknown) * (len(ids) + 1)).to(layers.dtype)[None]])
        ignore = np.append(ignore, True)
    labels_of = torch.zeros(len(ignore), dtype=torch.int64)
    return replace(sample, layers=layers, labels=labels_of, ignore=torch.from_numpy(ignore))

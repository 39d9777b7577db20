"""Planes of volumes along all three axes, out of a catalogue: what a 2-D model learns from to segment volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from pixvox.data.dataset import Dataset
from pixvox.data.datasets.catalogue_crops import CatalogueCrops
from pixvox.data.sample import Sample
from pixvox.errors import ConfigError, DataError

_AXES = "zyx"
_CROPS_AT_ONCE = 4096


class CataloguePlanes(Dataset):
    """Planes of the crops of a catalogue, each an image with the objects that it cuts.

    A plane across z is seen as ``(y, x)``, one across y as ``(z, x)``, one across x as ``(z, y)``, with the spacing of
    these axes; ``transforms.spacing`` makes pixels square. An object that a plane cuts into several parts stays one.

    Cellpose sees volumes so, by a 2-D model ("Cellpose: a generalist algorithm for cellular segmentation", Stringer et
    al., 2021, https://doi.org/10.1038/s41592-020-01018-x).

    Args:
        crops: Crops of volumes.
        planes: Axes across which planes are cut, of ``"z"``, ``"y"``, ``"x"``.
        every: Distance between two planes of a crop, in voxels; neighbours are much alike.
        empty: Also take planes that no object crosses. Those without labels are always taken.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If the crops are of slides, or no plane is left.
    """

    def __init__(
        self,
        crops: CatalogueCrops,
        planes: Sequence[str] = ("z", "y", "x"),
        every: int = 4,
        empty: bool = False,
    ) -> None:
        if not planes or len({*planes}) < len(planes) or not {*planes} <= {*_AXES}:
            raise ConfigError(
                f"planes={list(planes)}: name axes across which planes are cut, as in [z,y,x] or [z]"
            )
        if every < 1:
            raise ConfigError(f"every={every}: the distance between planes is 1 voxel or more")
        if crops.metadata.spatial_dims != 3:
            raise DataError(
                f"{crops.metadata.name} is a catalogue of slides; train on its crops: data=catalogue"
            )
        self.crops = crops
        self.axes = [_AXES.index(letter) for letter in planes]
        parts = range(0, len(crops), _CROPS_AT_ONCE)
        self.places = np.concatenate(
            [self._places(np.arange(i, min(i + _CROPS_AT_ONCE, len(crops))), every, empty) for i in parts]
        )
        if not len(self.places):
            raise DataError(f"no plane across {', '.join(planes)} shows an object; lower every={every}")
        self.metadata = replace(crops.metadata, spatial_dims=2, spacing=self._common_spacing())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        crop, axis, position = self._place(index)
        within = [slice(0, part.stop - part.start) for part in self.crops.region(crop)]
        within[axis] = slice(position, position + 1)
        sample = self.crops.part(crop, tuple(within))
        return replace(
            sample,
            image=sample.image.squeeze(1 + axis),
            layers=None if sample.layers is None else sample.layers.squeeze(1 + axis),
            spacing=_without(sample.spacing, axis),
            index=index,
        )

    def source(self, index: int) -> str:
        """Return the file of plane ``index``, and its place there."""
        crop, axis, position = self._place(index)
        region = list(self.crops.region(crop))
        start = region[axis].start + position
        region[axis] = slice(start, start + 1)
        file = self.crops.source(crop).rpartition("[")[0]
        return f"{file}[{', '.join(f'{part.start}:{part.stop}' for part in region)}]"

    def source_files(self, index: int) -> list[Path]:
        """Return the volume of plane ``index`` and its label map."""
        return self.crops.source_files(self._place(index)[0])

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that plane ``index`` shows, from the catalogue alone."""
        crop, axis, position = self._place(index)
        boxes = self.crops.catalogue.objects(self.crops.crops[crop : crop + 1]).boxes
        crossed = (boxes[:, 2 - axis] <= position) & (position < boxes[:, 5 - axis])
        return {0} if crossed.any() else set()

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of planes of volumes without labels."""
        bare = np.isin(self.places[:, 0], self.crops.unlabelled_indices())
        places: list[int] = np.flatnonzero(bare).tolist()
        return places

    def _place(self, index: int) -> tuple[int, int, int]:
        """Return crop, axis and position in the crop of plane ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} planes")
        crop, axis, position = self.places[index].tolist()
        return crop, axis, position

    def _places(self, chosen: Int[np.ndarray, " n"], every: int, empty: bool) -> Int[np.ndarray, "planes 3"]:
        """Return crop, axis and position of the planes of some crops, in this order."""
        volumes = self.crops.catalogue.volumes_of(self.crops.crops[chosen])
        _, firsts, of_volume = np.unique(volumes, return_index=True, return_inverse=True)
        regions = [self.crops.region(int(chosen[first])) for first in firsts]  # crops of a volume are alike
        lengths = np.array([[part.stop - part.start for part in region] for region in regions])[of_volume]
        found = []
        for axis in self.axes:
            positions = np.arange(0, lengths[:, axis].max(), every)
            taken = positions < lengths[:, axis, None]
            if not empty:
                taken &= self._crossed(chosen, axis, positions)
            crops, places = np.nonzero(taken)
            rows = [chosen[crops], np.full(len(crops), axis), positions[places]]
            found.append(np.stack(rows, axis=1).astype(np.int32))
        joined = np.concatenate(found)
        return joined[np.argsort(joined[:, 0], kind="stable")]

    def _crossed(
        self, chosen: Int[np.ndarray, " n"], axis: int, positions: Int[np.ndarray, " p"]
    ) -> Bool[np.ndarray, "n p"]:
        """Return at which positions planes meet the box of an object, or are of a crop without labels."""
        catalogue, ids = self.crops.catalogue, self.crops.crops[chosen]
        objects = catalogue.objects(ids)
        rows = np.searchsorted(ids, objects.crops)
        steps = np.zeros((len(ids), int(positions[-1]) + 2), dtype=np.int32)
        for sides, step in ((objects.boxes[:, 2 - axis], 1), (objects.boxes[:, 5 - axis], -1)):
            np.add.at(steps, (rows, np.minimum(sides, steps.shape[1] - 1)), step)
        crossed: Bool[np.ndarray, "n p"] = steps.cumsum(axis=1)[:, positions] > 0
        return crossed | (catalogue.crops(ids).objects < 0)[:, None]

    def _common_spacing(self) -> tuple[float, ...] | None:
        """Return the spacing that all planes have, if there is one."""
        spacings = {_without(self.crops.metadata.spacing, axis) for axis in self.axes}
        return spacings.pop() if len(spacings) == 1 else None


def open_planes(
    planes: Sequence[str] = ("z", "y", "x"), every: int = 4, empty: bool = False, **options: Any
) -> CataloguePlanes:
    """Return planes of the crops that ``CatalogueCrops`` makes of the other options."""
    return CataloguePlanes(CatalogueCrops(**options), planes, every, empty)


def _without(spacing: tuple[float, ...] | None, axis: int) -> tuple[float, ...] | None:
    return None if spacing is None else (*spacing[:axis], *spacing[axis + 1 :])

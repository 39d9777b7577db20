"""Several datasets as one, in one label space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata
from pixvox.data.relabel import Relabelled, new_names
from pixvox.data.sample import Sample
from pixvox.errors import DataError
from pixvox.signatures import nearest


class Concatenation(Dataset):
    """The images of several datasets, one after the other, with the classes of all.

    Classes are the same when their names are. What a dataset does not label at all it cannot teach: map a
    class to None where it is labelled, or train on it knowing that the other datasets show it as background.

    Args:
        datasets: Datasets, or datasets by name.
        class_names: The common label space, by class index; by default the union in the order of the
            datasets.
        mapping: By the name of a dataset (that of its metadata, when they are given as a list): new class
            name by old class name, None for what is ignored there.

    Raises:
        DataError: If there is no dataset, if they differ in task, dimensions or channels, or if a mapping
            does not fit.

    Example:
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> round_ones, others = Shapes(2, seed=0, classes=["circle"]), Shapes(3, seed=1, classes=["triangle"])
        >>> both = Concatenation([round_ones, others])
        >>> len(both), both.metadata.class_names
        (5, ('circle', 'triangle'))
    """

    def __init__(
        self,
        datasets: Sequence[Dataset] | Mapping[str, Dataset],
        class_names: Sequence[str] | None = None,
        mapping: Mapping[str, Mapping[str, str | None]] | None = None,
    ) -> None:
        if isinstance(datasets, Mapping):
            names, parts = list(datasets), list(datasets.values())
        else:
            names, parts = [dataset.metadata.name for dataset in datasets], list(datasets)
        if not parts:
            raise DataError("a concatenation needs at least one dataset")
        mapping = mapping or {}
        for name in mapping:
            if name not in names:
                raise DataError(f"mapping: there is no dataset {name!r}; {nearest(name, names)}")
        _check_alike(names, parts)
        # What has no annotations has no say in the classes.
        speak = [len(part.unlabelled_indices()) < len(part) for part in parts]
        voices = [place for place, speaks in enumerate(speak) if speaks] or [0]
        renamed = [new_names(parts[place].metadata, mapping.get(names[place], {})) for place in voices]
        if class_names is None:
            class_names = list(dict.fromkeys(name for some in renamed for name in some if name is not None))
        self.datasets: list[Dataset] = [
            Relabelled(part, class_names, mapping.get(name))
            if place in voices and (mapping.get(name) or part.metadata.class_names != tuple(class_names))
            else part
            for place, (name, part) in enumerate(zip(names, parts, strict=True))
        ]
        common = _joined([part.metadata for part in self.datasets], voices)
        self.metadata = _with_known_classes(common, [parts[place].metadata for place in voices], renamed)
        self.ends = np.cumsum([len(dataset) for dataset in self.datasets]).tolist()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the dataset of an image, and the index there."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return part, index - (self.ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        part, place = self._place(index)
        return replace(self.datasets[part][place], index=index)

    def source(self, index: int) -> str:
        """Return the file or name of image ``index``."""
        part, place = self._place(index)
        return self.datasets[part].source(place)

    def source_files(self, index: int) -> list[Path]:
        """Return the files that image ``index`` comes from."""
        part, place = self._place(index)
        return self.datasets[part].source_files(place)

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows."""
        part, place = self._place(index)
        return self.datasets[part].classes_in(place)

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images that have no annotations at all."""
        starts = [0, *self.ends[:-1]]
        return [
            start + index
            for start, dataset in zip(starts, self.datasets, strict=True)
            for index in dataset.unlabelled_indices()
        ]


def _joined(parts: Sequence[Metadata], voices: Sequence[int]) -> Metadata:
    """Return the metadata of all: the classes of the annotated, the spacing when all share it."""
    spacings = {(part.spacing, part.unit) for part in parts}
    first = parts[voices[0]]
    names = dict.fromkeys(part.name for part in parts if part.name)
    return replace(first, spacing=first.spacing if len(spacings) == 1 else None, name="+".join(names))


def _with_known_classes(
    common: Metadata, parts: Sequence[Metadata], renamed: Sequence[Sequence[str | None]]
) -> Metadata:
    """Return the common metadata with what any of the datasets knows of a class: colour, thing, partner in a mirror."""
    ends = np.cumsum([0, *(part.num_classes for part in parts)]).tolist()
    colors = [color for part in parts for color in part.colors or ()]
    things = [thing for part in parts for thing in part.is_thing or (True,) * part.num_classes]
    every = replace(
        common,
        class_names=tuple(name for part in parts for name in part.class_names),
        colors=tuple(colors) if len(colors) == ends[-1] else None,
        is_thing=tuple(things) if any(part.is_thing is not None for part in parts) else None,
        flip_pairs=tuple(
            (one + start, other + start)
            for start, part in zip(ends, parts, strict=False)
            for one, other in part.flip_pairs
        ),
    )
    labels = {name: label for label, name in enumerate(common.class_names)}
    table = [-1 if name is None else labels[name] for names in renamed for name in names]
    return every.with_classes(common.class_names, table)


def _check_alike(names: Sequence[str], parts: Sequence[Dataset]) -> None:
    repairs = {
        "task": "read all as one task (task=...)",
        "spatial_dims": "images and volumes need a model each",
        "in_channels": "set channels=rgb or channels=grey to convert",
        "ignore_index": "let all use the same value in their samples and metadata",
    }
    of_annotations = ("task", "ignore_index")
    annotated = [len(part.unlabelled_indices()) < len(part) for part in parts]
    reference = annotated.index(True) if True in annotated else 0
    first = parts[reference].metadata
    for name, part, speaks in zip(names, parts, annotated, strict=True):
        for field, repair in repairs.items():
            ours, theirs = getattr(first, field), getattr(part.metadata, field)
            if ours != theirs and (speaks or field not in of_annotations):
                raise DataError(
                    f"datasets to be joined must agree in {field}: {names[reference] or 'the first'} has {ours!r}, "
                    f"{name or 'another'} has {theirs!r}; {repair}"
                )

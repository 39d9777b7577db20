"""See a dataset with other classes: renamed, merged, left out, or without classes at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.errors import DataError
from pixvox.signatures import nearest

OBJECT = "object"
"""The one class of class-agnostic instances."""

REST = "*"
"""In a mapping: every class that is not listed."""

BACKGROUND = "background"
"""The class of semantic data that stays apart when all others become ``object``."""


class Relabelled(Dataset):
    """A dataset in another label space.

    What is mapped to None becomes neither an object nor background: instances become ignored regions, pixels
    the ignored label, so that a model is not taught that they are something else.

    Args:
        dataset: What is seen with other classes.
        class_names: Names of the new label space, by class index; by default the new names of the dataset's
            classes, each once, in the dataset's order.
        mapping: New name by old name; None ignores a class. Classes that are not listed keep their names, unless
            ``"*"`` says what becomes of them.

    Raises:
        DataError: If the mapping names a class that the dataset does not have, or a new name is not in
            ``class_names``.

    Example:
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> shapes = Shapes(1, seed=0, image_size=32, radius=(4, 8))
        >>> Relabelled(shapes, mapping={"rectangle": "polygon", "triangle": "polygon"}).metadata.class_names
        ('circle', 'polygon')
    """

    def __init__(
        self,
        dataset: Dataset,
        class_names: Sequence[str] | None = None,
        mapping: Mapping[str, str | None] | None = None,
    ) -> None:
        self.dataset = dataset
        old = dataset.metadata
        renamed = new_names(old, mapping or {})
        names = tuple(class_names if class_names is not None else _each_once(renamed))
        if not names:
            raise DataError(f"{old.name or 'the dataset'}: every class is mapped to null; keep at least one")
        strange = [name for name in renamed if name is not None and name not in names]
        if strange:
            raise DataError(
                f"{old.name or 'the dataset'}: the class {strange[0]!r} is none of the classes "
                f"{', '.join(names)}; map it to one of them, or to null to ignore it"
            )
        # -1 stands for None: ignored.
        table = [names.index(name) if name is not None else -1 for name in renamed]
        self.metadata = old.with_classes(names, table)
        self.table = torch.tensor(table)

    def __len__(self) -> int:
        return len(self.dataset)

    def source(self, index: int) -> str:
        """Return the file or name of image ``index``."""
        return self.dataset.source(index)

    def source_files(self, index: int) -> list[Path]:
        """Return the files that image ``index`` comes from."""
        return self.dataset.source_files(index)

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows."""
        return {int(self.table[label]) for label in self.dataset.classes_in(index)} - {-1}

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images that have no annotations at all."""
        return self.dataset.unlabelled_indices()

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        if sample.labels is not None and sample.ignore is not None:
            labels = self.table[sample.labels]
            left_out = labels < 0
            sample = replace(sample, labels=labels.clamp(min=0), ignore=sample.ignore | left_out)
        if sample.class_map is not None:
            known = sample.class_map != sample.ignore_index
            classes = torch.where(known, sample.class_map, 0).long()
            mapped = self.table[classes]
            ignored = ~known | (mapped < 0)
            sample = replace(
                sample, class_map=mapped.masked_fill(ignored, sample.ignore_index).to(sample.class_map.dtype)
            )
        return sample


def class_agnostic(dataset: Dataset) -> Relabelled:
    """Return a dataset of objects whatever their class; semantic data keep their background.

    Raises:
        DataError: If semantic data have no class called ``background``.

    Example:
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> class_agnostic(Shapes(1, seed=0, task="semantic")).metadata.class_names
        ('background', 'object')
    """
    old = dataset.metadata
    if old.task == "instance":
        return Relabelled(dataset, [OBJECT], dict.fromkeys(old.class_names, OBJECT))
    kept = [name for name in old.class_names if name.lower() == BACKGROUND]
    if not kept:
        raise DataError(
            f"class_agnostic=true tells objects from the class {BACKGROUND!r}, and {old.name or 'the dataset'} has "
            f"none: {', '.join(old.class_names)}; rename the class that is meant"
        )
    return Relabelled(
        dataset,
        [BACKGROUND, OBJECT],
        {name: BACKGROUND if name in kept else OBJECT for name in old.class_names},
    )


def new_names(metadata: Metadata, mapping: Mapping[str, str | None]) -> list[str | None]:
    """Return the new name of each class of a dataset, None for the ignored; ``"*"`` names the rest.

    Raises:
        DataError: If ``mapping`` names a class that there is not.
    """
    for name in mapping:
        if name not in metadata.class_names and name != REST:
            raise DataError(
                f"{metadata.name or 'the dataset'} has no class {name!r} to map; "
                f"{nearest(name, metadata.class_names)}"
            )
    return [mapping.get(name, mapping.get(REST, name)) for name in metadata.class_names]


def _each_once(names: Sequence[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name is not None))

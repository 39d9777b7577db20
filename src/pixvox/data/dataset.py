"""Map-style datasets of samples, and views on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample


class Dataset(TorchDataset[Sample]):
    """Images with annotations by index; subclasses set ``metadata``.

    ``dataset[i]`` must depend on ``i`` alone: whatever is random comes later, from ``(seed, epoch, index)``.
    """

    metadata: Metadata

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return image ``index``, un-normalised and un-augmented."""

    def source(self, index: int) -> str:
        """Return the file or name of image ``index`` without reading it."""
        return f"{self.metadata.name or type(self).__name__}[{index}]"

    def source_files(self, index: int) -> list[Path]:
        """Return the files that image ``index`` and its annotations come from; none when they are made."""
        file = Path(self.source(index))
        return [file] if file.exists() else []

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows; subclasses do so without decoding the image."""
        return classes_of(self[index])

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images that have no annotations at all."""
        return []


class Subset(Dataset):
    """Some images of a dataset.

    Args:
        dataset: Whose images.
        indices: Which of them, in this order.
        unlabelled: Hide the annotations.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], unlabelled: bool = False) -> None:
        self.dataset = dataset
        self.indices = [int(index) for index in indices]
        self.hidden = unlabelled
        self.metadata = dataset.metadata

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[self.indices[index]]
        return replace(sample.unlabelled() if self.hidden else sample, index=index)

    def source(self, index: int) -> str:
        """Return the file or name of image ``index``."""
        return self.dataset.source(self.indices[index])

    def source_files(self, index: int) -> list[Path]:
        """Return the files that image ``index`` comes from."""
        return self.dataset.source_files(self.indices[index])

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows."""
        return set() if self.hidden else self.dataset.classes_in(self.indices[index])

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images that have no annotations at all."""
        missing = set(self.dataset.unlabelled_indices())
        return [place for place, index in enumerate(self.indices) if self.hidden or index in missing]


def classes_of(sample: Sample) -> set[int]:
    """Return the class indices that a sample shows; ignored objects and pixels do not count."""
    shown: set[int] = set()
    if sample.labels is not None and sample.ignore is not None:
        shown |= set(sample.labels[~sample.ignore].tolist())
    if sample.class_map is not None:
        shown |= set(np.unique(sample.class_map.numpy()).tolist()) - {sample.ignore_index}
    return shown


def seeded_subset(count: int, wanted: int | float, seed: int) -> list[int]:
    """Return some of ``count`` indices in ascending order.

    A larger subset holds every smaller one of the same seed, so that curves over the number of labels are
    comparable.

    Args:
        count: How many there are.
        wanted: A number of indices, a share in (0, 1), or -1 for all.
        seed: Seed of the draw.

    Raises:
        ValueError: If more are wanted than there are, or the share is none.

    Example:
        >>> set(seeded_subset(10, 3, seed=42)) <= set(seeded_subset(10, 0.5, seed=42))
        True
    """
    if wanted == -1:
        return list(range(count))
    if wanted != int(wanted):
        if not 0 < wanted < 1:
            raise ValueError(
                f"{wanted} is neither a number of images nor a share between 0 and 1; -1 takes all"
            )
        wanted = min(count, max(1, round(wanted * count)))
    elif isinstance(wanted, float):
        raise ValueError(f"{wanted} may mean a number or a share; write {int(wanted)}, or -1 for all")
    if not 0 <= wanted <= count:
        raise ValueError(f"{wanted} images were asked for, there are {count}; -1 takes all")
    return sorted(np.random.default_rng(seed).permutation(count)[: int(wanted)].tolist())

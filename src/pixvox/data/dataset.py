"""Map-style datasets of samples, and views on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

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

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images that have no annotations at all."""
        missing = set(self.dataset.unlabelled_indices())
        return [place for place, index in enumerate(self.indices) if self.hidden or index in missing]


class Concatenation(Dataset):
    """The images of several datasets, one after the other.

    Args:
        datasets: At least one; the metadata is that of the first.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = list(datasets)
        self.metadata = self.datasets[0].metadata
        self.ends = np.cumsum([len(dataset) for dataset in self.datasets]).tolist()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, index: int) -> tuple[Dataset, int]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.datasets[part], index - (self.ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        dataset, place = self._place(index)
        return replace(dataset[place], index=index)

    def source(self, index: int) -> str:
        """Return the file or name of image ``index``."""
        dataset, place = self._place(index)
        return dataset.source(place)


def seeded_subset(count: int, wanted: int, seed: int) -> list[int]:
    """Return ``wanted`` of ``count`` indices in ascending order; -1 stands for all.

    A larger subset holds every smaller one of the same seed, so that curves over the number of labels are
    comparable.

    Raises:
        ValueError: If more are wanted than there are.

    Example:
        >>> set(seeded_subset(10, 3, seed=42)) <= set(seeded_subset(10, 5, seed=42))
        True
    """
    if wanted == -1:
        return list(range(count))
    if not 0 <= wanted <= count:
        raise ValueError(f"{wanted} images were asked for, there are {count}; -1 takes all")
    return sorted(np.random.default_rng(seed).permutation(count)[:wanted].tolist())

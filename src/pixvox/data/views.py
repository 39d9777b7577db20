"""A dataset as training sees it, augmented, and as evaluation does; all draws are by (seed, epoch, index)."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset as TorchDataset

from pixvox.data.collate import Collate
from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.sampler import REPEATED, Key, head_seed, sample_generator
from pixvox.data.transforms.compose import Transform, uniform
from pixvox.errors import DataError
from pixvox.structures import Batch, Segmentation


class TrainingView(TorchDataset[Sample]):
    """A dataset with its augmentation.

    Args:
        dataset: What is augmented.
        transform: The augmentation; nothing when None.
        seed: Seed of the augmentation.
        skip_bad: Take the next readable image for one that is not, and note it.
        strong: Makes each strong view of what ``transform`` gave; it moves nothing. None leaves it as it is.
        strong_views: How many of them.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform | None,
        seed: int,
        skip_bad: bool = False,
        strong: Transform | None = None,
        strong_views: int = 0,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.strong, self.strong_views = strong, strong_views
        # Workers are processes: what they skip is noted in a file, one short line per write.
        self._notes: Path | None = None
        if skip_bad:
            handle, name = tempfile.mkstemp(prefix="pixvox_skipped_", suffix=".txt")
            os.close(handle)
            self._notes = Path(name)
            weakref.finalize(self, _remove, os.getpid(), self._notes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        sample, generator = self._read(index), sample_generator(self.seed, epoch, index)
        if self.strong_views:
            sample = replace(sample, inside=torch.ones(sample.size, dtype=torch.bool))
        if self.transform is not None:
            sample = self.transform(replace(sample, further=self._further), generator)
        sample = replace(sample, further=None, seed=head_seed(self.seed, epoch, index))
        views = [self._strong_view(sample, generator) for _ in range(self.strong_views)]
        return replace(sample, views=tuple(views))

    def _strong_view(self, sample: Sample, generator: torch.Generator) -> torch.Tensor:
        if self.strong is None:
            return sample.image
        image = self.strong(sample, generator).image
        if image.shape != sample.image.shape:
            raise DataError(
                f"the strong view changed the image from {tuple(sample.image.shape)} to {tuple(image.shape)}; it must "
                "leave every pixel in its place: leave steps that move, cut or pad to transforms.train"
            )
        return image

    def _read(self, index: int) -> Sample:
        return read_sample(self.dataset, index) if self._notes is None else self._next_good(index)

    def _further(self, generator: torch.Generator) -> Sample:
        """Draw another image for a transform that mixes several."""
        index = int(uniform(generator, 0, len(self.dataset)))
        return replace(self._read(index), further=self._further)

    def _next_good(self, index: int) -> Sample:
        for step in range(len(self.dataset)):
            place = (index + step) % len(self.dataset)
            try:
                return read_sample(self.dataset, place)
            except DataError as error:
                self._note(str(error))
        raise DataError("no image of the dataset can be read; see the messages above")

    def _note(self, message: str) -> None:
        if self._notes is not None:
            with self._notes.open("a") as notes:
                notes.write(" ".join(message.split()) + "\n")

    def skipped(self) -> list[str]:
        """Return the messages of all images that were skipped so far, in all workers."""
        if self._notes is None or not self._notes.exists():
            return []
        return sorted(set(self._notes.read_text().splitlines()))


def _remove(pid: int, notes: Path) -> None:
    """Remove the notes when the process that made them is done; its workers must not."""
    if os.getpid() == pid:
        notes.unlink(missing_ok=True)


class EvaluationView(TorchDataset["tuple[Sample, Segmentation | None]"]):
    """A dataset as it is, with its truth in the original frame beside the network's input.

    Args:
        dataset: What is evaluated.
        transform: Deterministic steps; nothing when None.
        collate: Makes the batch.
        seed: Seed for transforms that draw all the same.
    """

    def __init__(self, dataset: Dataset, transform: Transform | None, collate: Collate, seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.collater = collate
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> tuple[Sample, Segmentation | None]:
        epoch, index = key
        seed = head_seed(self.seed, 0, index)
        sample = replace(read_sample(self.dataset, index), seed=seed, repeated=epoch == REPEATED)
        truth = sample.truth(self.dataset.metadata.class_names) if sample.annotated else None
        if self.transform is not None:
            sample = self.transform(sample, sample_generator(self.seed, 0, index))
        return sample, truth

    def collate(self, pairs: Sequence[tuple[Sample, Segmentation | None]]) -> Batch:
        """Return the batch with its truths."""
        truths = [truth for _, truth in pairs if truth is not None]
        return self.collater([sample for sample, _ in pairs], truths if len(truths) == len(pairs) else None)


def read_sample(dataset: Dataset, index: int) -> Sample:
    """Read one image; errors of files and annotations name the file and the index.

    Raises:
        DataError: If it cannot be read, or its labels are not those of the dataset.
    """
    try:
        sample = replace(dataset[index], index=index, flip_pairs=dataset.metadata.flip_pairs)
        _check_labels(sample, dataset.metadata)
        return sample
    except DataError as error:
        source = dataset.source(index)
        named = str(error) if source in str(error) else f"{source}: {error}"
        raise DataError(f"image {index}: {named}") from error
    except (OSError, MemoryError) as error:
        raise DataError(f"image {index}: {dataset.source(index)} cannot be read: {error}") from error


def _check_labels(sample: Sample, metadata: Metadata) -> None:
    """Refuse classes that the dataset has not: a loss would end in the middle, or learn something else.

    Raises:
        DataError: If there is one, or the ignored label is another than the dataset's.
    """
    labels = sample.labels if sample.labels is not None else sample.class_map
    if labels is None or not labels.numel():
        return
    wrong = (labels < 0) | (labels >= metadata.num_classes)
    if sample.labels is None:
        if sample.ignore_index != metadata.ignore_index:
            raise DataError(
                f"the sample ignores the label {sample.ignore_index}, its dataset {metadata.ignore_index}; give both "
                "the same ignore_index"
            )
        wrong &= labels != metadata.ignore_index
    if bool(wrong.any()):
        raise DataError(
            f"label {int(labels[wrong][0])} is none of the classes 0..{metadata.num_classes - 1} of the dataset"
        )

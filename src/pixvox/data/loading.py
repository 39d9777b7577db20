"""Order, augmentation and evaluation of a dataset, drawn from (seed, epoch, index) and not from workers."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from pixvox.data.balance import balanced_order, number_repeats
from pixvox.data.collate import Collate
from pixvox.data.dataset import Dataset
from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, uniform
from pixvox.distributed.world import process_rank, world_size
from pixvox.errors import DataError
from pixvox.structures import Batch, Segmentation

Key = tuple[int, int]
"""Epoch and index: with the epoch in the key, workers that live on know it too."""

REPEATED = -1
"""In place of the epoch: another process evaluates this image, and it is only here to keep step."""


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Return the generator of one sample in one epoch."""
    words = np.random.SeedSequence((seed, epoch, index)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def head_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of what a head draws for one sample in one epoch, apart from its augmentation."""
    return int(np.random.SeedSequence((seed, epoch, index, 1)).generate_state(1, np.uint32)[0])


class EpochSampler(Sampler[Key]):
    """Yield ``(epoch, index)`` in an order that is a function of seed and epoch, shared among processes.

    Args:
        length: Number of images.
        seed: Seed of the order.
        shuffle: Shuffle, and give every process the same number of images (a few are seen twice); otherwise
            keep the order and give every image to exactly one process.
        batch_size: Without ``shuffle``, a process with fewer batches than another repeats one image at the
            end, marked ``REPEATED``: models that exchange buffers or weights in ``forward`` need as many
            calls from each process.
        images: With ``shuffle``, images per process and epoch; by default each once. More begin further
            passes, each with an order and draws of its own.
        weights: With ``shuffle``, how often each image is seen per pass on average, by default once. Each
            time has draws of its own.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        shuffle: bool,
        batch_size: int = 1,
        images: int | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.length = length
        self.images = images
        self.seed = seed
        self.shuffle = shuffle
        self.batch_size = batch_size
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def per_process(self) -> int:
        """Number of images of this process, without repetitions."""
        return len(self._mine()) if self.images is None else self.images

    def _repeated(self) -> list[Key]:
        """Return the image that fills up the number of batches, if one is missing."""
        if self.shuffle:
            return []
        mine, most = self.per_process, -(-self.length // world_size())
        missing = -(-most // self.batch_size) > -(-mine // self.batch_size)
        return [(REPEATED, process_rank() % self.length)] if missing else []

    def __len__(self) -> int:
        return self.per_process + len(self._repeated())

    def _mine(self, number: int | None = None) -> Sequence[int]:
        """Return the images of this process in pass ``number``, by default the only one of the epoch.

        An image that is seen again has ``length`` added for each time before.
        """
        rank, world = process_rank(), world_size()
        if not self.shuffle:
            return range(rank, self.length, world)
        number = self.epoch if number is None else number
        generator = np.random.default_rng((self.seed, number))
        if self.weights is None:
            order = generator.permutation(self.length)
        else:
            order = number_repeats(balanced_order(self.weights, generator), self.length)
        rounds = -(-len(order) // world)
        return [int(index) for index in np.resize(order, rounds * world)[rank::world]]

    def _passes(self, images: int) -> list[Key]:
        """Return as many images as asked for, in passes that are numbered on from epoch to epoch."""
        passes = max(1, -(-images // len(self._mine())))
        numbers = range(self.epoch * passes, (self.epoch + 1) * passes)
        return [self._key(number, place) for number in numbers for place in self._mine(number)][:images]

    def _key(self, number: int, place: int) -> Key:
        """Return the key of an image; a repeat counts as a far later epoch, so that it is augmented otherwise."""
        return number + (place // self.length << 32), place % self.length

    def __iter__(self) -> Iterator[Key]:
        if self.images is not None:
            return iter(self._passes(self.images))
        return iter([*(self._key(self.epoch, place) for place in self._mine()), *self._repeated()])


class TrainingView(TorchDataset[Sample]):
    """A dataset with its augmentation.

    Args:
        dataset: What is augmented.
        transform: The augmentation; nothing when None.
        seed: Seed of the augmentation.
        skip_bad: Take the next readable image for one that is not, and note it.
    """

    def __init__(
        self, dataset: Dataset, transform: Transform | None, seed: int, skip_bad: bool = False
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
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
        sample = self._read(index)
        if self.transform is not None:
            sample = replace(sample, further=self._further)
            sample = self.transform(sample, sample_generator(self.seed, epoch, index))
        return replace(sample, further=None, seed=head_seed(self.seed, epoch, index))

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
        DataError: If it cannot be read.
    """
    try:
        return replace(dataset[index], index=index)
    except DataError as error:
        source = dataset.source(index)
        named = str(error) if source in str(error) else f"{source}: {error}"
        raise DataError(f"image {index}: {named}") from error
    except (OSError, MemoryError) as error:
        raise DataError(f"image {index}: {dataset.source(index)} cannot be read: {error}") from error

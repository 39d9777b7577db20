"""Order of the images: a function of seed and epoch, shared among processes, and not of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from pixvox.data.balance import balanced_order, number_repeats
from pixvox.distributed.world import process_rank, world_size

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

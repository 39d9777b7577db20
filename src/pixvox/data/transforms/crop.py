"""Cut a patch out of an image and its annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens, uniform
from pixvox.structures import Size


class RandomCrop(Transform):
    """Cut a random patch of ``size``; an axis on which the image is smaller is kept whole.

    The collate function pads such an axis at its far end and keeps the padding out of the loss.

    Args:
        size: Length of the patch, one for all axes or per axis in array order.
        foreground: Share of the patches that are placed on an object, or on a class above 0, chosen at
            random; without it sparse volumes yield mostly empty patches.
        attempts: Places that are drawn; of several the one that cuts through the fewest objects is taken.

    Raises:
        ValueError: If ``attempts`` is below 1.
    """

    geometric = True

    def __init__(self, size: int | Sequence[int], foreground: float = 0.0, attempts: int = 1) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be 1 or above, got {attempts}")
        self.size = size
        self.foreground = foreground
        self.attempts = attempts

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the patch."""
        size = axis_lengths(self.size, sample.spatial_dims)
        size = tuple(min(length, whole) for length, whole in zip(size, sample.size, strict=True))
        starts = [patch_start(sample, size, self.foreground, generator) for _ in range(self.attempts)]
        if len(starts) == 1 or sample.layers is None:
            return cut(sample, starts[0], size)
        ids, areas = np.unique(sample.layers.numpy(), return_counts=True)
        whole = dict(zip(ids.tolist(), areas.tolist(), strict=True))
        patches = [cut(sample, start, size) for start in starts]
        return min(patches, key=lambda patch: _cut_objects(patch, whole))


def _cut_objects(patch: Sample, whole: Mapping[int, int]) -> int:
    """Return how many objects lie partly in the patch, given the elements of each id in the whole image."""
    if patch.layers is None:
        return 0
    ids, seen = np.unique(patch.layers.numpy(), return_counts=True)
    return sum(1 for i, area in zip(ids.tolist(), seen.tolist(), strict=True) if i and area < whole[i])


def axis_lengths(size: int | Sequence[int], spatial_dims: int) -> Size:
    """Return one length per axis in array order.

    Raises:
        ValueError: If ``size`` has another number of axes.
    """
    lengths = (size,) * spatial_dims if isinstance(size, int) else tuple(int(length) for length in size)
    if len(lengths) != spatial_dims:
        raise ValueError(
            f"size {list(lengths)} has {len(lengths)} axes, the images have {spatial_dims}; "
            f"give one length, or one per axis in array order"
        )
    return lengths


def cut(sample: Sample, starts: Sequence[int], size: Sequence[int]) -> Sample:
    """Return the patch that begins at ``starts``, which must lie within the image."""
    spans = [slice(first, first + length) for first, length in zip(starts, size, strict=True)]
    region = (slice(None), *spans)
    patch = sample.remap(lambda image: image[region], lambda maps, fill: maps[region])
    return replace(patch, original_size=None)


def patch_start(
    sample: Sample, size: Sequence[int], foreground: float, generator: torch.Generator
) -> tuple[int, ...]:
    """Draw the first corner of a patch within the image, on an object with probability ``foreground``."""
    last = [whole - length for whole, length in zip(sample.size, size, strict=True)]
    wanted = happens(generator, foreground)
    point = _foreground_point(sample, generator) if wanted else None
    if point is None:
        return tuple(int(uniform(generator, 0, room + 1)) for room in last)
    # The point lies anywhere in the middle half of the patch.
    return tuple(
        min(max(int(at - uniform(generator, 0.25, 0.75) * length), 0), room)
        for at, length, room in zip(point, size, last, strict=True)
    )


def _foreground_point(sample: Sample, generator: torch.Generator) -> tuple[int, ...] | None:
    """Return a pixel of an object or of a class above 0, each of those present alike; the ignored do not count."""
    maps = sample.layers if sample.layers is not None else sample.class_map
    if maps is None:
        return None
    areas = torch.bincount(maps.flatten())
    areas[0] = 0
    if sample.layers is None and len(areas) > sample.ignore_index:
        areas[sample.ignore_index] = 0
    if sample.layers is not None and sample.ignore is not None:
        areas[1:][sample.ignore[: len(areas) - 1]] = 0
    present = areas.nonzero()[:, 0]
    if not len(present):
        return None
    value = present[int(uniform(generator, 0, len(present)))]
    places = (maps == value).nonzero()
    place = places[int(uniform(generator, 0, len(places)))].tolist()
    return tuple(place[-sample.spatial_dims :])

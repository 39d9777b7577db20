"""Samples to a batch: padded at the far ends to one size, targets expanded, the way back kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.crop import axis_lengths
from pixvox.data.transforms.warp import background
from pixvox.errors import DataError
from pixvox.structures import Batch, Instances, Segmentation, Size


class Collate:
    """Turn samples into a ``Batch``.

    Args:
        size_divisor: Each length of the batch is a multiple of it: one for all axes, or per axis in array
            order.
        min_size: Smallest length per axis, so that all training batches have one shape; None for no limit.
        min_object_size: Objects with fewer pixels or voxels are dropped from the targets: mostly what a crop
            has left of an object at its border.
    """

    def __init__(
        self,
        size_divisor: int | Sequence[int] = 32,
        min_size: int | Sequence[int] | None = None,
        min_object_size: int = 1,
    ) -> None:
        self.size_divisor = size_divisor
        self.min_size = min_size
        self.min_object_size = min_object_size

    def __call__(self, samples: Sequence[Sample], truths: list[Segmentation] | None = None) -> Batch:
        """Return the batch.

        Raises:
            DataError: If samples differ in channels, dimensions, or in having annotations.
        """
        _check_alike(samples)
        size = self._padded_size(samples)
        images = torch.stack([_pad(sample.image, size, background(sample)) for sample in samples])
        ranges = [sample.intensity_range for sample in samples if sample.intensity_range is not None]
        seeds = [sample.seed for sample in samples if sample.seed is not None]
        return Batch(
            images=images,
            targets=self._targets(samples, size),
            geometries=[sample.geometry(size) for sample in samples],
            intensity_ranges=torch.stack(ranges) if len(ranges) == len(samples) else None,
            truths=truths,
            indices=[sample.index for sample in samples],
            sources=[sample.source for sample in samples],
            seeds=seeds if len(seeds) == len(samples) else None,
            repeated=all(sample.repeated for sample in samples),
            views=self._views(samples, size),
            hidden=self._hidden(samples, size),
            inside=self._inside(samples, size),
        )

    def _padded_size(self, samples: Sequence[Sample]) -> Size:
        dims = samples[0].spatial_dims
        divisors = axis_lengths(self.size_divisor, dims)
        least = (1,) * dims if self.min_size is None else axis_lengths(self.min_size, dims)
        largest = [max(lengths) for lengths in zip(*(sample.size for sample in samples), least, strict=True)]
        return tuple(
            math.ceil(length / divisor) * divisor for length, divisor in zip(largest, divisors, strict=True)
        )

    def _views(self, samples: Sequence[Sample], size: Size) -> list[Tensor]:
        """Return the first further version of every image, then the second, ..."""
        return [
            torch.stack(
                [_pad(view, size, background(sample)) for view, sample in zip(views, samples, strict=True)]
            )
            for views in zip(*(sample.views for sample in samples), strict=True)
        ]

    def _hidden(self, samples: Sequence[Sample], size: Size) -> list[Instances | Tensor | None] | None:
        """Return what is known of each unlabelled image, None when nothing is of any."""
        known = [
            None if sample.hidden is None else self._targets([sample.hidden], size) for sample in samples
        ]
        found = [None if each is None else each[0] for each in known]
        return None if all(each is None for each in found) else found

    def _inside(self, samples: Sequence[Sample], size: Size) -> Tensor | None:
        """Return what each image shows; padding is none of it."""
        parts = [sample.inside for sample in samples if sample.inside is not None]
        if len(parts) < len(samples):
            return None
        return torch.stack([_pad(part[None], size, torch.tensor([False]))[0] for part in parts])

    def _targets(self, samples: Sequence[Sample], size: Size) -> list[Instances] | Tensor | None:
        if not samples[0].annotated:
            return None
        if samples[0].layers is None:
            maps = [sample.class_map for sample in samples if sample.class_map is not None]
            ignored = samples[0].ignore_index
            return torch.stack([_pad(each[None], size, torch.tensor([ignored]))[0] for each in maps]).long()
        return [sample.instances(self.min_object_size).on_canvas(size) for sample in samples]


def _check_alike(samples: Sequence[Sample]) -> None:
    first = samples[0]
    for sample in samples[1:]:
        if sample.image.ndim != first.image.ndim or sample.image.shape[0] != first.image.shape[0]:
            raise DataError(
                f"images of one batch must agree in channels and dimensions: {first.source} is "
                f"{tuple(first.image.shape)}, {sample.source} is {tuple(sample.image.shape)}; "
                f"set channels=rgb or channels=grey"
            )
        if (sample.layers is None, sample.class_map is None) != (
            first.layers is None,
            first.class_map is None,
        ):
            raise DataError(
                f"images of one batch need the same kind of annotations: {first.source} and {sample.source}"
            )


def _pad(values: Tensor, size: Size, fill: Tensor) -> Tensor:
    """Pad ``(channels, *spatial)`` at the far ends, each channel with its own value."""
    if tuple(values.shape[1:]) == size:
        return values
    canvas = fill.to(values.dtype).view(-1, *[1] * len(size)).expand(values.shape[0], *size).clone()
    canvas[(slice(None), *(slice(0, length) for length in values.shape[1:]))] = values
    return canvas

"""Enlarge a sample at its borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform
from pixvox.data.transforms.crop import axis_lengths
from pixvox.data.transforms.warp import background, ignore_region


class Pad(Transform):
    """Bring an image to at least ``size``, the same width on both sides; annotations end where the image ended.

    What is added is neither learned nor scored: class maps get the ignored label there, and in an image of
    objects it becomes an ignored region. Without this step the collate function pads at the far ends.

    Args:
        size: Least length, one for all axes or per axis in array order.
        image: ``"reflect"`` mirrors the image at its border, ``"edge"`` repeats the border, ``"low"`` is the low
            end of the intensity range.
        mask_fill: Label of class maps in what is added; the ignored label when None.

    Raises:
        ValueError: If ``image`` is unknown.
    """

    geometric = True

    def __init__(
        self,
        size: int | Sequence[int],
        image: Literal["reflect", "edge", "low"] = "reflect",
        mask_fill: int | None = None,
    ) -> None:
        if image not in ("reflect", "edge", "low"):
            raise ValueError(f"image takes reflect, edge or low, got {image!r}")
        self.size = size
        self.image = image
        self.mask_fill = mask_fill

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the padded sample; one that is large enough passes unchanged."""
        wanted = axis_lengths(self.size, sample.spatial_dims)
        room = [max(0, least - length) for least, length in zip(wanted, sample.size, strict=True)]
        if not any(room):
            return sample
        before = [extra // 2 for extra in room]
        size = tuple(length + extra for length, extra in zip(sample.size, room, strict=True))
        inner = (
            slice(None),
            *(slice(first, first + length) for first, length in zip(before, sample.size, strict=True)),
        )

        def maps(values: Tensor, fill: int) -> Tensor:
            canvas = values.new_full((len(values), *size), fill)
            canvas[inner] = values
            return canvas

        filled = sample if self.mask_fill is None else replace(sample, ignore_index=self.mask_fill)
        padded = filled.remap(lambda image: self._image(image, sample, before, size), maps)
        padded = replace(padded, ignore_index=sample.ignore_index, original_size=None)
        outside = torch.ones(size, dtype=torch.bool)
        outside[inner[1:]] = False
        return ignore_region(padded, outside)

    def _image(self, image: Tensor, sample: Sample, before: Sequence[int], size: Sequence[int]) -> Tensor:
        if self.image == "low":
            fill = background(sample).to(image.dtype)
            canvas = fill.view(-1, *[1] * len(size)).expand(len(image), *size).clone()
            spans = (slice(first, first + n) for first, n in zip(before, image.shape[1:], strict=True))
            canvas[(slice(None), *spans)] = image
            return canvas
        for axis, (first, length) in enumerate(zip(before, size, strict=True), start=1):
            places = torch.arange(-first, length - first)
            image = image.index_select(axis, _inside(places, image.shape[axis], self.image))
        return image


def _inside(places: Tensor, length: int, mode: str) -> Tensor:
    """Return where to read places beyond an axis; a mirror at each end sees the other."""
    if mode == "edge" or length == 1:
        return places.clamp(0, length - 1)
    period = 2 * (length - 1)
    folded = places.remainder(period)
    return torch.minimum(folded, period - folded)

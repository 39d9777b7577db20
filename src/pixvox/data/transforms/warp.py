"""Resample a sample at given places: interpolated intensities, exact labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixvox.data.sample import Sample


def warp(sample: Sample, places: Float[Tensor, "*output dims"], reflect: bool = False) -> Sample:
    """Sample image and label maps at ``places``, one per pixel of the output.

    Intensities are interpolated linearly; labels are gathered as integers, so ids of any size stay exact.
    Places outside the image get the low end of the intensity range, background, and the ignored label.

    Args:
        sample: What is resampled.
        places: Positions in pixels in array order; 0 is the centre of the first pixel.
        reflect: Mirror the image at its border instead; annotations still end there, and in an image of objects
            what lies outside becomes an ignored region.
    """
    size = sample.image.shape[1:]
    inside, flat = _nearest(places, size)
    whole = bool(inside.all())

    def image(values: Tensor) -> Tensor:
        # grid_sample counts -1..1 from edge to edge, last axis first.
        grid = torch.stack(
            [
                places[..., axis] * (2 / size[axis]) + (1 / size[axis] - 1)
                for axis in reversed(range(len(size)))
            ],
            dim=-1,
        )
        mode = "reflection" if reflect else "border"
        sampled = F.grid_sample(
            values[None], grid[None].to(values.dtype), padding_mode=mode, align_corners=False
        )[0]
        if whole or reflect:
            return sampled
        return torch.where(inside, sampled, background(sample).view(-1, *[1] * len(size)))

    def maps(values: Tensor, fill: int) -> Tensor:
        gathered = values.flatten(1)[:, flat]
        return gathered if whole else torch.where(inside, gathered, torch.full((), fill, dtype=values.dtype))

    moved = sample.remap(image, maps)
    return ignore_region(moved, ~inside) if reflect and not whole else moved


def ignore_region(sample: Sample, region: Bool[Tensor, "*spatial"]) -> Sample:
    """Make a region of an image of objects one that is neither learned nor scored; class maps stay as they are."""
    if sample.layers is None or sample.labels is None or sample.ignore is None:
        return sample
    number = len(sample.labels) + 1
    return replace(
        sample,
        layers=torch.cat([sample.layers, (region * number).to(sample.layers.dtype)[None]]),
        labels=torch.cat([sample.labels, sample.labels.new_zeros(1)]),
        ignore=torch.cat([sample.ignore, sample.ignore.new_ones(1)]),
    )


def _nearest(
    places: Float[Tensor, "*output dims"], size: Sequence[int]
) -> tuple[Bool[Tensor, "*output"], Int[Tensor, "*output"]]:
    """Return whether the nearest pixel of each place exists, and its number in memory order."""
    inside = torch.ones((), dtype=torch.bool)
    flat = torch.zeros((), dtype=torch.int64)
    for axis, length in enumerate(size):  # one axis at a time: reductions over a last axis of 2 or 3 are slow
        index = (places[..., axis] + 0.5).floor_()
        inside = inside & (index >= 0) & (index < length)
        flat = flat * length + index.clamp_(0, length - 1).long()
    return inside, flat


def pixel_grid(size: Sequence[int]) -> Float[Tensor, "*output dims"]:
    """Return the position of each pixel of an image of ``size``, in array order."""
    axes = [torch.arange(length, dtype=torch.float32) for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def background(sample: Sample) -> Float[Tensor, " channels"]:
    """Return the intensity of places outside the image: the low end of each channel's range."""
    if sample.intensity_range is not None:
        return sample.intensity_range[:, 0]
    return sample.image.flatten(1).amin(dim=1)

"""Resample a sample at given places: interpolated intensities, exact labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import Sample


def warp(sample: Sample, places: Float[Tensor, "*output dims"]) -> Sample:
    """Sample image and label maps at ``places``, one per pixel of the output.

    Intensities are interpolated linearly; labels are gathered as integers, so ids of any size stay exact.
    Places outside the image get the low end of the intensity range, background, and the ignored label.

    Args:
        sample: What is resampled.
        places: Positions in pixels in array order; 0 is the centre of the first pixel.
    """
    size = sample.image.shape[1:]
    nearest = (places + 0.5).floor().long()
    limits = torch.tensor(size)
    inside = ((nearest >= 0) & (nearest < limits)).all(dim=-1)
    strides = torch.tensor([math.prod(size[axis + 1 :]) for axis in range(len(size))])
    flat = (nearest.clamp_(min=torch.zeros_like(limits), max=limits - 1) * strides).sum(dim=-1)

    def image(values: Tensor) -> Tensor:
        # grid_sample counts -1..1 from edge to edge, last axis first.
        grid = ((2 * places + 1) / limits - 1).flip(-1).to(values.dtype)
        sampled = F.grid_sample(values[None], grid[None], padding_mode="border", align_corners=False)[0]
        return torch.where(inside, sampled, background(sample).view(-1, *[1] * len(size)))

    def maps(values: Tensor, fill: int) -> Tensor:
        gathered = values.flatten(1)[:, flat]
        return torch.where(inside, gathered, torch.full((), fill, dtype=values.dtype))

    return sample.remap(image, maps)


def pixel_grid(size: Sequence[int]) -> Float[Tensor, "*output dims"]:
    """Return the position of each pixel of an image of ``size``, in array order."""
    axes = [torch.arange(length, dtype=torch.float32) for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def background(sample: Sample) -> Float[Tensor, " channels"]:
    """Return the intensity of places outside the image: the low end of each channel's range."""
    if sample.intensity_range is not None:
        return sample.intensity_range[:, 0]
    return sample.image.flatten(1).amin(dim=1)

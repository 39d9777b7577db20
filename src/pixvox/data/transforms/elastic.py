"""Deform an image and its annotations smoothly."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens
from pixvox.data.transforms.warp import pixel_grid, warp

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class RandomElastic(Transform):
    """Displace the pixels by a smooth random field.

    "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis" (Simard et al.,
    2003, https://doi.org/10.1109/ICDAR.2003.1227801), with the field drawn on a coarse grid of control points
    instead of smoothed at full size.

    Args:
        displacement: Standard deviation of the displacement of control points, in pixels of the finest axis;
            coarser axes are displaced by the same physical length.
        control_spacing: Distance of control points in the same unit. The displacement should stay below a
            third of it, or the field folds.
        probability: Probability of a deformation.
    """

    geometric = True

    def __init__(
        self, displacement: float = 4.0, control_spacing: float = 32.0, probability: float = 0.5
    ) -> None:
        self.displacement = displacement
        self.control_spacing = control_spacing
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the deformed sample."""
        if not happens(generator, self.probability):
            return sample
        spacing = sample.spacing if sample.spacing is not None else (1.0,) * sample.spatial_dims
        relative = torch.tensor([step / min(spacing) for step in spacing])
        control_size = [
            max(2, 1 + round(length * step / self.control_spacing))
            for length, step in zip(sample.size, relative.tolist(), strict=True)
        ]
        field = torch.randn((1, sample.spatial_dims, *control_size), generator=generator) * self.displacement
        field = F.interpolate(field, size=sample.size, mode=_MODES[sample.spatial_dims], align_corners=True)[
            0
        ]
        return warp(sample, pixel_grid(sample.size) + field.movedim(0, -1) / relative)

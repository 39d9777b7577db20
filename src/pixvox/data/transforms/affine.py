"""Rotate, scale and shear an image and its annotations, and cut the patch in the same step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens, uniform
from pixvox.data.transforms.crop import axis_lengths, cut, patch_start
from pixvox.data.transforms.warp import warp
from pixvox.structures import Size


class RandomAffine(Transform):
    """Rotate, scale and shear about the centre of the image, or of a random patch of it.

    Rotations are rotations in physical space: with a spacing of 2 x 1 x 1 micrometres a turned sphere stays a
    sphere. With ``size`` the patch is sampled straight from the whole image, so that its corners show what is
    there, everything is interpolated once, and the cost is that of the patch.

    Args:
        rotation: Largest angle in degrees, to both sides. One number turns in the plane of the last two axes,
            because most volumes are blurred differently along z; a list gives one per pair of axes: ``[yx]``,
            or ``[zy, zx, yx]``.
        scale: Smallest and largest magnification, one draw for all axes.
        shear: Largest shear of each pair of axes, as a tangent.
        aspect: Largest ratio by which one axis is stretched against another, 1 or above.
        perspective: Strength of a tilt, 0 up to but not including 1: towards one corner the image shrinks,
            towards the opposite one it grows, at most by (1 + perspective) to (1 - perspective). Volumes are
            distorted likewise.
        probability: Probability of a change; otherwise the patch is cut out exactly.
        size: Length of the patch, one for all axes or per axis; the whole image when None.
        foreground: Share of the patches that are placed on an object; see ``RandomCrop``.
        mask_fill: Label of class maps outside the image; the ignored label when None.
        border: What the image shows outside: ``"low"``, the low end of the intensity range, or ``"reflect"``, its
            mirror image, which is neither learned nor scored.

    Raises:
        ValueError: If the range of ``scale`` is not positive and ascending, or ``aspect`` or ``perspective``
            out of range.
    """

    geometric = True

    def __init__(
        self,
        rotation: float | Sequence[float] = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        shear: float = 0.0,
        probability: float = 1.0,
        size: int | Sequence[int] | None = None,
        foreground: float = 0.0,
        aspect: float = 1.0,
        perspective: float = 0.0,
        mask_fill: int | None = None,
        border: Literal["low", "reflect"] = "low",
    ) -> None:
        low, high = scale
        if not 0 < low <= high:
            raise ValueError(
                f"scale must be a positive ascending range such as [0.8, 1.25], got {list(scale)}"
            )
        if aspect < 1 or not 0 <= perspective < 1:
            raise ValueError(
                f"aspect must be 1 or above and perspective lie in [0, 1), got {aspect} and {perspective}"
            )
        if border not in ("low", "reflect"):
            raise ValueError(f"border takes low or reflect, got {border!r}")
        self.rotation = rotation
        self.scale = (float(low), float(high))
        self.shear = shear
        self.probability = probability
        self.size = size
        self.foreground = foreground
        self.aspect = aspect
        self.perspective = perspective
        self.mask_fill = mask_fill
        self.border = border

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample, or patch of it."""
        dims = sample.spatial_dims
        changed = happens(generator, self.probability)
        matrix = self._matrix(dims, generator)
        tilt = self._tilt(dims, generator)
        size, start = sample.size, (0,) * dims
        if self.size is not None:
            size = self._patch_size(sample)
            start = patch_start(sample, size, self.foreground, generator)
        if not changed:
            return cut(sample, start, size) if self.size is not None else sample
        spacing = torch.tensor(sample.spacing if sample.spacing is not None else (1.0,) * dims)
        # Physical rotation seen in pixels: stretch to physical lengths, turn, shrink back.
        matrix = matrix * spacing[None] / spacing[:, None]
        offsets = _offsets(size)
        # Axes are broadcast, not multiplied as a matrix: a product of millions by two or three columns is slow.
        moved = [
            sum(factor * offset for factor, offset in zip(row, offsets, strict=True))
            for row in matrix.tolist()
        ]
        if tilt is not None:
            steepness = zip(tilt.tolist(), offsets, size, strict=True)
            depth = 1 + sum(slope * offset / (max(length - 1, 1) / 2) for slope, offset, length in steepness)
            moved = [axis / depth for axis in moved]
        corner = [first + (length - 1) / 2 for first, length in zip(start, size, strict=True)]
        places = torch.stack([axis + centre for axis, centre in zip(moved, corner, strict=True)], dim=-1)
        filled = sample if self.mask_fill is None else replace(sample, ignore_index=self.mask_fill)
        changed_sample = warp(filled, places, self.border == "reflect")
        return replace(changed_sample, ignore_index=sample.ignore_index, original_size=None)

    def _patch_size(self, sample: Sample) -> Size:
        size = axis_lengths(self.size if self.size is not None else sample.size, sample.spatial_dims)
        return tuple(min(length, whole) for length, whole in zip(size, sample.size, strict=True))

    def _matrix(self, dims: int, generator: torch.Generator) -> Float[Tensor, "dims dims"]:
        """Draw the matrix that maps output offsets to input offsets in an isotropic frame."""
        planes = list(combinations(range(dims), 2))
        if isinstance(self.rotation, (int, float)):
            limits = [0.0] * (len(planes) - 1) + [float(self.rotation)]
        else:
            limits = list(self.rotation)
        if len(limits) != len(planes):
            raise ValueError(
                f"rotation needs one angle, or {len(planes)} for the planes of a {dims}-D image, got {limits}"
            )
        matrix = torch.eye(dims)
        for (a, b), limit in zip(planes, limits, strict=True):
            angle = math.radians(uniform(generator, -limit, limit))
            turn = torch.eye(dims)
            turn[a, a] = turn[b, b] = math.cos(angle)
            turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
            tilt = torch.eye(dims)
            tilt[a, b] = uniform(generator, -self.shear, self.shear)
            matrix = turn @ tilt @ matrix
        magnification = math.exp(uniform(generator, math.log(self.scale[0]), math.log(self.scale[1])))
        if self.aspect > 1:  # drawn only where asked for: other pipelines keep their random numbers
            half = math.log(self.aspect) / 2
            stretch = torch.tensor([uniform(generator, -half, half) for _ in range(dims)])
            matrix = matrix * torch.exp(stretch - stretch.mean())
        return matrix / magnification

    def _tilt(self, dims: int, generator: torch.Generator) -> Float[Tensor, " dims"] | None:
        """Draw how fast the denominator of the projection grows from the centre to the end of each axis."""
        if self.perspective == 0:
            return None
        limit = self.perspective / dims  # the sum over the axes at a corner stays below 1
        return torch.tensor([uniform(generator, -limit, limit) for _ in range(dims)])


def _offsets(size: Size) -> list[Tensor]:
    """Return the distance of pixels from the centre along each axis, shaped to broadcast."""
    lines = [torch.arange(length, dtype=torch.float32) - (length - 1) / 2 for length in size]
    return [
        line.view([-1 if axis == own else 1 for axis in range(len(size))]) for own, line in enumerate(lines)
    ]

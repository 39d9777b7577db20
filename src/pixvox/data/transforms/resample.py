"""Bring images of different pixel or voxel sizes to one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform
from pixvox.data.transforms.resize import resize
from pixvox.data.units import MICROMETRES
from pixvox.errors import DataError
from pixvox.structures import Size

_MOST_GROWTH = 1000  # of the voxels of an image; beyond it a wrong unit is likelier than a wish


class Resample(Transform):
    """Resize so that pixels or voxels have the same size in every image; the way back stays in the geometry.

    Intensities are interpolated linearly, averaged where an axis shrinks; labels are those of the nearest pixel. The
    first and the last border of an image stay in their place, so the spacing is met as nearly as a whole number of
    pixels allows, as in nnU-Net (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z).

    Args:
        spacing: Size of a pixel or voxel afterwards, one for all axes or per axis in array order.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``; None for that of each image.

    Raises:
        ValueError: If a length is not above 0, or there is no such unit.

    Example:
        >>> from pixvox.data.transforms import Resample
        >>> sample = Sample(torch.rand(1, 10, 40, 30), spacing=(2.0, 0.5, 0.5))
        >>> changed = Resample([1.0, 1.0, 0.5])(sample, torch.Generator())
        >>> changed.size, changed.spacing, changed.original_size
        ((20, 20, 30), (1.0, 1.0, 0.5), (10, 40, 30))
    """

    geometric = True

    def __init__(self, spacing: float | Sequence[float], unit: str | None = None) -> None:
        lengths = [spacing] if isinstance(spacing, int | float) else list(spacing)
        if not lengths or not all(math.isfinite(length) and length > 0 for length in lengths):
            raise ValueError(f"spacing is the size of a pixel or voxel per axis, above 0; got {spacing}")
        if unit is not None and unit not in MICROMETRES:
            raise ValueError(f"the unit of a spacing is um or mm, got {unit!r}")
        self.spacing, self.unit = spacing, unit

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample at the spacing; see ``size_of`` for what cannot be."""
        return resize(sample, self.size_of(sample))

    def size_of(self, sample: Sample) -> Size:
        """Return the size that a sample has afterwards.

        Raises:
            DataError: If it does not know its spacing, or would grow beyond all measure.
        """
        if sample.spacing is None:
            raise DataError(
                f"{sample.source or 'this image'} does not say how large its {_pixels(sample)} are, so it cannot be "
                "resampled; give the size as spacing of the dataset (data.options.spacing=[...]), or leave out "
                "transforms.spacing"
            )
        return self.size(sample.size, sample.spacing, sample.unit, sample.source)

    def size(self, size: Size, spacing: Sequence[float], unit: str = "um", source: str = "") -> Size:
        """Return the size that an image has afterwards.

        Args:
            size: Its size.
            spacing: Its spacing.
            unit: Unit of ``spacing``.
            source: Its name, for messages.

        Raises:
            DataError: If it would grow beyond all measure.
        """
        wanted = spacing_per_axis(self.spacing, len(size))
        scale = 1.0 if self.unit is None else MICROMETRES[unit] / MICROMETRES[self.unit]
        target = tuple(
            max(1, round(length * step * scale / new))
            for length, step, new in zip(size, spacing, wanted, strict=True)
        )
        if math.prod(target) > _MOST_GROWTH * math.prod(size):
            raise DataError(
                f"{source or 'an image'} of {_by(size)} and a spacing of {_by(spacing)} {unit} would become "
                f"{_by(target)} at {_by(wanted)} {self.unit or unit}; is it the right unit?"
            )
        return target


def spacing_per_axis(spacing: float | Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    """Return one length per axis in array order.

    Raises:
        ValueError: If ``spacing`` has another number of axes.

    Example:
        >>> spacing_per_axis(0.5, 2)
        (0.5, 0.5)
    """
    if isinstance(spacing, int | float):
        return (float(spacing),) * spatial_dims
    if len(spacing) != spatial_dims:
        raise ValueError(
            f"spacing {list(spacing)} has {len(spacing)} axes, the images have {spatial_dims}; give one length, or one "
            "per axis in array order"
        )
    return tuple(float(length) for length in spacing)


def _pixels(sample: Sample) -> str:
    return "pixels" if sample.spatial_dims == 2 else "voxels"


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)

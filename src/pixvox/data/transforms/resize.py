"""Change the size of an image and its annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens, uniform
from pixvox.data.transforms.crop import axis_lengths
from pixvox.structures import Size

_MODES = {2: "bilinear", 3: "trilinear"}


class Resize(Transform):
    """Resize, keeping the aspect unless asked otherwise; the way back stays in the geometry.

    Args:
        size: Target length, one for all axes or per axis in array order.
        mode: ``"fit"`` makes the image as large as fits into ``size``; ``"shortest"`` brings the shortest
            edge to ``size`` (the smallest of its lengths), at most so far that the longest does not exceed
            ``longest``; ``"exact"`` takes ``size`` as it is and changes the aspect.
        longest: Upper limit of the longest edge for ``"shortest"``.
        jitter: Range of an additional random factor, for training; (1, 1) in evaluation.
        aspect: Largest ratio by which one axis is stretched against another, for training; 1 keeps the aspect.

    Raises:
        ValueError: If the mode is unknown, or ``aspect`` is below 1.
    """

    geometric = True

    def __init__(
        self,
        size: int | Sequence[int],
        mode: Literal["fit", "shortest", "exact"] = "fit",
        longest: int | None = None,
        jitter: Sequence[float] = (1.0, 1.0),
        aspect: float = 1.0,
    ) -> None:
        if mode not in ("fit", "shortest", "exact"):
            raise ValueError(f"mode must be 'fit', 'shortest' or 'exact', got {mode!r}")
        _check_aspect(aspect)
        self.size = size
        self.mode = mode
        self.longest = longest
        self.jitter = (float(jitter[0]), float(jitter[1]))
        self.aspect = aspect

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the resized sample."""
        factor = uniform(generator, *self.jitter)
        target = self._target(sample.size, factor)
        return resize(sample, _stretched(target, self.aspect, generator))

    def _target(self, size: Size, factor: float) -> Size:
        wanted = axis_lengths(self.size, len(size))
        if self.mode == "exact":
            return tuple(max(1, round(length * factor)) for length in wanted)
        if self.mode == "fit":
            ratio = min(length / whole for length, whole in zip(wanted, size, strict=True))
        else:
            ratio = min(wanted) / min(size)
            if self.longest is not None:
                ratio = min(ratio, self.longest / max(size))
        return tuple(max(1, round(length * ratio * factor)) for length in size)


class RandomRescale(Transform):
    """Resize by a random factor, whatever the size; a crop usually follows.

    Args:
        scale: Smallest and largest factor, drawn evenly on a logarithmic scale.
        aspect: Largest ratio by which one axis is stretched against another; 1 keeps the aspect.
        probability: Probability of a change.

    Raises:
        ValueError: If the range of ``scale`` is not positive and ascending, or ``aspect`` is below 1.
    """

    geometric = True

    def __init__(
        self, scale: Sequence[float] = (0.5, 2.0), aspect: float = 1.0, probability: float = 1.0
    ) -> None:
        low, high = scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be a positive ascending range such as [0.5, 2], got {list(scale)}")
        _check_aspect(aspect)
        self.scale = (float(low), float(high))
        self.aspect = aspect
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the resized sample."""
        if not happens(generator, self.probability):
            return sample
        factor = math.exp(uniform(generator, math.log(self.scale[0]), math.log(self.scale[1])))
        target = tuple(max(1, round(length * factor)) for length in sample.size)
        return resize(sample, _stretched(target, self.aspect, generator))


def _check_aspect(aspect: float) -> None:
    if aspect < 1:
        raise ValueError(f"aspect must be 1 (as it is) or above, got {aspect}")


def _stretched(size: Size, aspect: float, generator: torch.Generator) -> Size:
    """Return a size of about the same area or volume whose axes are stretched at random."""
    if aspect == 1:
        return size
    half = math.log(aspect) / 2
    stretch = [uniform(generator, -half, half) for _ in size]
    middle = sum(stretch) / len(stretch)
    return tuple(max(1, round(n * math.exp(by - middle))) for n, by in zip(size, stretch, strict=True))


def resize(sample: Sample, size: Size) -> Sample:
    """Return the sample at ``size``: intensities averaged when shrinking, labels of the nearest pixel."""
    before = sample.size
    if size == before:
        return sample
    original = sample.original_size or before
    changed = sample.remap(lambda image: _interpolate(image, size), lambda maps, fill: nearest(maps, size))
    spacing = sample.spacing
    if spacing is not None:
        spacing = tuple(step * old / new for step, old, new in zip(spacing, before, size, strict=True))
    return replace(changed, original_size=original, spacing=spacing)


def _interpolate(image: Tensor, size: Size) -> Tensor:
    if image.ndim == 3:
        return F.interpolate(image[None], size=size, mode=_MODES[2], antialias=True)[0]
    # Anti-aliasing exists for images only: area averaging shrinks volumes, axis by axis independently.
    shrunk = tuple(min(now, target) for now, target in zip(image.shape[1:], size, strict=True))
    if shrunk != tuple(image.shape[1:]):
        image = F.interpolate(image[None], size=shrunk, mode="area")[0]
    if shrunk != size:
        image = F.interpolate(image[None], size=size, mode=_MODES[3], align_corners=False)[0]
    return image


def nearest(maps: Tensor, size: Size) -> Tensor:
    """Return label maps ``(layers, *spatial)`` at another size, each pixel with the label of the nearest one.

    Example:
        >>> nearest(torch.tensor([[[1, 2, 3]]]), (1, 6)).tolist()
        [[[1, 1, 2, 2, 3, 3]]]
    """
    for axis, (length, target) in enumerate(zip(maps.shape[1:], size, strict=True), start=1):
        index = ((torch.arange(target, dtype=torch.float64) + 0.5) * length / target).floor().long()
        maps = maps.index_select(axis, index.clamp(max=length - 1))
    return maps

"""Paste objects of another image."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens
from pixvox.data.transforms.intensity import channel_range, gaussian_blur


class CopyPaste(Transform):
    """Paste a random part of another sample's objects, at their places, over this one.

    "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (Ghiasi et al., 2021,
    https://arxiv.org/abs/2012.07177). The other sample went through the same earlier steps with draws of its own:
    put this step behind the crop. Its intensities are brought to this sample's range. Pasted objects hide what
    is below them; of an object that is hidden but for a small rest, the rest is dropped. Samples of class maps
    get half of the other's classes, as in "ClassMix: Segmentation-Based Data Augmentation for Semi-Supervised
    Learning" (Olsson et al., 2020, https://arxiv.org/abs/2007.07936). Without annotations nothing is pasted.

    Args:
        probability: Probability of a change.
        share: Probability of each object to be pasted.
        min_visible: Least share of an object that must stay visible.
        min_size: Least pixels or voxels of an object that must stay visible.
        blend: Standard deviation of the transition at the borders of pasted objects, in pixels; 0 cuts sharply.

    Raises:
        ValueError: If a share is outside 0..1.
    """

    def __init__(
        self,
        probability: float = 0.5,
        share: float = 0.5,
        min_visible: float = 0.1,
        min_size: int = 4,
        blend: float = 0.7,
    ) -> None:
        if not (0 <= share <= 1 and 0 <= min_visible <= 1):
            raise ValueError(f"share and min_visible must lie in 0..1, got {share} and {min_visible}")
        self.probability = probability
        self.share = share
        self.min_visible = min_visible
        self.min_size = min_size
        self.blend = blend

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample with objects pasted into it."""
        if not happens(generator, self.probability) or sample.further is None or not sample.annotated:
            return sample
        other = fit_onto(sample.further(generator), sample)
        if sample.layers is not None:
            return self._paste_objects(sample, other, generator)
        return self._paste_classes(sample, other, generator)

    def _paste_objects(self, sample: Sample, other: Sample, generator: torch.Generator) -> Sample:
        if sample.layers is None or sample.labels is None or sample.ignore is None:
            return sample
        if other.layers is None or other.labels is None or other.ignore is None or not len(other.labels):
            return sample
        present = _areas(other.layers, len(other.labels))[1:] >= max(self.min_size, 1)
        drawn = torch.rand(len(other.labels), generator=generator) < self.share
        kept = (drawn & present & ~other.ignore).nonzero()[:, 0]
        if not len(kept):
            return sample
        count = len(sample.labels)
        numbers = torch.zeros(len(other.labels) + 1, dtype=sample.layers.dtype)
        numbers[kept + 1] = torch.arange(count + 1, count + 1 + len(kept), dtype=numbers.dtype)
        pasted = numbers[other.layers.long()]
        over = (pasted > 0).any(dim=0)
        left = drop_hidden(sample.layers, over, count, self.min_visible, self.min_size)
        return replace(
            sample,
            image=self._blended(sample.image, other.image, over),
            layers=_stacked(left, pasted),
            labels=torch.cat([sample.labels, other.labels[kept]]),
            ignore=torch.cat([sample.ignore, other.ignore[kept]]),
        )

    def _paste_classes(self, sample: Sample, other: Sample, generator: torch.Generator) -> Sample:
        if sample.class_map is None or other.class_map is None:
            return sample
        areas = torch.bincount(other.class_map.flatten(), minlength=other.ignore_index + 1)
        areas[other.ignore_index] = 0
        classes = areas.nonzero()[:, 0]
        order = torch.randperm(len(classes), generator=generator)
        over = torch.isin(other.class_map, classes[order[: (len(classes) + 1) // 2]])
        return replace(
            sample,
            image=self._blended(sample.image, other.image, over),
            class_map=torch.where(over, other.class_map.to(sample.class_map.dtype), sample.class_map),
        )

    def _blended(self, image: Tensor, pasted: Tensor, over: Bool[Tensor, "*spatial"]) -> Tensor:
        weight = over.to(image.dtype)[None]
        if self.blend > 0:
            weight = gaussian_blur(weight, [self.blend] * over.ndim)
        return torch.lerp(image, pasted, weight)


def fit_onto(other: Sample, sample: Sample) -> Sample:
    """Bring another sample to the intensity range and the size of this one, cut or ended at the far ends.

    Beyond its own end the other sample shows the low end of the range, without annotations.
    """
    low, width = channel_range(sample)
    their_low, their_width = channel_range(other)
    image = (other.image - their_low) / their_width * width + low
    if other.size == sample.size:
        return replace(other, image=image, intensity_range=sample.intensity_range)
    both = [min(ours, theirs) for ours, theirs in zip(sample.size, other.size, strict=True)]
    region = (slice(None), *(slice(0, length) for length in both))

    def pictured(values: Tensor) -> Tensor:
        canvas = low.expand(len(values), *sample.size).clone()
        canvas[region] = image[region]
        return canvas

    def mapped(values: Tensor, fill: int) -> Tensor:
        canvas = values.new_full((len(values), *sample.size), fill)
        canvas[region] = values[region]
        return canvas

    return replace(other.remap(pictured, mapped), intensity_range=sample.intensity_range, original_size=None)


def drop_hidden(
    layers: Int[Tensor, "layers *spatial"],
    over: Bool[Tensor, "*spatial"],
    count: int,
    min_visible: float,
    min_size: int,
) -> Int[Tensor, "layers *spatial"]:
    """Cut ``over`` out of the objects 1..count; of those that are touched, small rests are dropped whole."""
    cut = layers.masked_fill(over, 0)
    before, after = _areas(layers, count), _areas(cut, count)
    small = (after < before) & ((after < min_visible * before) | (after < min_size))
    keep = torch.arange(count + 1, dtype=layers.dtype)
    keep[small] = 0
    return keep[cut.long()] if bool(small.any()) else cut


def _areas(layers: Int[Tensor, "layers *spatial"], count: int) -> Int[Tensor, " ids"]:
    """Return the elements of each of the ids 0..count."""
    return torch.bincount(layers.flatten(), minlength=count + 1)


def _stacked(below: Int[Tensor, "a *spatial"], above: Int[Tensor, "b *spatial"]) -> Int[Tensor, "c *spatial"]:
    """Join layers where ``above`` lies on places that are free in ``below``, layer by layer."""
    depth = max(len(below), len(above))
    joined = below.new_zeros((depth, *below.shape[1:]))
    joined[: len(below)] = below
    joined[: len(above)] += above
    return joined

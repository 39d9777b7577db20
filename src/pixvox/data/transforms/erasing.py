"""Hide a random box of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens, uniform
from pixvox.data.transforms.intensity import channel_range


class RandomErasing(Transform):
    """Paint random boxes over, so that objects are recognised by what is left of them.

    "Random Erasing Data Augmentation" (Zhong et al., 2017, https://arxiv.org/abs/1708.04896).

    Args:
        probability: Probability of a change.
        share: Smallest and largest share of the image's area or volume that one box covers.
        aspect: Largest ratio of two sides of a box, 1 or above.
        count: Boxes.
        fill: ``"mean"`` paints the mean of each channel, ``"noise"`` uniform noise over its range.
        labels: ``"keep"`` leaves annotations as they are: what is hidden is to be guessed. ``"erase"`` removes
            them with the image: hidden objects are no longer there, hidden pixels of a class map are ignored.

    Raises:
        ValueError: If a range is not one.
    """

    def __init__(
        self,
        probability: float = 0.2,
        share: Sequence[float] = (0.02, 0.33),
        aspect: float = 3.3,
        count: int = 1,
        fill: Literal["mean", "noise"] = "mean",
        labels: Literal["keep", "erase"] = "keep",
    ) -> None:
        if not 0 < share[0] <= share[1] <= 1 or aspect < 1:
            raise ValueError(
                f"share must be an ascending range within 0..1 and aspect 1 or above, got {list(share)}, {aspect}"
            )
        if fill not in ("mean", "noise") or labels not in ("keep", "erase"):
            raise ValueError(f"fill takes mean or noise, labels keep or erase; got {fill!r}, {labels!r}")
        self.probability = probability
        self.share = float(share[0]), float(share[1])
        self.aspect = aspect
        self.count = count
        self.fill = fill
        self.labels = labels

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample with boxes painted over."""
        if not happens(generator, self.probability):
            return sample
        image = sample.image.clone()
        low, width = channel_range(sample)
        mean = image.mean(dim=tuple(range(1, image.ndim)), keepdim=True)
        regions = [
            (slice(None), *random_box(sample.size, self.share, self.aspect, generator))
            for _ in range(self.count)
        ]
        for region in regions:
            if self.fill == "mean":
                image[region] = mean
            else:
                image[region] = torch.rand(image[region].shape, generator=generator) * width + low
        erased = replace(sample, image=image)
        if self.labels == "keep":
            return erased

        def hidden(maps: torch.Tensor, fill: int) -> torch.Tensor:
            maps = maps.clone()
            for region in regions:
                maps[region] = fill
            return maps

        return erased.remap(lambda values: values, hidden)


def random_box(
    size: Sequence[int], share: Sequence[float], aspect: float, generator: torch.Generator
) -> tuple[slice, ...]:
    """Draw a box inside a canvas.

    Args:
        size: Of the canvas.
        share: Smallest and largest share of its area or volume.
        aspect: Largest ratio of two sides, relative to the canvas.
        generator: Source of the draws.
    """
    # One side of a cube of that share, relative to the canvas, then stretched at the same volume.
    side = uniform(generator, *share) ** (1 / len(size))
    half = math.log(aspect) / 2
    stretch = [uniform(generator, -half, half) for _ in size]
    middle = sum(stretch) / len(stretch)
    spans = []
    for length, log_factor in zip(size, stretch, strict=True):
        extent = min(length, max(1, round(length * side * math.exp(log_factor - middle))))
        start = int(uniform(generator, 0, length - extent + 1))
        spans.append(slice(start, start + extent))
    return tuple(spans)

"""Mirror an image and its annotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens


class RandomFlip(Transform):
    """Mirror along each of the axes independently.

    A mirror makes a left arm a right one, and a second mirror, being a turn together with the first, makes it a left
    one again: with an odd number of axes the classes of ``Sample.flip_pairs`` change places.

    Args:
        axes: Axes in array order; negative counts from the last, so -1 is left-right in 2-D and 3-D. All
            when None.
        probability: Probability of each mirroring.
    """

    geometric = True

    def __init__(self, axes: Sequence[int] | None = None, probability: float = 0.5) -> None:
        self.axes = tuple(axes) if axes is not None else None
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the mirrored sample."""
        dims = sample.spatial_dims
        axes = range(dims) if self.axes is None else [axis % dims for axis in self.axes]
        flipped = [1 + axis for axis in axes if happens(generator, self.probability)]
        if not flipped:
            return sample
        moved = sample.remap(lambda image: image.flip(flipped), lambda maps, fill: maps.flip(flipped))
        return moved.mirrored_classes() if len(flipped) % 2 else moved

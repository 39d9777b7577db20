"""A transform, and several in a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from pixvox.data.sample import Sample


class Transform(ABC):
    """Changes a sample; whatever is random comes from the generator that is passed in.

    A transform never changes the tensors it is given: it returns a new sample. One that mixes samples asks for
    others of the same dataset by ``sample.further(generator)``, where that is not None.
    """

    geometric: ClassVar[bool] = False
    """Whether it only moves, scales, cuts or pads: all that a weak view of an unlabelled image may go through."""

    @abstractmethod
    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample."""


class Compose(Transform):
    """Apply steps one after the other.

    Args:
        steps: Transforms, or transforms by name, so that a config can change or drop one of them; a step that
            is None is left out.

    Example:
        >>> from pixvox.data.transforms import RandomFlip
        >>> pipeline = Compose({"flip": RandomFlip(probability=1.0), "elastic": None})
        >>> sample = Sample(torch.tensor([[[1.0, 2.0, 3.0]]]))
        >>> pipeline(sample, torch.Generator()).image.tolist()
        [[[3.0, 2.0, 1.0]]]
    """

    def __init__(self, steps: Sequence[Transform | None] | Mapping[str, Transform | None] = ()) -> None:
        chosen = steps.values() if isinstance(steps, Mapping) else steps
        self.steps = [step for step in chosen if step is not None]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample after all steps."""
        for step in self.steps:
            sample = advance(step, sample, generator)
        return sample


def geometric_part(transform: Transform | None) -> Transform | None:
    """Return a transform without the steps that change intensities or mix images; None when nothing is left.

    Example:
        >>> from pixvox.data.transforms import RandomBlur, RandomFlip
        >>> [type(step).__name__ for step in geometric_part(Compose([RandomFlip(), RandomBlur()])).steps]
        ['RandomFlip']
    """
    if isinstance(transform, Compose):
        steps = [part for part in map(geometric_part, transform.steps) if part is not None]
        return Compose(steps) if steps else None
    return transform if transform is not None and transform.geometric else None


def advance(step: Transform, sample: Sample, generator: torch.Generator) -> Sample:
    """Apply one step, to the further samples as well once they are asked for.

    A step that mixes samples thus gets others that went through the same earlier steps, and nothing is read
    or computed for those that do not ask.
    """
    further = sample.further
    changed = step(sample, generator)
    if further is None:
        return changed
    return replace(changed, further=lambda draws: advance(step, further(draws), draws))


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def happens(generator: torch.Generator, probability: float) -> bool:
    """Draw whether something of this probability happens; one number is drawn in any case."""
    return uniform(generator, 0.0, 1.0) < probability

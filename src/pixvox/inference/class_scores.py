"""The class scores of a network, as tiles and augmented views ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.heads.head import Head, Outputs
from pixvox.structures import Geometry

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

Scores = Callable[[Tensor, Tensor], Tensor]
"""Takes un-normalised images ``(batch, channels, *spatial)`` and the intensity ranges ``(batch, channels, 2)`` of the
full images they were cut from; returns logits ``(batch, classes, *spatial)``."""

_SMALLEST = 1e-12
"""Probability that stands for 0 in logarithms."""


@dataclass(frozen=True)
class Strip:
    """Finished class scores of a part of an image, as wide as the image but along one axis.

    Args:
        axis: The axis along which strips follow each other.
        start: Where the strip begins on it, in pixels or voxels.
        logits: Scores of the strip; they may be overwritten once the next strip is asked for.
    """

    axis: int
    start: int
    logits: Float[Tensor, "classes *strip"]


class NetworkScores:
    """Scores of a model, which normalises each piece of an image as the whole image.

    Args:
        model: For semantic segmentation.
    """

    def __init__(self, model: Segmenter) -> None:
        self.model = model

    def __call__(
        self, images: Float[Tensor, "batch channels *spatial"], ranges: Float[Tensor, "batch channels 2"]
    ) -> Float[Tensor, "batch classes *spatial"]:
        """Return the logits; of a head without them, the logarithms of its probabilities."""
        device = next(self.model.parameters()).device
        images, ranges = images.to(device), ranges.to(device)
        outputs: Outputs = self.model(self.model.normalize(images, ranges))
        if "logits" in outputs:
            logits: Tensor = outputs["logits"]
            return logits
        frames = [Geometry.identity(images.shape[2:])] * len(images)
        with _probabilities(self.model.head):
            results = self.model.postprocess(outputs, frames)
        return log_probabilities(torch.stack([_known(result.probabilities) for result in results]))


class AtOnce:
    """Scores of the whole image in one piece.

    Args:
        scores: Of images.
    """

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    def strips(
        self, image: Float[Tensor, "channels *spatial"], intensity_range: Float[Tensor, "channels 2"]
    ) -> Iterator[Strip]:
        """Yield one strip: the image."""
        yield Strip(0, 0, self.scores(image[None], intensity_range[None])[0])


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Return finite logits whose softmax are the given probabilities.

    Example:
        >>> log_probabilities(torch.tensor([[0.25, 0.75]])).softmax(1)
        tensor([[0.2500, 0.7500]])
    """
    return probabilities.float().clamp(min=_SMALLEST).log()


class _probabilities:  # noqa: N801 (a context manager)
    """Let a head give probabilities for a while."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def __enter__(self) -> None:
        self.before = self.head.gives_probabilities
        self.head.gives_probabilities = True

    def __exit__(self, *error: object) -> None:
        self.head.gives_probabilities = self.before


def _known(probabilities: Tensor | None) -> Tensor:
    if probabilities is None:
        raise ValueError(
            "this head gives neither logits nor probabilities of classes, so it can be neither tiled nor augmented"
        )
    return probabilities

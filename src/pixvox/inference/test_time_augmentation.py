"""Segment several views of an image, resized, mirrored and turned, and merge what each says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.resize import resize as resize_sample
from pixvox.errors import ConfigError
from pixvox.inference.class_scores import Scores, log_probabilities
from pixvox.layers import resize
from pixvox.structures import Size

Merge = Literal["mean_logit", "mean_probability", "max_probability", "vote"]

_LEAST = 1e-6
"""Weight of a view where it shows nothing of the image: it is heard where no other view is."""
_TIE_BREAK = 1e-3
"""What a probability counts beside a vote."""


class Augmented:
    """Merges the scores of several views of the same images.

    The usual views of "Pyramid Scene Parsing Network" (Zhao et al., 2017, https://arxiv.org/abs/1612.01105) and others
    are ``scales=(0.5, 0.75, 1.0, 1.25, 1.5)`` and ``flips=(-1,)``.

    Args:
        scores: Of images.
        scales: Magnifications; list 1.0 to have the size as it is among them.
        flips: Axes to mirror, negative as of arrays: -1 is left and right, -2 up and down, -3 the depth. Unmirrored
            views take part always.
        rotations: Angles in degrees, counter-clockwise in the plane of the last two axes; list 0 to have the image as
            it stands among them. Multiples of 90 are exact. Others are interpolated, and a view counts only where
            it shows the image.
        product: Combine every scale with every set of flips and every angle; else change one thing at a time, and
            the image as it is takes part always.
        merge: ``"mean_logit"``; ``"mean_probability"``; ``"max_probability"``, so that the surest view counts; or
            ``"vote"``, where a draw goes to the greater mean probability.
        flip_pairs: Classes that change places in a mirror, such as left and right arms.

    Raises:
        ConfigError: If an option has no such value, or there is nothing to merge.

    Example:
        >>> views = Augmented(lambda images, ranges: images, flips=(-1, -2), merge="mean_logit")
        >>> len(views.views)
        4
        >>> image = torch.rand(1, 2, 3, 5)
        >>> torch.allclose(views(image, torch.zeros(1, 2, 2)), image)
        True
    """

    def __init__(
        self,
        scores: Scores,
        scales: Sequence[float] = (1.0,),
        flips: Sequence[int] = (),
        rotations: Sequence[float] = (0.0,),
        product: bool = True,
        merge: Merge = "mean_probability",
        flip_pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ConfigError(
                f"tta.scales are magnifications above 0, such as [0.75,1.0,1.25]; got {list(scales)}"
            )
        if not all(axis < 0 for axis in flips):
            raise ConfigError(f"tta.flips are axes counted from the last, such as [-1,-2]; got {list(flips)}")
        if not rotations or not all(math.isfinite(angle) for angle in rotations):
            raise ConfigError(
                f"tta.rotations are angles in degrees, such as [0,90,180,270]; got {list(rotations)}"
            )
        if merge not in _EVIDENCE:
            raise ConfigError(f"tta.merge must be one of {', '.join(_EVIDENCE)}; got {merge!r}")
        self.scores = scores
        self.views = views(scales, flips, rotations, product)
        self.merge = merge
        self.flip_pairs = flip_pairs

    def __call__(
        self, images: Float[Tensor, "batch channels *spatial"], ranges: Float[Tensor, "batch channels 2"]
    ) -> Float[Tensor, "batch classes *spatial"]:
        """Return logits whose softmax are the merged probabilities."""
        evidence, join = _EVIDENCE[self.merge], _JOIN.get(self.merge, torch.add)
        total: Tensor | float = 0.0
        weights: Tensor | float = 0.0
        for view in self.views:
            logits, weight = view.undo(self.scores(view.apply(images), ranges), tuple(images.shape[2:]))
            said = evidence(self._own_sides(logits.float(), view)) * weight
            total = said if isinstance(total, float) else join(total, said)
            weights = weights + weight
        if self.merge == "mean_logit":
            return torch.as_tensor(total / weights)
        shares = torch.as_tensor(total)
        return log_probabilities(shares / shares.sum(dim=1, keepdim=True))

    def _own_sides(self, logits: Tensor, view: View) -> Tensor:
        """Return the scores of a view with left and right exchanged where it is a mirror image."""
        if len(view.flips) % 2 == 0 or not self.flip_pairs:
            return logits
        order = list(range(logits.shape[1]))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return logits[:, order]


def _vote(logits: Tensor) -> Tensor:
    votes = torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
    return votes + _TIE_BREAK * logits.softmax(dim=1)


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def _as_they_are(logits: Tensor) -> Tensor:
    return logits


_EVIDENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_logit": _as_they_are,
    "mean_probability": _probabilities,
    "max_probability": _probabilities,
    "vote": _vote,
}
"""What a view says of each class, by the way to merge."""
_JOIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"max_probability": torch.maximum}
"""How two views are joined, where they are not added."""


def views(
    scales: Sequence[float], flips: Sequence[int], rotations: Sequence[float], every: bool = True
) -> list[View]:
    """Return the views of an image; arguments as for ``Augmented``, ``every`` being its ``product``.

    Example:
        >>> len(views([0.5, 1.0, 1.5], [-1], [0, 90])), len(views([0.5, 1.0, 1.5], [-1], [0, 90], every=False))
        (12, 5)
    """
    if every:
        mirrored = [axes for count in range(len(flips) + 1) for axes in combinations(flips, count)]
        found = [View(scale, axes, angle) for scale, axes, angle in product(scales, mirrored, rotations)]
    else:
        found = [View(), *(View(scale=scale) for scale in scales), *(View(flips=(axis,)) for axis in flips)]
        found += [View(rotation=angle) for angle in rotations]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class View:
    """One way to look at images, and the way back.

    Args:
        scale: Magnification.
        flips: Mirrored axes, counted from the last.
        rotation: Angle in degrees, counter-clockwise in the plane of the last two axes.
    """

    scale: float = 1.0
    flips: tuple[int, ...] = ()
    rotation: float = 0.0

    def apply(
        self, images: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *view"]:
        """Return the images as this view shows them: resized, then mirrored, then turned."""
        size = tuple(max(1, round(length * self.scale)) for length in images.shape[2:])
        if size != tuple(images.shape[2:]):  # as training resizes: averaged where they shrink
            images = torch.stack([resize_sample(Sample(image), size).image for image in images])
        turned, _ = _turned(images.flip(self.flips), self.rotation, border="reflection")
        return turned

    def undo(
        self, logits: Float[Tensor, "batch classes *view"], size: Size
    ) -> tuple[Float[Tensor, "batch classes *spatial"], Float[Tensor, "1 1 *spatial"]]:
        """Return scores of the view in the frame of the images, and how much they count at each pixel.

        Args:
            logits: Of what ``apply`` returned.
            size: Of the images, in array order.
        """
        back, weight = _turned(logits, -self.rotation, border="border")
        back, weight = back.flip(self.flips), weight.flip(self.flips)
        return resize(back, size), resize(weight, size).clamp(min=_LEAST)


def _turned(images: Tensor, angle: float, border: str) -> tuple[Tensor, Tensor]:
    """Turn images in the plane of their last two axes; return also where they show what was inside before.

    Args:
        images: ``(batch, channels, *spatial)``.
        angle: Degrees, counter-clockwise.
        border: What lies outside: ``"reflection"`` or ``"border"``.
    """
    quarters, rest = divmod(angle, 90)
    inside = images.new_ones((1, 1, *images.shape[2:]), dtype=torch.float32)
    if rest == 0:
        quarters = int(quarters)
        return images.rot90(quarters, (-2, -1)), inside.rot90(quarters, (-2, -1))
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - (height - 1) / 2
    columns = torch.arange(width, device=images.device) - (width - 1) / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # grid_sample counts -1..1 from edge to edge, the last axis first.
    from_x, from_y = (cosine * x - sine * y) * 2 / width, (cosine * y + sine * x) * 2 / height
    grid = torch.stack([from_x, from_y], dim=-1)[None]

    def sample(values: Tensor, padding: str) -> Tensor:
        flat = values.flatten(1, -3).float()  # slices of a volume turn alike
        turned = F.grid_sample(
            flat, grid.expand(len(flat), -1, -1, -1), padding_mode=padding, align_corners=False
        )
        return turned.view(values.shape)

    return sample(images, border), sample(inside, "zeros")

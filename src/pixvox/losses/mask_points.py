"""Where masks are compared: at points drawn once per image and step, or in every cell of the mask grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.heads.query_predictions import QueryMasks
from pixvox.ops.points import most_uncertain, random_points, sample_at_points
from pixvox.structures import Instances, Masks


@dataclass
class MaskPoints:
    """The points of one image: first those for matching, then candidates to learn at, then random ones.

    Args:
        places: In input pixels, array order; None when the points are the cells of the mask grid.
        truth: Masks of the objects at the points, in [0, 1].
        weight: Weight of each point, 0 where the truth is unknown; None when all are 1.
        ignored: Share of each point that lies in an ignored region; None when there is none.
        num_matching: Points for matching; None when all points serve both.
        num_candidates: Points to choose uncertain ones from; None when all points are learned.
        num_uncertain: How many are chosen.
    """

    places: Float[Tensor, "points dims"] | None
    truth: Float[Tensor, "objects points"]
    weight: Float[Tensor, " points"] | None
    ignored: Float[Tensor, " points"] | None = None
    num_matching: int | None = None
    num_candidates: int = 0
    num_uncertain: int = 0

    @property
    def matching_truth(self) -> Tensor:
        """Masks of the objects at the points for matching."""
        return self.truth[:, : self.num_matching]

    @property
    def matching_weight(self) -> Tensor | None:
        """Weight of the points for matching."""
        return None if self.weight is None else self.weight[: self.num_matching]


class PointDraw:
    """Draws the points of an image.

    Args:
        num_points: Points per mask; None takes every cell of the mask grid.
        oversample_ratio: Candidates per point.
        importance_ratio: Part of the points that are chosen for being uncertain.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(self, num_points: int | None, oversample_ratio: float, importance_ratio: float) -> None:
        if num_points is not None and num_points < 1:
            raise ValueError(f"num_points must be at least 1, or null for the whole grid; got {num_points}")
        if oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
            raise ValueError(
                "oversample_ratio must be at least 1 and importance_ratio in [0, 1], "
                f"got {oversample_ratio} and {importance_ratio}"
            )
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio

    @torch.no_grad()
    def __call__(
        self,
        instances: Instances,
        valid_size: Int[Tensor, " dims"],
        grid: Sequence[int],
        padded_size: Sequence[int],
        generator: torch.Generator | None,
    ) -> MaskPoints:
        """Draw points within the valid part of one image, and read its masks there."""
        if instances.masks is None:
            raise ValueError(
                "this head learns from masks, but the targets have boxes only; give Instances(masks=...), "
                "or set the mask costs and weights to 0"
            )
        kept = ~instances.ignore
        masks, ignored = instances.masks[kept], instances.masks[~kept]
        if self.num_points is None:
            return _whole_grid(masks, ignored, grid, padded_size, valid_size.tolist())
        num_uncertain = int(self.importance_ratio * self.num_points)
        num_candidates = int(self.oversample_ratio * self.num_points)
        total = self.num_points + num_candidates + self.num_points - num_uncertain
        places = random_points(total, valid_size, generator, instances.boxes.device)
        # One unknown pixel among those that a point interpolates makes its truth unknown.
        unknown = (ignored.at(places) > 0).any(dim=0).float() if len(ignored) else None
        weight = None if unknown is None else 1 - unknown
        numbers = (self.num_points, num_candidates, num_uncertain)
        return MaskPoints(places, masks.at(places), weight, unknown, *numbers)


def _whole_grid(
    masks: Masks, ignored: Masks, grid: Sequence[int], padded_size: Sequence[int], valid_size: Sequence[int]
) -> MaskPoints:
    """Return every cell of the grid, with the share of its valid part that each mask fills."""
    truth, valid = masks.pool(grid, padded_size, valid_size)
    unknown = ignored.pool(grid, padded_size, valid_size)[0].amax(dim=0).flatten() if len(ignored) else None
    weight = valid.flatten() if unknown is None else valid.flatten() * (1 - unknown)
    return MaskPoints(None, truth.flatten(1), None if bool((weight == 1).all()) else weight, unknown)


class PixelsAtPoints:
    """Logits of queries at the points of their image; pixel features are interpolated once for all layers.

    Args:
        points: Points of each image.
        padded_size: Size of the canvas that mask grids cover, in array order.
    """

    def __init__(self, points: Sequence[MaskPoints | None], padded_size: Sequence[int]) -> None:
        self.points = points
        self.padded_size = padded_size
        self._sampled: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def matching_logits(self, masks: QueryMasks, image: int) -> Float[Tensor, "queries points"]:
        """Return the logits of all queries of one image at the points for matching."""
        pixels = self._pixels(masks, image)[: self._of(image).num_matching]
        return _product(masks.embeddings[image], pixels.detach())

    def learning_logits(
        self, masks: QueryMasks, image: int, queries: Int[Tensor, " pairs"], objects: Int[Tensor, " pairs"]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits, truth and weight of matched queries at the points to learn at, ``(pairs, points)``."""
        points = self._of(image)
        if len(queries) == 0:  # keeps the graph without reading a pixel
            nothing = _product(
                masks.embeddings[image, queries], masks.pixels[image].flatten(1)[:, :1].float().T
            )
            return nothing, torch.zeros_like(nothing), None
        pixels, first = self._pixels(masks, image), points.num_matching or 0
        logits = _product(masks.embeddings[image, queries], pixels[first:])
        truth = points.truth[objects, first:]
        weight = None if points.weight is None else points.weight[first:].expand_as(truth)
        if points.num_matching is None:
            return logits, truth, weight
        uncertain = most_uncertain(logits[:, : points.num_candidates], points.num_uncertain)
        rest = torch.arange(points.num_candidates, logits.shape[1], device=logits.device)
        chosen = torch.cat([uncertain, rest.expand(len(logits), -1)], dim=1)
        return (
            logits.gather(1, chosen),
            truth.gather(1, chosen),
            None if weight is None else weight.gather(1, chosen),
        )

    def _of(self, image: int) -> MaskPoints:
        points = self.points[image]
        if points is None:
            raise ValueError("no points were drawn for this image, as no mask cost or weight is set")
        return points

    def _pixels(self, masks: QueryMasks, image: int) -> Float[Tensor, "points channels"]:
        """Return the pixel features at all points of one image; layers that share a map share them."""
        key = (id(masks.pixels), image)
        if key not in self._sampled:
            # Matching comes first and needs no gradient, but learning reads the same features with one.
            with torch.set_grad_enabled(masks.pixels.requires_grad), _float32(masks.pixels):
                places, pixels = self._of(image).places, masks.pixels[image].float()
                found = (
                    pixels.flatten(1).T
                    if places is None
                    else sample_at_points(pixels, places, self.padded_size)
                )
            # The map is kept beside them, so that its id is not given to another one.
            self._sampled[key] = (found, masks.pixels)
        return self._sampled[key][0]


def _float32(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _product(embeddings: Tensor, pixels: Tensor) -> Tensor:
    with _float32(embeddings):
        return embeddings.float() @ pixels.T

"""Where masks are compared: at points drawn once per image and step, or in every cell of the mask grid."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pixvox.heads.query_predictions import QueryMasks
from pixvox.losses.query_masks import mask_losses
from pixvox.ops.points import most_uncertain, point_taps, random_points, sample_at_points
from pixvox.ops.sampling import multilinear_sampling
from pixvox.structures import Instances, Masks

_CHUNK = (
    2**21
)  # logits of matched queries that are compared at one time: 8 MiB, and a few times that to learn


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
        if not (1 <= oversample_ratio < math.inf and 0 <= importance_ratio <= 1):
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
        truth = masks.at(places)
        unknown = None
        if len(ignored):
            # One ignored pixel among those that a point interpolates makes its truth unknown, but for objects there.
            unknown = ((ignored.at(places) > 0).any(dim=0) & ~(truth >= 0.5).any(dim=0)).float()
        weight = None if unknown is None else 1 - unknown
        numbers = (self.num_points, num_candidates, num_uncertain)
        return MaskPoints(places, truth, weight, unknown, *numbers)


def _whole_grid(
    masks: Masks, ignored: Masks, grid: Sequence[int], padded_size: Sequence[int], valid_size: Sequence[int]
) -> MaskPoints:
    """Return every cell of the grid, with the share of its valid part that each mask fills."""
    truth, valid = masks.pool(grid, padded_size, valid_size)
    unknown = None
    if len(ignored):
        covered = ignored.pool(grid, padded_size, valid_size)[0].amax(dim=0)
        unknown = (covered - truth.sum(dim=0)).clamp(min=0).flatten()  # objects are known, even there
    weight = valid.flatten() if unknown is None else valid.flatten() * (1 - unknown)
    return MaskPoints(None, truth.flatten(1), None if bool((weight == 1).all()) else weight, unknown)


class PixelsAtPoints:
    """Compares the masks of queries with those of objects at the points of their image.

    Pixel features are read at the points for matching once for all layers. Matched queries are compared a few at a
    time, and forgotten in between: the backward pass computes their logits again, so that the memory of a crowded
    image does not grow with its objects times the layers.

    Args:
        points: Points of each image.
        padded_size: Size of the canvas that mask grids cover, in array order.
    """

    def __init__(self, points: Sequence[MaskPoints | None], padded_size: Sequence[int]) -> None:
        self.points = points
        self.padded_size = padded_size
        # Maps are kept beside what is made of them, so that their id is not given to other ones.
        self._flat: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}
        self._read: dict[tuple[int, int, bool], Tensor] = {}

    def matching_logits(self, masks: QueryMasks, image: int) -> Float[Tensor, "queries points"]:
        """Return the logits of all queries of one image at the points for matching."""
        points = self._of(image)
        with torch.no_grad(), _float32(masks.pixels):
            if points.places is None:
                features = self._pixels(masks, image)
            else:
                features = self._at_places(masks, image, points.places[: points.num_matching], learning=False)
            return masks.embeddings[image].float() @ features

    def losses(
        self,
        masks: QueryMasks,
        image: int,
        queries: Int[Tensor, " pairs"],
        objects: Int[Tensor, " pairs"],
        focal: bool = False,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the mask and the Dice loss of matched queries, each summed over the pairs.

        Args:
            masks: Of one layer.
            image: Which image of the batch.
            queries: Matched queries of it.
            objects: The object of each.
            focal: Focal loss instead of the plain cross entropy.
        """
        with _float32(masks.pixels):
            embeddings = masks.embeddings[image, queries].float()
            if len(queries) == 0:  # keeps the graph without reading a pixel
                nothing = embeddings.sum() + self._pixels(masks, image)[:, :0].sum()
                return nothing, nothing
            features, taps = self._features(masks, image)
            size = max(1, _CHUNK // max(features.shape[1], self._of(image).truth.shape[1]))
            parts = [
                (embeddings[start : start + size], features, objects[start : start + size])
                for start in range(0, len(objects), size)
            ]
            compare = functools.partial(_compare, points=self._of(image), taps=taps, focal=focal)
            if len(parts) == 1:
                return compare(*parts[0])
            found = [
                checkpoint(compare, *part, use_reentrant=False, preserve_rng_state=False) for part in parts
            ]
            return torch.stack([mask for mask, _ in found]).sum(), torch.stack(
                [dice for _, dice in found]
            ).sum()

    def _features(self, masks: QueryMasks, image: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return features to multiply with, and the taps that lead from them to the points (None: they are these).

        Both ways give the same logits, as interpolation is linear: maps of the matched queries, then interpolated; or
        features interpolated at the points first. The smaller of the two is taken.
        """
        points = self._of(image)
        if points.places is None:
            return self._pixels(masks, image), None
        places = points.places[points.num_matching :]
        if math.prod(masks.grid) > len(places):
            return self._at_places(masks, image, places, learning=True), None
        return self._pixels(masks, image), point_taps(places, masks.grid, self.padded_size)

    def _of(self, image: int) -> MaskPoints:
        points = self.points[image]
        if points is None:
            raise ValueError("no points were drawn for this image, as no mask cost or weight is set")
        return points

    def _pixels(self, masks: QueryMasks, image: int) -> Float[Tensor, "channels cells"]:
        """Return the pixel features of one image as rows of channels; layers that share a map share them."""
        key = id(masks.pixels)
        if key not in self._flat:
            # Matching comes first and needs no gradient, but learning reads the same features with one.
            with torch.set_grad_enabled(masks.pixels.requires_grad):
                self._flat[key] = (masks.pixels, masks.pixels.float().flatten(2).unbind())
        return self._flat[key][1][image]

    def _at_places(
        self, masks: QueryMasks, image: int, places: Tensor, learning: bool
    ) -> Float[Tensor, "channels points"]:
        key = (id(masks.pixels), image, learning)
        if key not in self._read:
            pixels = self._pixels(masks, image).view(-1, *masks.grid)
            self._read[key] = sample_at_points(pixels, places, self.padded_size).T
        return self._read[key]


def _compare(
    embeddings: Tensor,
    features: Tensor,
    objects: Tensor,
    points: MaskPoints,
    taps: tuple[Tensor, Tensor] | None,
    focal: bool,
) -> tuple[Tensor, Tensor]:
    """Return the mask and the Dice loss of some pairs at their points, of which the uncertain ones are chosen here."""
    values = embeddings @ features
    first = points.num_matching or 0
    truth = points.truth[objects, first:]
    weight = None if points.weight is None else points.weight[first:].expand_as(truth)
    if points.num_matching is None:
        return mask_losses(values, truth, weight, focal)
    with torch.no_grad():
        candidates = values[:, : points.num_candidates]
        if taps is not None:
            index, share = (tap[: points.num_candidates] for tap in taps)
            candidates = multilinear_sampling(values.T, index, share).T
        uncertain = most_uncertain(candidates, points.num_uncertain)
        rest = torch.arange(points.num_candidates, truth.shape[1], device=truth.device)
        chosen = torch.cat([uncertain, rest.expand(len(truth), -1)], dim=1)
    if taps is None:
        logits = values.gather(1, chosen)
    else:
        corners = zip(taps[0].unbind(1), taps[1].unbind(1), strict=True)
        logits = torch.stack(
            [values.gather(1, index[chosen]) * share[chosen] for index, share in corners]
        ).sum(dim=0)
    weight = None if weight is None else weight.gather(1, chosen)
    return mask_losses(logits, truth.gather(1, chosen), weight, focal)


def _float32(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)

"""Queries that start from noised objects and learn to give them back: no matching is needed to teach them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixvox.distributed.world import world_max
from pixvox.losses.set_prediction import SetTargets
from pixvox.ops.boxes import box_convert
from pixvox.transformer.box_refinement import inverse_sigmoid

NOTHING = -1
"""Object of a query that comes from none."""


@dataclass
class NoisedQueries:
    """Denoising queries of a batch, group after group.

    Args:
        content: What the queries hold: the embedding of a label, zeros where a group is filled up.
        boxes: Where they start, ``[cx, cy, (cz,) w, h, (d)]`` relative to the valid part of each image.
        objects: The object that each comes from, ``NOTHING`` (-1) for none.
        mask: True where a query (row) must not look at another (column), for these queries followed by the
            queries to match: no query sees another group, and those to match see no group.
    """

    content: Float[Tensor, "batch queries channels"]
    boxes: Float[Tensor, "batch queries sides"]
    objects: Int[Tensor, "batch queries"]
    mask: Bool[Tensor, "all all"]


@dataclass
class Noise:
    """The draws of one image, each uniform: in [0, 1), over the classes, and in [0, 1).

    Args:
        flips: A label is replaced where this is small.
        labels: By which.
        shifts: How far each side of the box moves.
    """

    flips: Float[Tensor, "groups objects"]
    labels: Int[Tensor, "groups objects"]
    shifts: Float[Tensor, "groups objects sides"]


class Denoising(nn.Module):
    """Makes groups of queries from the objects of each image, with noise on labels and boxes.

    "DN-DETR: Accelerate DETR Training by Introducing Query DeNoising" (Li et al., 2022,
    https://arxiv.org/abs/2203.01305); with ``contrastive`` also the queries of "DINO" (Zhang et al., 2022,
    https://arxiv.org/abs/2203.03605) that are moved so far that they must learn that there is nothing.

    Every group has as many queries as the most crowded image of the step (on any process) has objects, so that there
    are ``number // objects`` groups: none, and no denoising, when that image has more objects than ``number``.

    Args:
        num_classes: Classes of the data.
        channels: Channels of the queries.
        number: Denoising queries per image, at most.
        noise_scale: Largest shift of a centre in half sides, and of a side in sides; half of it is the probability of
            a random label.
        contrastive: Add a query per object whose box is moved by one to two times as much.
        label_noise: Twice the probability of a random label; ``noise_scale`` when None.
        corners: Move the corners of boxes, each by up to ``noise_scale`` half sides, instead of centres and sides.

    Example:
        >>> truth = SetTargets(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.4]]), torch.zeros(0, 4))
        >>> noised = Denoising(num_classes=3, channels=8, number=4)([truth], num_queries=5, generators=[None])
        >>> tuple(noised.content.shape), noised.objects.tolist(), tuple(noised.mask.shape)
        ((1, 4, 8), [[0, 0, 0, 0]], (9, 9))
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        number: int = 100,
        noise_scale: float = 0.4,
        contrastive: bool = False,
        label_noise: float | None = None,
        corners: bool = False,
    ) -> None:
        super().__init__()
        if not (number >= 0 and 0 <= noise_scale < math.inf):
            raise ValueError(
                f"the number of denoising queries and the scale of their noise must not be negative, "
                f"got {number} and {noise_scale}; 0 queries switch denoising off"
            )
        self.labels = nn.Embedding(num_classes, channels)
        self.number = number
        self.noise_scale = noise_scale
        self.contrastive = contrastive
        self.label_noise = noise_scale if label_noise is None else label_noise
        self.move = shift_corners if corners else shift_boxes

    def forward(
        self,
        truths: Sequence[SetTargets],
        num_queries: int,
        generators: Sequence[torch.Generator | None],
    ) -> NoisedQueries | None:
        """Return the queries, None when there is nothing to denoise or too much of it.

        Args:
            truths: The objects of each image.
            num_queries: Queries to match, for the attention mask.
            generators: Where the draws of each image come from.
        """
        most = int(world_max(max(len(truth.labels) for truth in truths)))
        width = most * (2 if self.contrastive else 1)
        groups = self.number // width if width else 0
        if groups == 0:
            return None
        parts = [
            self._image(truth, groups, width, generator)
            for truth, generator in zip(truths, generators, strict=True)
        ]
        labels, boxes, objects = (torch.stack(part) for part in zip(*parts, strict=True))
        known = labels != NOTHING
        content = self.labels(labels.clamp(min=0)) * known[..., None]
        # Through logits and back: no box starts closer to the border than refinement can express.
        return NoisedQueries(
            content,
            inverse_sigmoid(boxes).sigmoid(),
            objects,
            separate(groups, width, num_queries, boxes.device),
        )

    def _image(
        self, truth: SetTargets, groups: int, width: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels, boxes and objects of the queries of one image."""
        count, sides = truth.boxes.shape
        device = truth.boxes.device
        labels = torch.full((groups, width), NOTHING, device=device)
        objects = labels.clone()
        boxes = torch.full((groups, width, sides), 0.5, device=device)
        if count:
            # As many as if the image were alone, so that its draws do not depend on the rest of its batch.
            alone = self.number // (count * (2 if self.contrastive else 1))
            noise = draw_noise(alone, count, sides, self.labels.num_embeddings, generator, device)
            objects[:, :count] = torch.arange(count, device=device)
            for start, far in [(0, False), (width // 2, True)][: 2 if self.contrastive else 1]:
                place = slice(start, start + count)
                flipped = noise.flips[:groups] < 0.5 * self.label_noise
                labels[:, place] = torch.where(flipped, noise.labels[:groups], truth.labels)
                boxes[:, place] = self.move(truth.boxes, noise.shifts[:groups], self.noise_scale, far)
        return labels.flatten(), boxes.flatten(0, 1), objects.flatten()


def shift_boxes(
    boxes: Float[Tensor, "objects sides"],
    shifts: Float[Tensor, "groups objects sides"],
    scale: float,
    far: bool = False,
) -> Float[Tensor, "groups objects sides"]:
    """Move centres by up to ``scale`` half sides and sides by up to ``scale`` of themselves.

    Args:
        boxes: Relative ``[cx, cy, (cz,) w, h, (d)]``.
        shifts: Draws in [0, 1); 0.5 moves nothing.
        scale: Of the noise.
        far: Move by one to two times the scale instead of up to once.
    """
    extent = boxes[:, boxes.shape[1] // 2 :]
    return (boxes + _direction(shifts, far) * torch.cat([extent / 2, extent], dim=1) * scale).clamp(0, 1)


def shift_corners(
    boxes: Float[Tensor, "objects sides"],
    shifts: Float[Tensor, "groups objects sides"],
    scale: float,
    far: bool = False,
) -> Float[Tensor, "groups objects sides"]:
    """Move both corners by up to ``scale`` half sides, as RT-DETR; corners that change places make a box all the same.

    Arguments are those of ``shift_boxes``.
    """
    extent = boxes[:, boxes.shape[1] // 2 :]
    corners = box_convert(boxes, "cxcywh", "xyxy") + _direction(shifts, far) * extent.repeat(1, 2) / 2 * scale
    return box_convert(corners.clamp(0, 1).flatten(0, 1), "xyxy", "cxcywh").abs().reshape(shifts.shape)


def _direction(shifts: Tensor, far: bool) -> Tensor:
    """Return how far each side moves, from -1 to 1, or from 1 to 2 both ways."""
    direction = 2 * shifts - 1
    return direction + torch.where(direction < 0, -1.0, 1.0) if far else direction


def separate(
    groups: int, width: int, num_queries: int, device: torch.device | str | None = None
) -> Bool[Tensor, "all all"]:
    """Return the attention mask of ``groups`` groups of ``width`` queries, followed by those to match.

    Example:
        >>> separate(2, 1, 1).int().tolist()
        [[0, 1, 0], [1, 0, 0], [1, 1, 0]]
    """
    group = torch.arange(groups, device=device).repeat_interleave(width)
    group = torch.cat([group, group.new_full((num_queries,), groups)])
    return (group != group[:, None]) & (group < groups)


def draw_noise(
    groups: int,
    objects: int,
    sides: int,
    num_classes: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Noise:
    """Draw the noise of one image, from the generator or the global one of the device."""
    source = device if generator is None else generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=source).to(device)

    flips = uniform(groups, objects)
    labels = torch.randint(num_classes, (groups, objects), generator=generator, device=source).to(device)
    return Noise(flips, labels, uniform(groups, objects, sides))

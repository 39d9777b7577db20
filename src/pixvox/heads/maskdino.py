"""Mask DINO for images and volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.heads.denoising import Denoising, NoisedQueries
from pixvox.heads.head import Outputs
from pixvox.heads.query_head import DenoisingPredictions, QueryHead, QueryMasks, QueryPrediction
from pixvox.losses.query_classification import QueryClassification, SigmoidFocal
from pixvox.losses.set_prediction import SetTargets
from pixvox.ranges import check_at_least
from pixvox.structures import Features, Instances, Targets
from pixvox.transformer.box_refinement import BoxBranch, inverse_sigmoid, move_in_logits
from pixvox.transformer.decoder import DeformableDecoder, ReferencePositions
from pixvox.transformer.levels import Tokens
from pixvox.transformer.mlp import MLP
from pixvox.transformer.proposals import ProposalBranch

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion

_NOISE = 1  # stream of the noise; points of masks are drawn from stream 0
WEIGHTS = {"class": 4.0, "box": 5.0, "giou": 2.0, "mask": 5.0, "dice": 5.0}
"""Of the losses and of the matching costs, in the authors' code."""


class MaskDINO(QueryHead):
    """Queries that are chosen among the tokens, refine their boxes, and give masks by products with the pixels.

    "Mask DINO: Towards A Unified Transformer-based Framework for Object Detection and Segmentation" (Li et al., 2022,
    https://arxiv.org/abs/2206.02777), for images and volumes. The best tokens become queries and start from the boxes
    of the masks that they predict; every layer predicts class, box and mask, and all three are matched and learned.
    In training, queries that start from noised objects learn to give them back.

    It reads what ``necks.PixelDecoder`` gives: a level for masks, then levels of one width.

    Args:
        in_channels: Channels of each level; the first, for masks, may have its own width.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        num_queries: Queries; at most as many instances are found. There is no cap.
        num_layers: Layers of the decoder.
        num_heads: Heads of its attention.
        points_per_head: Places that a query looks at, per head and level.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        initial_boxes: Where queries start: from the box of their first mask, or from that of their token.
        proposal_sides: Sides of the tokens' boxes before they are moved, one per level, as shares of the image; None
            is 0.05 on the finest level, and grows with the stride.
        denoising_queries: Denoising queries per image, at most; a batch with an image of more objects has none. 0 is
            no denoising.
        noise_scale: Noise on their boxes, and twice the probability of a random label.
        contrastive: Denoise as DINO, with queries that must learn that there is nothing.
        classification: How queries are classified; by default a sigmoid per class with focal loss.
        costs: Weights of the matching costs ``class box giou mask dice``.
        weights: Weights of the losses of the same names, for all layers, proposals and denoising queries.
        options: Further arguments of ``QueryHead``.

    Raises:
        ValueError: If there is no level beside the one for masks, or those have different widths.

    Example:
        >>> head = MaskDINO((6, 8), ((4, 4), (8, 8)), 3, num_queries=5, num_layers=2, num_heads=2)
        >>> levels = (torch.zeros(1, 6, 4, 6), torch.zeros(1, 8, 2, 3))
        >>> images, sizes = torch.zeros(1, 1, 16, 24), torch.tensor([[16, 24]])
        >>> outputs = head(Features(levels, ((4, 4), (8, 8)), images, (16, 24), sizes))
        >>> [tuple(outputs[name].shape) for name in ("class_logits", "boxes", "mask_logits")]
        [(1, 5, 3), (1, 5, 4), (1, 5, 4, 6)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        num_queries: int = 300,
        num_layers: int = 9,
        num_heads: int = 8,
        points_per_head: int = 4,
        feedforward: int = 2048,
        dropout: float = 0.0,
        initial_boxes: Literal["masks", "tokens"] = "masks",
        proposal_sides: Sequence[float] | None = None,
        denoising_queries: int = 100,
        noise_scale: float = 0.4,
        contrastive: bool = False,
        classification: QueryClassification | None = None,
        costs: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        check_at_least(1, num_queries=num_queries)
        classification = classification or SigmoidFocal()
        super().__init__(
            in_channels,
            spatial_dims,
            num_classes,
            classification,
            costs or WEIGHTS,
            weights or WEIGHTS,
            **options,
        )
        channels = _width(in_channels)
        if initial_boxes not in ("masks", "tokens"):
            raise ValueError(f'initial_boxes is "masks" or "tokens", got {initial_boxes!r}')
        self.strides = tuple(tuple(stride) for stride in strides[1:])
        self.num_queries = num_queries
        self.initial_boxes = initial_boxes
        self.proposals = ProposalBranch(channels, self.strides)
        if proposal_sides is not None:
            self.proposals.sides = _sides(proposal_sides, len(self.strides), spatial_dims)
        self.denoising = Denoising(num_classes, channels, denoising_queries, noise_scale, contrastive)
        self.positions = ReferencePositions(channels, spatial_dims)
        self.decoder = DeformableDecoder(
            channels, len(self.strides), spatial_dims, num_layers, num_heads, points_per_head, feedforward, dropout,
            norm=nn.LayerNorm(channels),
        )  # fmt: skip
        self.class_branch = nn.Linear(channels, classification.num_logits(num_classes))
        self.box_branch = BoxBranch(channels, spatial_dims)
        self.mask_branch = MLP(channels, channels, in_channels[0])
        classification.init_bias(self.class_branch)

    @classmethod
    def suggest(
        cls,
        facts: Fingerprint,
        options: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
    ) -> list[Suggestion]:
        """Return the numbers of queries and of denoising queries by the most crowded images."""
        from pixvox.data.suggestions import Suggestion

        found = super().suggest(facts, options, strides, patch)
        if found:
            crowd = facts.count(99.9)
            found.append(
                Suggestion(
                    "denoising_queries", max(100, 50 * math.ceil(crowd / 50)),
                    f"an image holds up to {crowd:.0f} objects (99.9th percentile)",
                    "one image with more objects than this leaves its whole batch without denoising; at least 100",
                    "DN-DETR (Li et al., 2022, https://arxiv.org/abs/2203.01305)",
                )
            )  # fmt: skip
        return found

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the decoder."""
        return self.decoder.blocks()

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return the predictions of every layer; in training with targets those of denoising queries too."""
        features = self.placed(features)
        pixels, *levels = features.levels
        tokens = Tokens.of(levels, self.strides, features.valid_sizes)
        found = self.proposals(tokens, self.num_queries, self.class_branch, self._move)
        proposals = self._predict(self.decoder.norm(found.memory), found.boxes, pixels)
        queries, references = found.memory.detach(), found.boxes.detach()
        if self.initial_boxes == "masks":
            references = mask_boxes(proposals.masks, _valid_cells(features, pixels))  # type: ignore[arg-type]
        noised = self._noised(features, targets, queries.shape[1])
        if noised is not None:
            queries = torch.cat([noised.content.to(queries.dtype), queries], dim=1)
            references = torch.cat([noised.boxes, references], dim=1)
        elif self.training:
            # No parameter may be left out of a step, or processes would wait for its gradient.
            queries = queries + 0.0 * self.denoising.labels.weight.sum()
        predictions = self._decode(
            queries, references, tokens, pixels, None if noised is None else noised.mask
        )
        denoised = None
        if noised is not None:
            first = noised.objects.shape[1]
            denoised = DenoisingPredictions([_part(p, 0, first) for p in predictions], noised.objects)
            predictions = [_part(p, first, None) for p in predictions]
        return self.outputs(features, predictions, proposals, denoised, targets)

    def _decode(
        self, queries: Tensor, references: Tensor, tokens: Tokens, pixels: Tensor, mask: Tensor | None
    ) -> list[QueryPrediction]:
        """Return what the queries predict before the first layer and after each."""
        # Positions are relative to the valid part, so that padding changes nothing.
        shares = tokens.valid_ratios[:, :1].repeat(1, 1, 2)
        states = self.decoder(
            queries,
            lambda places: self.positions(places / shares),
            references,
            tokens,
            refine=lambda layer, states, boxes: self._move(states, boxes),
            mask=mask,
        )
        predictions = [self._predict(self.decoder.norm(queries), references, pixels)]
        for after, reference in zip(states.queries, states.references[:-1], strict=True):
            # As the authors' code does: boxes from normalised queries, classes and masks from twice normalised ones.
            boxes = self._move(after, reference)
            predictions.append(self._predict(self.decoder.norm(after), boxes, pixels))
        return predictions

    def _move(self, queries: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes, moved as the queries say."""
        return move_in_logits(boxes, self.box_branch(queries))

    def _predict(self, queries: Tensor, boxes: Tensor, pixels: Tensor) -> QueryPrediction:
        """Return class and mask of normalised queries, with their boxes."""
        masks = QueryMasks(self.mask_branch(queries), pixels)
        return QueryPrediction(self.class_branch(queries), boxes, masks)

    def _noised(self, features: Features, targets: Targets | None, num_queries: int) -> NoisedQueries | None:
        """Return the denoising queries of a training step."""
        if not self.training or targets is None or isinstance(targets, Tensor) or not self.denoising.number:
            return None
        truths = [
            SetTargets.of(_checked(instances, self.num_classes), size)
            for instances, size in zip(targets, features.valid_sizes, strict=True)
        ]
        noised: NoisedQueries | None = self.denoising(truths, num_queries, features.generators(_NOISE))
        return noised


@torch.no_grad()
def mask_boxes(
    masks: QueryMasks, valid_cells: Float[Tensor, "batch dims"], chunk: int | None = None
) -> Float[Tensor, "batch queries sides"]:
    """Return the tight boxes of the masks of queries, relative to the valid part of each image, within it.

    An empty mask gives a box of no size at the first corner. Nothing is learned through these boxes.

    Args:
        masks: Masks of queries.
        valid_cells: Cells of the mask grid that are not padding, ``(x, y[, z])``; may be fractional.
        chunk: Queries whose maps are made at once; by default as many as make 16 million logits (64 MB).

    Example:
        >>> masks = QueryMasks(torch.ones(1, 1, 1), torch.tensor([[[[-1.0, 1, 1, -1], [-1, 1, -1, -1]]]]))
        >>> mask_boxes(masks, torch.tensor([[4.0, 2.0]]))[0, 0].tolist()
        [0.5, 0.5, 0.5, 0.9999899864196777]
    """
    queries, grid = masks.embeddings.shape[1], masks.grid
    step = chunk or max(1, 2**24 // math.prod(grid))
    images = []
    for image in range(masks.embeddings.shape[0]):
        corners, within = [], _begins_within(grid, valid_cells[image])
        for start in range(0, queries, step):
            inside = masks.of_image(image, slice(start, start + step)) > 0
            corners.append(_tight_corners(inside & within))
        low, high = torch.cat(corners, dim=1) / valid_cells[image]
        images.append(torch.cat([(low + high) / 2, high - low], dim=1))
    boxes = torch.stack(images) if queries else valid_cells.new_zeros(len(images), 0, 2 * len(grid))
    return inverse_sigmoid(boxes).sigmoid()


def _begins_within(grid: Sequence[int], valid_cells: Tensor) -> Tensor:
    """Return which cells of a grid begin in the valid part, whose size is ``(x, y[, z])``."""
    within = torch.ones(tuple(grid), dtype=torch.bool, device=valid_cells.device)
    for axis, length in enumerate(grid):
        begins = torch.arange(length, device=valid_cells.device) < valid_cells[len(grid) - 1 - axis]
        within &= begins.reshape(-1, *(1,) * (len(grid) - axis - 1))
    return within


def _tight_corners(inside: Tensor) -> Tensor:
    """Return the first and the last corners ``(2, masks, dims)`` of dense masks, ``(x, y[, z])``; 0 if empty."""
    axes = range(1, inside.dim())
    low, high = [], []
    for axis in reversed(axes):
        touched = inside
        for other in reversed(axes):
            touched = touched if other == axis else touched.any(dim=other)
        along = touched.byte()
        low.append(along.argmax(dim=1))
        high.append((along.shape[1] - along.flip(1).argmax(dim=1)) * touched.any(dim=1))
    return torch.stack([torch.stack(low, dim=1), torch.stack(high, dim=1)]).float()


def _valid_cells(features: Features, pixels: Tensor) -> Tensor:
    """Return the valid cells of the mask grid, ``(x, y[, z])``."""
    sizes = features.valid_sizes.to(pixels.device).float()
    scale = sizes.new_tensor(
        [n / length for n, length in zip(pixels.shape[2:], features.padded_size, strict=True)]
    )
    return (sizes * scale).flip(1)


def _part(prediction: QueryPrediction, first: int, last: int | None) -> QueryPrediction:
    """Return some of the queries of a prediction."""
    part = slice(first, last)
    masks, boxes = prediction.masks, prediction.boxes
    return QueryPrediction(
        prediction.class_logits[:, part],
        None if boxes is None else boxes[:, part],
        None if masks is None else QueryMasks(masks.embeddings[:, part], masks.pixels),
    )


def _width(in_channels: Sequence[int]) -> int:
    """Return the one width of the levels behind the one for masks."""
    if len(in_channels) < 2 or len(set(in_channels[1:])) != 1:
        raise ValueError(
            "Mask DINO reads a level for masks and then levels of equal channels (put neck=pixel_decoder before this "
            f"head), got levels of {list(in_channels)} channels"
        )
    return in_channels[1]


def _sides(sides: Sequence[float], levels: int, spatial_dims: int) -> list[list[float]]:
    """Return the sides of the tokens' boxes per level and axis."""
    if len(sides) != levels:
        raise ValueError(
            f"proposal_sides has {len(sides)} values for {levels} levels; give one per level behind the one for "
            "masks, finest first, or null"
        )
    return [[float(side)] * spatial_dims for side in sides]


def _checked(instances: Instances, num_classes: int) -> Instances:
    """Return the instances, whose labels must be classes where they are learned."""
    labels = instances.labels[~instances.ignore]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the head has {num_classes} classes, "
            f"0 to {num_classes - 1}; build the model with the classes of the data"
        )
    return instances

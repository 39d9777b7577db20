"""LW-DETR with masks, for images and volumes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixvox.heads.head import Outputs
from pixvox.heads.pixel_queries import PixelQueries
from pixvox.heads.query_head import QueryHead, used_weights
from pixvox.heads.query_predictions import QueryPrediction
from pixvox.layers import PerAxis, per_axis, resize
from pixvox.losses.query_classification import IoUAware, QueryClassification
from pixvox.ranges import check_at_least
from pixvox.structures import Features, Targets
from pixvox.transformer.box_refinement import BoxBranch, move_in_proportion
from pixvox.transformer.decoder import DeformableDecoder, ReferencePositions
from pixvox.transformer.levels import Tokens
from pixvox.transformer.proposals import ProposalBranch, Proposals

COSTS = {"class": 2.0, "box": 5.0, "giou": 2.0, "mask": 5.0, "dice": 5.0}
WEIGHTS = {"class": 1.0, "box": 5.0, "giou": 2.0, "mask": 5.0, "dice": 5.0}
"""Of LW-DETR, with those of RF-DETR for masks."""


class LWDETR(QueryHead):
    """Proposals of the tokens become queries; a light decoder without an encoder; groups of queries in training.

    "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection" (Chen et al., 2024,
    https://arxiv.org/abs/2406.03459), for images and volumes, with the masks of RF-DETR (Robinson et al., 2025,
    https://arxiv.org/abs/2511.09554). Each group selects proposals by itself, attends to itself and is matched by
    itself ("Group DETR", Chen et al., 2022, https://arxiv.org/abs/2207.13085); the first answers afterwards.

    Boxes are moved from the box ``p`` that a query started from: centre ``p_xy + d_xy * p_wh``, sides
    ``exp(d_wh) * p_wh``, for all layers from the same ``p``.

    Memory: what a training step keeps for one query of one group is 51 KiB with 128 channels, 3 layers and
    ``feedforward=512`` in float32, as ``benchmarks/memory.py`` counts; no map of a query is ever kept.

    Args:
        in_channels: Channels of each level, all equal; they are those of the queries.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        num_queries: The most objects that can be found in an image; there is no upper limit.
        groups: Groups of queries in training.
        num_layers: Layers of the decoder.
        num_heads: Heads of the attention among queries.
        num_cross_heads: Heads of the attention to the tokens.
        points_per_head: Places that a query looks at, per head and level.
        feedforward: Hidden channels of the decoder's feed-forward networks.
        dropout: Share of values set to zero in training.
        masks: Predict masks; without them, boxes alone.
        mask_stride: Input pixels per cell of the mask grid, one number or one per axis in array order; None is 4, or
            the finest level's stride on axes where that is less.
        mask_feedforward: Width of the mask branch's layers on the queries.
        classification: How queries are classified: IoU-aware by default.
        costs: Weights of the matching costs; by default LW-DETR's. ``mask`` and ``dice`` go without masks.
        weights: Weights of the losses of the same names.
        options: Further arguments of ``QueryHead``.

    Raises:
        ValueError: If the levels have different channels.

    Example:
        >>> head = LWDETR((8, 8), ((4, 4), (8, 8)), 3, num_queries=5, num_heads=2, num_cross_heads=2, feedforward=16)
        >>> levels = (torch.randn(1, 8, 4, 6), torch.randn(1, 8, 2, 3))
        >>> images, sizes = torch.zeros(1, 1, 16, 24), torch.tensor([[16, 24]])
        >>> outputs = head.eval()(Features(levels, ((4, 4), (8, 8)), images, (16, 24), sizes))
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
        groups: int = 13,
        num_layers: int = 3,
        num_heads: int = 8,
        num_cross_heads: int = 16,
        points_per_head: int = 2,
        feedforward: int = 2048,
        dropout: float = 0.0,
        masks: bool = True,
        mask_stride: PerAxis | None = None,
        mask_feedforward: int = 1024,
        classification: QueryClassification | None = None,
        costs: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        check_at_least(1, num_queries=num_queries, groups=groups)
        if len(set(in_channels)) != 1:
            raise ValueError(
                "all levels need the same channels (put neck=multi_scale_projector before this head), "
                f"got {in_channels}"
            )
        classification = classification or IoUAware()
        super().__init__(
            in_channels,
            spatial_dims,
            num_classes,
            classification,
            used_weights(costs or COSTS, masks),
            used_weights(weights or WEIGHTS, masks),
            **options,
        )
        channels = in_channels[0]
        self.num_queries = num_queries
        self.groups = groups
        self.mask_stride = (
            tuple(min(4, step) for step in strides[0])
            if mask_stride is None
            else per_axis(mask_stride, spatial_dims, "mask_stride")
        )
        check_at_least(1, mask_stride=min(self.mask_stride))
        self.queries = nn.Embedding(num_queries * groups, channels)
        self.references = nn.Embedding(num_queries * groups, 2 * spatial_dims)
        nn.init.zeros_(self.references.weight)
        steps = _doublings(strides)
        self.proposals = nn.ModuleList(ProposalBranch(channels, steps) for _ in range(groups))
        logits = classification.num_logits(num_classes)
        self.proposal_classes = nn.ModuleList(nn.Linear(channels, logits) for _ in range(groups))
        self.proposal_boxes = nn.ModuleList(BoxBranch(channels, spatial_dims) for _ in range(groups))
        self.positions = ReferencePositions(channels, spatial_dims)
        self.decoder = DeformableDecoder(
            channels, len(strides), spatial_dims, num_layers, num_heads, points_per_head, feedforward, dropout,
            num_cross_heads, norm=nn.LayerNorm(channels),
        )  # fmt: skip
        self.classes = nn.Linear(channels, logits)
        self.boxes = BoxBranch(channels, spatial_dims)
        self.masks = PixelQueries(channels, spatial_dims, num_layers, mask_feedforward) if masks else None
        for layer in (self.classes, *self.proposal_classes):
            classification.init_bias(layer)

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the decoder and the blocks on the pixels of masks."""
        return [*self.decoder.blocks(), *(self.masks.blocks if self.masks is not None else [])]

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return classes, boxes and masks of every layer, and of the proposals."""
        features = self.placed(features)
        learns = self.training or targets is not None
        tokens = Tokens.of(features.levels, features.strides, features.valid_sizes)
        groups = self.groups if self.training else 1
        proposals = self._propose(tokens, groups)
        batch, number = proposals.indices.shape
        queries, shifts = (
            table.weight.view(self.groups, self.num_queries, -1)[:groups, : number // groups]
            .flatten(0, 1)
            .expand(batch, -1, -1)
            for table in (self.queries, self.references)
        )
        # The decoder learns to move the boxes, not to make the proposals other boxes.
        references = move_in_proportion(proposals.boxes.detach(), shifts)
        states = self.decoder(queries, self.positions, references, tokens, groups=groups)
        first = QueryPrediction(proposals.class_logits, proposals.boxes)
        masks = None
        if self.masks is not None:
            pixels = self._pixels(features)
            masks = self.masks(pixels, states.queries, last_only=not learns)
            first.masks = self.masks.product(pixels, proposals.memory) if learns else None
        predictions = [
            QueryPrediction(self.classes(known), move_in_proportion(references, self.boxes(known)))
            for known in (states.queries if learns else states.queries[-1:])
        ]
        for number, prediction in enumerate(predictions):
            prediction.masks = None if masks is None else masks[number]
        return self.outputs(features, predictions, first, targets=targets)

    def _propose(self, tokens: Tokens, groups: int) -> Proposals:
        """Return the proposals of each group, one group after the other."""
        branches = zip(self.proposals, self.proposal_classes, self.proposal_boxes, strict=True)
        found: list[Proposals] = [
            branch(
                tokens,
                self.num_queries,
                classes,
                lambda known, box, m=boxes: move_in_proportion(box, m(known)),
            )
            for branch, classes, boxes in itertools.islice(branches, groups)
        ]
        return Proposals(
            torch.cat([group.class_logits for group in found], dim=1),
            torch.cat([group.boxes for group in found], dim=1),
            torch.cat([group.memory for group in found], dim=1),
            torch.cat([group.indices for group in found], dim=1),
        )

    def _pixels(self, features: Features) -> Tensor:
        """Return the finest level on the grid of the masks."""
        grid = [max(1, n // step) for n, step in zip(features.padded_size, self.mask_stride, strict=True)]
        return resize(features.levels[0], grid)


def _doublings(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return how much the sides of proposals grow per level: twice along each axis whose stride grows, however much."""
    steps = [[1] * len(strides[0])]
    for before, after in itertools.pairwise(strides):
        steps.append([n * (2 if b > a else 1) for n, a, b in zip(steps[-1], before, after, strict=True)])
    return steps

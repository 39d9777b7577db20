"""Deformable DETR for images and volumes, with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.heads.head import Outputs
from pixvox.heads.query_head import QueryHead, used_weights
from pixvox.heads.query_predictions import QueryMasks, QueryPrediction
from pixvox.losses.query_classification import QueryClassification, SigmoidFocal
from pixvox.ranges import check_at_least
from pixvox.structures import Features, Targets
from pixvox.transformer.box_refinement import BoxBranch, move_in_logits
from pixvox.transformer.decoder import DecoderStates, DeformableDecoder
from pixvox.transformer.levels import Tokens
from pixvox.transformer.mlp import MLP
from pixvox.transformer.positions import sine_of_boxes
from pixvox.transformer.proposals import ProposalBranch, Proposals

WEIGHTS = {"class": 2.0, "box": 5.0, "giou": 2.0, "mask": 5.0, "dice": 5.0}
"""Of the losses and of the matching costs: for boxes those of the paper, for masks those of Mask2Former."""

_SIDE = 0.12
"""Sides of a box before anything is learned, as a share of the image."""


class LearnedQueries(nn.Module):
    """Queries that are the same for every image, and the point that each looks from.

    Args:
        number: Queries.
        channels: Channels of the queries.
        spatial_dims: 2 or 3.
    """

    def __init__(self, number: int, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.contents = nn.Parameter(torch.randn(number, channels))
        self.positions = nn.Parameter(torch.randn(number, channels))
        self.points = nn.Linear(channels, spatial_dims)
        nn.init.xavier_uniform_(self.points.weight)
        nn.init.zeros_(self.points.bias)

    def forward(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return contents, positions and points for each image."""
        points = self.points(self.positions).float().sigmoid()
        contents, positions, points = (
            part.expand(batch, *part.shape) for part in (self.contents, self.positions, points)
        )
        return contents, positions, points


class ProposedQueries(nn.Module):
    """Queries made from the place of proposals.

    Args:
        channels: Channels of the queries; each coordinate is encoded by half of them.
        spatial_dims: 2 or 3.
    """

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear = nn.Linear(2 * spatial_dims * (channels // 2), 2 * channels)
        self.norm = nn.LayerNorm(2 * channels)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, boxes: Float[Tensor, "batch queries sides"]) -> tuple[Tensor, Tensor]:
        """Return contents and positions."""
        encoded = sine_of_boxes(boxes, self.channels // 2).to(self.linear.weight.dtype)
        positions, contents = self.norm(self.linear(encoded)).chunk(2, dim=-1)
        return contents, positions


class TwoStages(nn.Module):
    """Proposals of the encoder's tokens, whatever the class of the object, and queries made from the best.

    Args:
        channels: Channels of tokens and queries.
        strides: Strides of the levels, per axis in array order.
        classification: How tokens are told to hold an object.
    """

    def __init__(
        self, channels: int, strides: Sequence[Sequence[int]], classification: QueryClassification
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        self.scores = classification.scores
        self.proposals = ProposalBranch(channels, strides)
        self.classifier = nn.Linear(channels, classification.num_logits(1))
        classification.init_bias(self.classifier)
        self.box_branch = BoxBranch(channels, dims)
        self.queries = ProposedQueries(channels, dims)

    def forward(self, tokens: Tokens, number: int) -> Proposals:
        """Return the best proposals."""
        found: Proposals = self.proposals(
            tokens,
            number,
            classify=self.classifier,
            move=lambda memory, boxes: move_in_logits(boxes, self.box_branch(memory)),
            score=lambda logits: self.scores(logits).amax(dim=-1),
        )
        return found


class DeformableDETR(QueryHead):
    """Queries that look at a few places of every level; each becomes a class, a box, and a mask.

    "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (Zhu et al., 2020,
    https://arxiv.org/abs/2010.04159), for images and volumes; plain, with refinement of boxes, and with two stages.
    Masks are products of queries and pixels, as in "Per-Pixel Classification is Not All You Need" (Cheng et al., 2021,
    https://arxiv.org/abs/2107.06278): the finest level of the neck carries the pixels.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        num_queries: Queries: the most objects that can be found in an image.
        num_layers: Layers of the decoder.
        num_heads: Heads of its attentions.
        points_per_head: Places that a query looks at, per head and level.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        refine: Each layer moves the boxes of the one before; otherwise all layers start from the first points.
        two_stage: The encoder's tokens propose boxes, and the best become the queries; refines as well. They learn
            whether there is an object, whatever its class.
        masks: Predict masks, with the neck's finest level for the pixels; False takes all levels for boxes, gives
            instances without masks, and wants a neck with ``mask_channels=null``.
        classification: How queries are classified; focal loss by default.
        costs: Weights of the matching costs ``class box giou mask dice``.
        weights: Weights of the losses of the same names.
        options: Further arguments of ``QueryHead``.

    Raises:
        ValueError: If the levels for the queries have different channels, or there is none beside the one for masks.

    Example:
        >>> head = DeformableDETR((6, 8), ((4, 4), (8, 8)), 3, num_queries=5, num_layers=2, num_heads=2)
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
        num_queries: int = 100,
        num_layers: int = 6,
        num_heads: int = 8,
        points_per_head: int = 4,
        feedforward: int = 1024,
        dropout: float = 0.1,
        refine: bool = False,
        two_stage: bool = False,
        masks: bool = True,
        classification: QueryClassification | None = None,
        costs: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        check_at_least(1, num_queries=num_queries)
        classification = classification or SigmoidFocal()
        super().__init__(
            in_channels, spatial_dims, num_classes, classification, used_weights(costs or WEIGHTS, masks),
            used_weights(weights or WEIGHTS, masks), class_agnostic_proposals=True, **options,
        )  # fmt: skip
        self.first = 1 if masks else 0
        channels = _one_width(in_channels[self.first :], masks)
        self.strides = tuple(tuple(stride) for stride in strides[self.first :])
        self.num_queries = num_queries
        self.refine = refine or two_stage
        self.decoder = DeformableDecoder(
            channels,
            len(self.strides),
            spatial_dims,
            num_layers,
            num_heads,
            points_per_head,
            feedforward,
            dropout,
        )
        branches = num_layers if self.refine else 1
        self.classifiers = nn.ModuleList(
            nn.Linear(channels, classification.num_logits(num_classes)) for _ in range(branches)
        )
        for classifier in self.classifiers:
            classification.init_bias(classifier)  # type: ignore[arg-type]
        # Boxes that start from a point get their sides from the first layer.
        self.box_branches = nn.ModuleList(
            BoxBranch(channels, spatial_dims, side=0.5 if two_stage or layer else _SIDE)
            for layer in range(branches)
        )
        self.mask_branch = MLP(channels, channels, in_channels[0]) if masks else None
        self.queries = None if two_stage else LearnedQueries(num_queries, channels, spatial_dims)
        self.two_stage = TwoStages(channels, self.strides, classification) if two_stage else None

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the decoder."""
        return self.decoder.blocks()

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return classes, boxes and masks of the queries after each layer, and the proposals of two stages."""
        features = self.placed(features)
        tokens = Tokens.of(features.levels[self.first :], self.strides, features.valid_sizes)
        proposals = None
        if self.two_stage is not None:
            found = self.two_stage(tokens, self.num_queries)
            proposals = QueryPrediction(found.class_logits, found.boxes)
            references = found.boxes.detach()
            contents, positions = self.two_stage.queries(references)
        else:
            contents, positions, references = self.queries(tokens.values.shape[0])  # type: ignore[misc]
        states = self.decoder(contents, positions, references, tokens, self._refined if self.refine else None)
        predictions = self._predictions(states, features.levels[0])
        return self.outputs(features, predictions, proposals, targets=targets)

    def _refined(self, layer: int, queries: Tensor, references: Tensor) -> Tensor:
        branch = self.box_branches[layer if self.refine else 0]
        return move_in_logits(references, branch(queries))

    def _predictions(self, states: DecoderStates, pixels: Tensor) -> list[QueryPrediction]:
        """Return what the queries of each layer predict."""
        predictions = []
        for layer, queries in enumerate(states.queries):
            boxes = (
                states.references[layer + 1]
                if self.refine
                else self._refined(layer, queries, states.references[layer])
            )
            masks = None if self.mask_branch is None else QueryMasks(self.mask_branch(queries), pixels)
            classifier = self.classifiers[layer if self.refine else 0]
            predictions.append(QueryPrediction(classifier(queries), boxes, masks))
        return predictions


def _one_width(channels: Sequence[int], masks: bool) -> int:
    """Return the channels of the levels that queries look at."""
    if len(channels) == 0:
        raise ValueError(
            "there is one level, which carries the masks, and none for the queries; put neck=pixel_decoder before this "
            "head, or set masks=false"
        )
    if len(set(channels)) != 1:
        kind = "all levels but the finest" if masks else "all levels"
        raise ValueError(
            f"{kind} need the same channels, got {list(channels)}; put neck=pixel_decoder before this head"
            + ("" if masks else ", with neck.mask_channels=null")
        )
    return channels[0]

"""The decoder of ContourFormer: queries in parts, each of which follows a piece of an outline (2-D only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixvox.losses.query_classification import QueryClassification
from pixvox.ops.deformable_attention import multi_scale_deformable_attention
from pixvox.transformer.attention import Attention, check_heads
from pixvox.transformer.box_refinement import inverse_sigmoid
from pixvox.transformer.deformable import head_directions
from pixvox.transformer.levels import Tokens
from pixvox.transformer.mlp import MLP

_WIDEST = 0.5  # offsets of the outermost bins but one, as a share of the extent of all outlines
_CURVE = 4.0  # how finely the bins lie around 0


def offset_bins(num_bins: int) -> Float[Tensor, " bins"]:
    """Return the offset of each bin of a distribution: fine around 0, coarse at both ends.

    "D-FINE" (Peng et al., 2024, https://arxiv.org/abs/2410.13842), equation 4, with its bounds of 0.5 and 4.

    Args:
        num_bins: One less than there are bins; even, 4 or more.

    Example:
        >>> offset_bins(4).tolist()
        [-4.0, -2.0, 0.0, 2.0, 4.0]
    """
    bound = _WIDEST * _CURVE
    step = (bound + 1) ** (2 / (num_bins - 2))
    right = [step**i - 1 for i in range(1, num_bins // 2)]
    return torch.tensor([-2 * bound, *(-value for value in reversed(right)), 0.0, *right, 2 * bound])


@dataclass
class Contours:
    """What one layer predicts.

    Args:
        class_logits: Of each query.
        points: Outline of each query, ``(x, y)`` relative to the valid part of each image.
    """

    class_logits: Float[Tensor, "batch queries logits"]
    points: Float[Tensor, "batch queries points 2"]

    @property
    def boxes(self) -> Float[Tensor, "batch queries 4"]:
        """The box ``[cx, cy, w, h]`` of each outline."""
        return boxes_of(self.points)


def boxes_of(points: Float[Tensor, "*outlines points 2"]) -> Float[Tensor, "*outlines 4"]:
    """Return the box ``[cx, cy, w, h]`` around points."""
    low, high = points.amin(dim=-2), points.amax(dim=-2)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


class LevelAttention(nn.Module):
    """Deformable attention around boxes, with a number of points of its own on each level and no projections.

    Args:
        channels: Channels of queries, values and output.
        points: Points per head, by level.
        num_heads: Heads; they share the channels.
    """

    def __init__(self, channels: int, points: Sequence[int], num_heads: int) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        self.num_heads = num_heads
        self.points = list(points)
        samples = num_heads * sum(points)
        self.sampling_offsets = nn.Linear(channels, 2 * samples)
        self.attention_weights = nn.Linear(channels, samples)
        distances = torch.cat([torch.arange(1.0, count + 1) for count in points])
        offsets = head_directions(num_heads, 2)[:, None] * distances[:, None]
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(
        self, queries: Tensor, references: Float[Tensor, "batch queries levels 4"], tokens: Tokens
    ) -> Tensor:
        """Return what each query sees; arguments as for ``DeformableAttention``."""
        shape = (*queries.shape[:2], self.num_heads, sum(self.points))
        offsets = self.sampling_offsets(queries).float().reshape(*shape, 2)
        weights = self.attention_weights(queries).float().reshape(shape).softmax(dim=-1)
        seen: Tensor | None = None
        first, begin = 0, 0
        for level, count in enumerate(self.points):
            size = tokens.shapes[level]
            value = tokens.values[:, begin : begin + size[0] * size[1]]
            if tokens.padding is not None:
                value = value.masked_fill(tokens.padding[:, begin : begin + value.shape[1], None], 0.0)
            own = slice(first, first + count)
            box = references[:, :, level, None, None]
            places = box[..., :2] + offsets[:, :, :, own] * (box[..., 2:] * (0.5 / count))
            found = multi_scale_deformable_attention(
                value.reshape(*value.shape[:2], self.num_heads, -1),
                [size],
                places[:, :, :, None],
                weights[:, :, :, None, own],
            )
            seen = found if seen is None else seen + found
            first, begin = first + count, begin + value.shape[1]
        if seen is None:
            raise ValueError("there is no level to look at")
        return seen


class Gate(nn.Module):
    """Lets through as much of what a query holds and of what it sees as it decides, and normalises the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * channels, 2 * channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, held: Tensor, seen: Tensor) -> Tensor:
        """Return the sum."""
        first, second = self.gate(torch.cat([held, seen], dim=-1)).sigmoid().chunk(2, dim=-1)
        output: Tensor = self.norm(first * held + second * seen)
        return output


class ContourLayer(nn.Module):
    """Attention among queries, part by part; among the parts of each query; to the image; then a feed-forward network.

    Args:
        channels: Channels of the parts.
        num_parts: Parts of a query.
        num_heads: Heads of the attentions.
        points: Points per head that a part looks at, by level.
        feedforward: Hidden channels of the feed-forward network.
        dropout: Share of values set to zero in training.
    """

    def __init__(
        self,
        channels: int,
        num_parts: int,
        num_heads: int,
        points: Sequence[int],
        feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.self_attention = Attention(channels, num_heads, dropout)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.cross_attention = LevelAttention(channels, points, num_heads)
        self.gate = Gate(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        parts: Float[Tensor, "batch queries parts channels"],
        positions: Float[Tensor, "batch queries parts channels"],
        references: Float[Tensor, "batch parts_of_all levels 4"],
        tokens: Tokens,
        blocked: Bool[Tensor, "queries queries"] | None = None,
    ) -> Tensor:
        """Return new values of the parts."""
        batch, queries, count, channels = parts.shape
        values, places = (x.transpose(1, 2).flatten(0, 1) for x in (parts, positions))
        held = self.norm1(self._attended(values, places, blocked))
        held = held.reshape(batch, count, queries, channels).transpose(1, 2).flatten(0, 1)
        held = self.norm2(self._attended(held, positions.flatten(0, 1)))
        held = held.reshape(batch, queries * count, channels)
        seen = self.cross_attention(held + positions.flatten(1, 2), references, tokens)
        held = self.gate(held, self.dropout(seen))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(held))))
        output: Tensor = self.norm3(held + self.dropout(hidden))
        return output.reshape(parts.shape)

    def _attended(self, values: Tensor, positions: Tensor, blocked: Tensor | None = None) -> Tensor:
        placed = values + positions
        mask = None if blocked is None else blocked[None]
        output: Tensor = values + self.dropout(self.self_attention(placed, placed, values, mask))
        return output


class Quality(nn.Module):
    """Tells from how sharp the distributions of a part are how well it fits: a change of its class logits."""

    def __init__(self, num_kept: int, hidden: int = 64) -> None:
        super().__init__()
        self.num_kept = num_kept
        self.mlp = MLP(num_kept * (num_kept + 1), hidden, 1, num_layers=2)
        nn.init.zeros_(self.mlp.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.mlp.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, distributions: Float[Tensor, "batch queries parts values bins"]) -> Tensor:
        """Return one value per query."""
        best = distributions.softmax(dim=-1).topk(self.num_kept, dim=-1).values
        facts = torch.cat([best, best.mean(dim=-1, keepdim=True)], dim=-1)
        output: Tensor = self.mlp(facts.flatten(-2)).mean(dim=2)
        return output


class ContourDecoder(nn.Module):
    """Moves the outlines of queries, layer by layer, from ellipses in their boxes to the objects.

    "ContourFormer: Real-Time Contour-Based End-to-End Instance Segmentation Transformer" (Yao et al., 2025,
    https://arxiv.org/abs/2501.17688). Each coordinate of a point is the expectation of a distribution over offsets,
    whose logits the layers add up. The extent that offsets count in is that of all outlines of an **image**; the
    authors' code takes that of the whole batch.

    Args:
        channels: Channels of the parts.
        num_classes: Class logits of a query.
        classification: Sets the bias that classes begin with.
        num_points: Points of an outline, a multiple of ``points_per_part``.
        points_per_part: Points that a part of a query follows.
        num_layers: Layers.
        num_heads: Heads of the attentions.
        points: Points per head that a part looks at, by level.
        feedforward: Hidden channels of the feed-forward networks.
        dropout: Share of values set to zero in training.
        num_bins: Bins of a distribution, less one; even.
    """

    bins: Tensor

    def __init__(
        self,
        channels: int,
        num_classes: int,
        classification: QueryClassification,
        num_points: int,
        points_per_part: int,
        num_layers: int,
        num_heads: int,
        points: Sequence[int],
        feedforward: int,
        dropout: float,
        num_bins: int,
    ) -> None:
        super().__init__()
        self.num_points = num_points
        self.num_parts = num_points // points_per_part
        self.register_buffer("bins", offset_bins(num_bins), persistent=False)
        self.part_contents = nn.Parameter(torch.empty(self.num_parts, channels))
        self.part_positions = nn.Parameter(torch.empty(self.num_parts, channels))
        for embedding in (self.part_contents, self.part_positions):
            nn.init.xavier_uniform_(embedding)
        self.positions = MLP(4, 2 * channels, channels, num_layers=2)
        self.first = MLP(channels, channels, 2 * points_per_part)
        self.layers = nn.ModuleList(
            ContourLayer(channels, self.num_parts, num_heads, points, feedforward, dropout)
            for _ in range(num_layers)
        )
        self.classifiers = nn.ModuleList(nn.Linear(channels, num_classes) for _ in range(num_layers))
        self.branches = nn.ModuleList(
            MLP(channels, channels, 2 * points_per_part * (num_bins + 1)) for _ in range(num_layers)
        )
        self.quality = nn.ModuleList(Quality(2 * points_per_part) for _ in range(num_layers))
        for classifier in self.classifiers:
            classification.init_bias(classifier)  # type: ignore[arg-type]
        for branch in (self.first, *self.branches):
            nn.init.zeros_(branch.layers[-1].weight)
            nn.init.zeros_(branch.layers[-1].bias)

    def forward(
        self,
        contents: Float[Tensor, "batch queries channels"],
        boxes: Float[Tensor, "batch queries 4"],
        tokens: Tokens,
        blocked: Bool[Tensor, "queries queries"] | None = None,
    ) -> tuple[Contours, list[Contours]]:
        """Return the outlines before they are refined, and those of each layer.

        Args:
            contents: What queries hold at first.
            boxes: Where they are, relative to the valid part of each image; without a gradient.
            tokens: What is looked at.
            blocked: True where a query must not look at another.
        """
        ellipses = self._ellipses(boxes)
        outline = ellipses
        parts = contents[:, :, None] + self.part_contents
        first: Contours | None = None
        anchor, held, logits = ellipses, None, None
        found = []
        for i, layer in enumerate(self.layers):
            references = self._boxes_of_parts(outline).detach()
            positions = (self.positions(references) + self.part_positions).clamp(-10, 10)
            parts = layer(parts, positions, tokens.per_level(references.flatten(1, 2)), tokens, blocked)
            if first is None:
                moved = self.first(parts).reshape(ellipses.shape) + inverse_sigmoid(ellipses)
                first = Contours(self.classifiers[0](parts).mean(dim=2), moved.sigmoid())
                anchor = first.points.detach()
            changes = self.branches[i](parts if held is None else parts + held)
            logits = changes if logits is None else logits + changes
            distributions = logits.reshape(*logits.shape[:3], -1, len(self.bins))
            outline = self._moved(anchor, distributions)
            scores = self.classifiers[i](parts).mean(dim=2) + self.quality[i](distributions)
            found.append(Contours(scores, outline))
            held = parts.detach()
        if first is None:
            raise ValueError("a decoder needs a layer")
        return first, found

    def _ellipses(self, boxes: Tensor) -> Tensor:
        """Return points on the ellipse in each box, from below to the right and up."""
        angles = torch.linspace(0, 2 * torch.pi, self.num_points + 1, device=boxes.device)[:-1]
        ring = torch.stack([angles.sin(), angles.cos()], dim=-1)
        return boxes[:, :, None, :2] + boxes[:, :, None, 2:] / 2 * ring

    def _boxes_of_parts(self, points: Tensor) -> Tensor:
        return boxes_of(points.reshape(*points.shape[:2], self.num_parts, -1, 2))

    def _moved(self, anchor: Tensor, distributions: Tensor) -> Tensor:
        """Return points moved by the expectation of their distributions, counted in the extent of all outlines."""
        offsets = (distributions.float().softmax(dim=-1) @ self.bins).reshape(anchor.shape)
        extent = anchor.amax(dim=(1, 2), keepdim=True) - anchor.amin(dim=(1, 2), keepdim=True)
        return anchor + (0.5 * _CURVE + offsets) * (extent / _CURVE)

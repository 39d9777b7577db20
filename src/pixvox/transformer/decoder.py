"""Deformable decoder: queries look at each other, then at a few places of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixvox.ranges import check_at_least
from pixvox.transformer.attention import Attention
from pixvox.transformer.deformable import DeformableAttention
from pixvox.transformer.levels import Tokens
from pixvox.transformer.mlp import MLP
from pixvox.transformer.positions import sine_of_boxes

Refine = Callable[[int, Tensor, Tensor], Tensor]
"""``(layer, queries, reference) -> next reference``."""

Positions = Callable[[Tensor], Tensor]
"""References relative to the finest padded level, to what is added to the queries."""


@dataclass
class DecoderStates:
    """What a decoder gives.

    Args:
        queries: Queries after each layer, with the decoder's norm.
        references: The reference that each layer looked from, relative to the valid part of each image, and last
            the one after the last layer; refined ones carry their gradient here, though layers look from them
            without.
    """

    queries: list[Tensor]
    references: list[Tensor]


class ReferencePositions(nn.Module):
    """Two layers on the sine encoding of a reference box.

    "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR" (Liu et al., 2022, https://arxiv.org/abs/2201.12329).

    Args:
        channels: Channels of the queries; each coordinate is encoded by half of them.
        spatial_dims: 2 or 3.
    """

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = MLP(2 * spatial_dims * (channels // 2), channels, channels, num_layers=2)

    def forward(
        self, references: Float[Tensor, "batch queries sides"]
    ) -> Float[Tensor, "batch queries channels"]:
        """Return what is added to each query."""
        encoded = sine_of_boxes(references, self.channels // 2)
        positions: Tensor = self.mlp(encoded.to(next(self.mlp.parameters()).dtype))
        return positions


class DeformableDecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the tokens, feed-forward; each with a norm after it.

    Args:
        channels: Channels of queries and tokens.
        num_levels: Levels of the tokens.
        spatial_dims: 2 or 3.
        num_heads: Heads of the self-attention.
        num_cross_heads: Heads of the attention to the tokens.
        points_per_head: Points per head and level.
        feedforward: Hidden channels of the feed-forward network.
        dropout: Share of values set to zero in training.
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        spatial_dims: int,
        num_heads: int,
        num_cross_heads: int,
        points_per_head: int,
        feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_at_least(1, feedforward=feedforward)
        self.self_attention = Attention(channels, num_heads, dropout)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attention = DeformableAttention(
            channels, num_levels, spatial_dims, num_cross_heads, points_per_head
        )
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        positions: Float[Tensor, "batch queries channels"],
        references: Float[Tensor, "batch queries levels coordinates"],
        tokens: Tokens,
        mask: Bool[Tensor, "queries queries"] | None = None,
        groups: int = 1,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return the queries after this layer; see ``DeformableDecoder.forward``."""
        attended = self._attend(queries, positions, mask, groups)
        queries = self.norm1(queries + self.dropout(attended))
        seen = self.cross_attention(queries + positions, references, tokens)
        queries = self.norm2(queries + self.dropout(seen))
        hidden = self.dropout(F.relu(self.linear1(queries)))
        output: Tensor = self.norm3(queries + self.dropout(self.linear2(hidden)))
        return output

    def _attend(self, queries: Tensor, positions: Tensor, mask: Tensor | None, groups: int) -> Tensor:
        """Let the queries of each group look at each other."""
        batch, number, channels = queries.shape
        values = queries.reshape(batch * groups, number // groups, channels)
        keys = (queries + positions).reshape(values.shape)
        attended: Tensor = self.self_attention(keys, keys, values, None if mask is None else mask[None])
        return attended.reshape(queries.shape)


class DeformableDecoder(nn.Module):
    """A stack of deformable decoder layers, shared by Deformable DETR, LW-DETR and Mask DINO.

    "Deformable DETR" (Zhu et al., 2020, https://arxiv.org/abs/2010.04159), for images and volumes. What tells the three
    apart is handed to ``forward``: where the positions of queries come from, and what refines their references.

    Args:
        channels: Channels of queries and tokens.
        num_levels: Levels of the tokens.
        spatial_dims: 2 for images, 3 for volumes.
        num_layers: Layers.
        num_heads: Heads of the self-attention.
        points_per_head: Points per head and level.
        feedforward: Hidden channels of the feed-forward networks.
        dropout: Share of values set to zero in training.
        num_cross_heads: Heads of the attention to the tokens; as many as of the self-attention when None.
        norm: Applied to the queries that are given out after each layer; the next layer gets them without.

    Raises:
        ValueError: If a number makes no sense.

    Example:
        >>> import torch
        >>> tokens = Tokens.of([torch.randn(1, 8, 4, 6), torch.randn(1, 8, 2, 3)], [(8, 8), (16, 16)])
        >>> decoder = DeformableDecoder(8, num_levels=2, num_layers=3, num_heads=2, feedforward=16)
        >>> queries, positions, points = torch.randn(1, 5, 8), torch.randn(1, 5, 8), torch.rand(1, 5, 2)
        >>> states = decoder(queries, positions, points, tokens)
        >>> len(states.queries), tuple(states.queries[-1].shape), len(states.references)
        (3, (1, 5, 8), 4)
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        spatial_dims: int = 2,
        num_layers: int = 6,
        num_heads: int = 8,
        points_per_head: int = 4,
        feedforward: int = 1024,
        dropout: float = 0.0,
        num_cross_heads: int | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, num_layers=num_layers)
        cross_heads = num_heads if num_cross_heads is None else num_cross_heads
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(
                channels,
                num_levels,
                spatial_dims,
                num_heads,
                cross_heads,
                points_per_head,
                feedforward,
                dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.Identity() if norm is None else norm

    def blocks(self) -> list[nn.Module]:
        """Return the layers."""
        return list(self.layers)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        positions: Float[Tensor, "batch queries channels"] | Positions,
        references: Float[Tensor, "batch queries coordinates"],
        tokens: Tokens,
        refine: Refine | None = None,
        mask: Bool[Tensor, "queries queries"] | None = None,
        groups: int = 1,
    ) -> DecoderStates:
        """Return the queries and references of every layer.

        Args:
            queries: What the queries hold before the first layer.
            positions: Added to the queries where they are compared: as they are, or made from each layer's reference
                (as ``ReferencePositions`` does).
            references: Points ``(x, y[, z])`` or boxes ``(centre, sides)`` relative to the valid part of each image.
            tokens: What is looked at.
            refine: Gives the next reference from the layer's number, its queries (before the norm) and reference;
                without it all layers look from the first.
            mask: True where a query (row) must not look at another (column).
            groups: Queries are this many groups of equal length, one after the other, that do not see each other.
        """
        states = DecoderStates([], [references])
        for number, layer in enumerate(self.layers):
            places = tokens.per_level(references)
            added = positions if isinstance(positions, Tensor) else positions(places[:, :, 0])
            queries = layer(queries, added, places, tokens, mask, groups)
            states.queries.append(self.norm(queries))
            if refine is not None:
                references = refine(number, queries, references)
            states.references.append(references)
            if refine is not None:  # a layer's gradient must not reach the boxes of the layers before it
                references = references.detach()
        return states

"""Masked-attention decoder: each query looks only where its own mask is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixvox.layers import conv, resize
from pixvox.ranges import check_at_least
from pixvox.transformer.attention import Attention
from pixvox.transformer.levels import Tokens
from pixvox.transformer.mlp import MLP
from pixvox.transformer.positions import SinePositionalEncoding


class MaskedDecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward network, each with a residual and a norm after it.

    Args:
        channels: Channels of queries and tokens.
        num_heads: Heads of both attentions.
        feedforward: Hidden channels of the feed-forward network.
        dropout: Share of values set to zero in training.
    """

    def __init__(self, channels: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        check_at_least(1, feedforward=feedforward)
        self.cross_attention = Attention(channels, num_heads, dropout)
        self.norm1 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, num_heads, dropout)
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
        positions: Float[Tensor, "#batch queries channels"],
        keys: Float[Tensor, "batch tokens channels"],
        values: Float[Tensor, "batch tokens channels"],
        blocked: Bool[Tensor, "batch queries tokens"],
    ) -> Float[Tensor, "batch queries channels"]:
        """Return new queries.

        Args:
            queries: What the queries know.
            positions: What tells them apart, added wherever they are compared.
            keys: Tokens of one level with their positions.
            values: Tokens of that level.
            blocked: Where each query must not look.
        """
        seen = self.cross_attention(queries + positions, keys, values, blocked)
        queries = self.norm1(queries + self.dropout(seen))
        compared = queries + positions
        queries = self.norm2(queries + self.dropout(self.self_attention(compared, compared, queries)))
        hidden = self.dropout(F.relu(self.linear1(queries)))
        output: Tensor = self.norm3(queries + self.dropout(self.linear2(hidden)))
        return output


@dataclass
class _Level:
    """One level as the decoder looks at it: keys, values, where nothing is, and the pixels of the masks there."""

    keys: Tensor
    values: Tensor
    padding: Tensor | None
    pixels: Tensor


class MaskedDecoder(nn.Module):
    """Learned queries that look at the levels in turn, coarse to fine, each only inside its own mask.

    "Masked-attention Mask Transformer for Universal Image Segmentation" (Cheng et al., 2021,
    https://arxiv.org/abs/2112.01527), section 3.2, for images and volumes. A query's mask on a level is the
    product of its embedding with the mask features resized to that level: resizing is linear, so that this equals
    resizing the mask, at a fraction of its cost. A query whose mask is empty there looks everywhere.

    Args:
        in_channels: Channels of the levels that are looked at, finest first.
        spatial_dims: 2 for images, 3 for volumes.
        mask_channels: Channels of the mask features.
        num_queries: Queries.
        channels: Channels of queries and tokens, a multiple of 4 and of ``num_heads``.
        num_layers: Layers; layer ``i`` looks at level ``i`` modulo the number of levels, counted from the coarsest.
        num_heads: Heads of the attentions.
        feedforward: Hidden channels of the feed-forward networks.
        dropout: Share of values set to zero in training.
        project: Project the levels even where their channels fit.

    Example:
        >>> decoder = MaskedDecoder((8, 8), 2, mask_channels=6, num_queries=5, channels=8, num_layers=2, num_heads=2)
        >>> levels = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
        >>> steps = decoder(levels, [(8, 8), (16, 16)], torch.zeros(1, 6, 8, 12))
        >>> len(steps), [tuple(part.shape) for part in steps[-1]]
        (3, [(1, 5, 8), (1, 5, 6)])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        spatial_dims: int,
        mask_channels: int,
        num_queries: int,
        channels: int = 256,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.0,
        project: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(1, num_queries=num_queries)
        check_at_least(0, num_layers=num_layers)
        self.projections = nn.ModuleList(
            conv(spatial_dims, width, channels, 1) if width != channels or project else nn.Identity()
            for width in in_channels
        )
        for projection in self.projections:
            if not isinstance(projection, nn.Identity):
                nn.init.xavier_uniform_(projection.weight)  # type: ignore[arg-type]
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        self.positions = SinePositionalEncoding(spatial_dims, channels)
        self.level_embedding = nn.Parameter(torch.randn(len(in_channels), channels))
        self.query_features = nn.Parameter(torch.randn(num_queries, channels))
        self.query_positions = nn.Parameter(torch.randn(num_queries, channels))
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(channels, num_heads, feedforward, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.mask_embedding = MLP(channels, channels, mask_channels, 3)

    def forward(
        self,
        levels: Sequence[Tensor],
        strides: Sequence[Sequence[int]],
        pixels: Float[Tensor, "batch mask_channels *grid"],
        valid_sizes: Int[Tensor, "batch dims"] | None = None,
    ) -> list[tuple[Float[Tensor, "batch queries channels"], Float[Tensor, "batch queries mask_channels"]]]:
        """Return what the queries know and their mask embeddings, before the first layer and after each.

        Args:
            levels: The levels that are looked at, finest first.
            strides: Their strides, per axis in array order.
            pixels: Mask features; a query's mask is their product with its embedding.
            valid_sizes: The part of each image that is not padding, in input pixels and array order.
        """
        seen = self._levels(levels, strides, pixels.detach(), valid_sizes)
        queries = self.query_features.expand(pixels.shape[0], -1, -1)
        positions = self.query_positions[None]
        steps = [self._predict(queries)]
        for i, layer in enumerate(self.layers):
            level = seen[-1 - i % len(seen)]
            blocked = outside_masks(steps[-1][1], level.pixels, level.padding)
            queries = layer(queries, positions, level.keys, level.values, blocked)
            steps.append(self._predict(queries))
        return steps

    def _predict(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        known = self.norm(queries)
        return known, self.mask_embedding(known)

    def _levels(
        self,
        levels: Sequence[Tensor],
        strides: Sequence[Sequence[int]],
        pixels: Tensor,
        valid_sizes: Tensor | None,
    ) -> list[_Level]:
        """Return the levels as tokens, and the mask features at the size of each."""
        projected = [project(level) for project, level in zip(self.projections, levels, strict=True)]
        # All at once: the finest level tells the size of the padded images, which coarser ones may round up. And a
        # level that no layer looks at, for there are fewer layers, keeps its part of the graph.
        tokens = Tokens.of(projected, strides, valid_sizes)
        lengths = [math.prod(shape) for shape in tokens.shapes]
        parts = torch.split(tokens.values, lengths, dim=1)
        padding = (
            [None] * len(parts) if tokens.padding is None else torch.split(tokens.padding, lengths, dim=1)
        )
        seen = []
        for i, (part, shape) in enumerate(zip(parts, tokens.shapes, strict=True)):
            places = self.positions(projected[i], tokens.valid_cells(i)).flatten(2).transpose(1, 2)
            values = part + self.level_embedding[i]
            seen.append(_Level(values + places, values, padding[i], resize(pixels, shape).flatten(2)))
        return seen


@torch.no_grad()
def outside_masks(
    embeddings: Float[Tensor, "batch queries channels"],
    pixels: Float[Tensor, "batch channels tokens"],
    padding: Bool[Tensor, "batch tokens"] | None = None,
) -> Bool[Tensor, "batch queries tokens"]:
    """Return where the masks of the queries are not; an empty mask blocks nothing but padding.

    Args:
        embeddings: Mask embeddings of the queries.
        pixels: Mask features of the tokens.
        padding: True where a token is padding.

    Example:
        >>> outside_masks(torch.ones(1, 2, 1) * torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[[2.0, 1.0, -1.0]]]))
        tensor([[[False, False,  True],
                 [ True,  True, False]]])
    """
    outside = torch.einsum("bqk,bkt->bqt", embeddings, pixels) < 0
    if padding is not None:
        outside |= padding[:, None]
    empty = outside.all(dim=-1, keepdim=True)
    outside &= ~empty
    if padding is not None:
        outside |= padding[:, None]
    return outside

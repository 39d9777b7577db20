"""Deformable encoder: every position of every level looks at a few others."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.ranges import check_at_least, check_shares
from pixvox.transformer.deformable import DeformableAttention
from pixvox.transformer.levels import Tokens


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each with a residual and a norm after it.

    Args:
        channels: Channels of the tokens.
        num_levels: Levels of the tokens.
        spatial_dims: 2 or 3.
        num_heads: Heads of the attention.
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
        points_per_head: int,
        feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_at_least(1, feedforward=feedforward)
        check_shares(dropout=dropout)
        self.attention = DeformableAttention(channels, num_levels, spatial_dims, num_heads, points_per_head)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tokens, positions: Tensor, references: Tensor) -> Tensor:
        """Return new values of the tokens."""
        seen = self.attention(tokens.values + positions, references, tokens)
        values = self.norm1(tokens.values + self.dropout(seen))
        hidden = self.dropout(F.relu(self.linear1(values)))
        output: Tensor = self.norm2(values + self.dropout(self.linear2(hidden)))
        return output


class DeformableEncoder(nn.Module):
    """A stack of deformable encoder layers.

    "Deformable DETR" (Zhu et al., 2020, https://arxiv.org/abs/2010.04159).

    Args:
        channels: Channels of the tokens.
        num_levels: Levels of the tokens.
        spatial_dims: 2 for images, 3 for volumes.
        num_layers: Layers; 0 hands the tokens on.
        num_heads: Heads of the attention.
        points_per_head: Points per head and level.
        feedforward: Hidden channels of the feed-forward networks.
        dropout: Share of values set to zero in training.

    Raises:
        ValueError: If a number makes no sense.
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
    ) -> None:
        super().__init__()
        check_at_least(0, num_layers=num_layers)
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                channels, num_levels, spatial_dims, num_heads, points_per_head, feedforward, dropout
            )
            for _ in range(num_layers)
        )

    def forward(self, tokens: Tokens, positions: Float[Tensor, "batch positions channels"]) -> Tokens:
        """Return the tokens with new values.

        Args:
            tokens: Tokens of all levels.
            positions: Encoding of the place and level of each.
        """
        references = tokens.per_level(tokens.references())
        for layer in self.layers:
            tokens = tokens.replace(layer(tokens, positions, references))
        return tokens

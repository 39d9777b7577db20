"""Plain multi-head attention, with one mask for all heads."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixvox.ranges import check_at_least, check_shares


class Attention(nn.Module):
    """Multi-head attention of queries to keys and values.

    "Attention Is All You Need" (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762), section 3.2.2. It
    computes what ``torch.nn.MultiheadAttention`` does; but a mask is one for all heads and never repeated for each,
    which halves the time of masked attention on a CPU, and the four projections are layers of their own.

    Args:
        channels: Channels of queries, keys, values and output.
        num_heads: Heads; they share the channels.
        dropout: Share of attention weights set to zero in training.

    Raises:
        ValueError: If the heads do not share the channels evenly, or a number makes no sense.

    Example:
        >>> import torch
        >>> attention = Attention(8, num_heads=2)
        >>> memory = torch.zeros(1, 5, 8)
        >>> tuple(attention(torch.zeros(1, 3, 8), memory, memory).shape)
        (1, 3, 8)
    """

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        check_shares(dropout=dropout)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        for projection in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        keys: Float[Tensor, "batch keys channels"],
        values: Float[Tensor, "batch keys channels"],
        blocked: Bool[Tensor, "#batch #queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return the attended values.

        Args:
            queries: Queries, with their positions added.
            keys: Keys, with their positions added.
            values: Values.
            blocked: True where a query must not look; a query that may look nowhere gives NaN or zeros.
        """
        query, key, value = (
            projection(x).reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for projection, x in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        seen = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if blocked is None else ~blocked[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return output


def check_heads(channels: int, num_heads: int) -> None:
    """Check that the heads of an attention share its channels evenly.

    Raises:
        ValueError: If they do not.
    """
    check_at_least(1, num_heads=num_heads)
    if channels % num_heads != 0:
        raise ValueError(
            f"{channels} channels cannot be shared by {num_heads} heads; choose a divisor as num_heads"
        )

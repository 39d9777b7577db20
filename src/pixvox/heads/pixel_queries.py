"""Masks as products of queries and pixels, with pixels that are refined layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.heads.query_predictions import QueryMasks
from pixvox.layers import ChannelNorm, conv


class PixelBlock(nn.Module):
    """A depth-wise convolution, then a layer on each pixel; added to what came in.

    Args:
        channels: Channels of the pixels.
        spatial_dims: 2 or 3.
    """

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.depthwise = conv(spatial_dims, channels, channels, 3, groups=channels)
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.pointwise = conv(spatial_dims, channels, channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the refined pixels."""
        return pixels + F.gelu(self.pointwise(self.norm(self.depthwise(pixels))))


class PixelQueries(nn.Module):
    """The mask branch of RF-DETR: a block on the pixels per decoder layer, and one product with its queries.

    "RF-DETR" (Robinson et al., 2025, https://arxiv.org/abs/2511.09554), for images and volumes. Pixels of a layer are
    those of the layer before, refined; two layers, shared by all decoder layers, make a query ready for the product.

    Args:
        channels: Channels of queries and pixels.
        spatial_dims: 2 or 3.
        num_layers: Layers of the decoder.
        feedforward: Width of the layers on the queries.

    Example:
        >>> branch = PixelQueries(8, num_layers=2)
        >>> masks = branch(torch.zeros(1, 8, 4, 6), [torch.zeros(1, 5, 8)] * 2)
        >>> tuple(masks[-1].logits().shape)
        (1, 5, 4, 6)
    """

    def __init__(
        self, channels: int, spatial_dims: int = 2, num_layers: int = 3, feedforward: int = 1024
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PixelBlock(channels, spatial_dims) for _ in range(num_layers))
        self.pixel_projection = conv(spatial_dims, channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, feedforward)
        self.fc2 = nn.Linear(feedforward, channels)
        self.query_projection = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(1))
        # Products of hundreds of channels are large: let all masks begin undecided.
        nn.init.normal_(self.query_projection.weight, std=0.1 * channels**-0.5)
        nn.init.zeros_(self.query_projection.bias)

    def forward(
        self,
        pixels: Float[Tensor, "batch channels *grid"],
        queries: Sequence[Float[Tensor, "batch queries channels"]],
        last_only: bool = False,
    ) -> list[QueryMasks]:
        """Return the masks of each decoder layer's queries.

        Args:
            pixels: Features on the grid of the masks.
            queries: Of each layer, in order.
            last_only: Only those of the last layer are wanted.
        """
        masks = []
        for number, (block, known) in enumerate(zip(self.blocks, queries, strict=True), 1):
            pixels = block(pixels)
            if not last_only or number == len(self.blocks):
                masks.append(self.product(self.pixel_projection(pixels), known))
        return masks

    def product(
        self, pixels: Float[Tensor, "batch channels *grid"], queries: Float[Tensor, "batch queries channels"]
    ) -> QueryMasks:
        """Return the masks of queries on pixels as they are, as for proposals."""
        known = queries + self.fc2(F.gelu(self.fc1(self.norm(queries))))
        embeddings = self.query_projection(known)
        # The bias is one more channel, of ones among the pixels.
        return QueryMasks(
            torch.cat([embeddings, self.bias.to(embeddings).expand(*embeddings.shape[:2], 1)], dim=2),
            torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1),
        )

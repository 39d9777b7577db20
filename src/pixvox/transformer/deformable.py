"""Deformable attention: each query looks at a few points around its reference, on every level."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.ops.deformable_attention import multi_scale_deformable_attention
from pixvox.ranges import check_at_least
from pixvox.transformer.attention import check_heads
from pixvox.transformer.levels import Tokens


class DeformableAttention(nn.Module):
    """Attention to learned offsets from a reference point or box, over all levels and any number of dimensions.

    "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (Zhu et al., 2020,
    https://arxiv.org/abs/2010.04159), equation 3. Offsets from a point count in cells of each level, offsets from a
    box in its half sides over the number of points. At the start the points of each head lie on a ray of their own.

    Args:
        channels: Channels of queries, values and output.
        num_levels: Levels of the tokens.
        spatial_dims: 2 for images, 3 for volumes.
        num_heads: Heads; they share the channels.
        points_per_head: Points per head and level.

    Raises:
        ValueError: If the heads do not share the channels evenly, or a number is less than 1.
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        spatial_dims: int = 2,
        num_heads: int = 8,
        points_per_head: int = 4,
    ) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        check_at_least(1, points_per_head=points_per_head)
        self.spatial_dims = spatial_dims
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.points_per_head = points_per_head
        samples = num_heads * num_levels * points_per_head
        self.sampling_offsets = nn.Linear(channels, samples * spatial_dims)
        self.attention_weights = nn.Linear(channels, samples)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Look along one ray per head, at equal weights."""
        rays = head_directions(self.num_heads, self.spatial_dims)[:, None, None]
        distances = torch.arange(1.0, self.points_per_head + 1)[:, None]
        offsets = (rays * distances).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        references: Float[Tensor, "batch queries levels coordinates"],
        tokens: Tokens,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return what each query sees.

        Args:
            queries: Queries, with their positions added.
            references: Points ``(x, y[, z])`` or boxes ``(centre, sides)`` relative to each padded level, as
                ``Tokens.per_level`` gives them.
            tokens: What is looked at.
        """
        heads, levels, points, dims = self.num_heads, self.num_levels, self.points_per_head, self.spatial_dims
        value = self.value_proj(tokens.values)
        if tokens.padding is not None:
            value = value.masked_fill(tokens.padding[..., None], 0.0)
        value = value.unflatten(-1, (heads, -1))
        # Places need float32: half precision cannot tell neighbouring pixels apart.
        offsets = self.sampling_offsets(queries).float().unflatten(-1, (heads, levels, points, dims))
        weights = self.attention_weights(queries).float().unflatten(-1, (heads, levels * points))
        weights = weights.softmax(dim=-1).unflatten(-1, (levels, points))
        centres = references[:, :, None, :, None, :dims]
        if references.shape[-1] == dims:
            unit = 1 / offsets.new_tensor([shape[::-1] for shape in tokens.shapes])[:, None]
        else:
            unit = references[:, :, None, :, None, dims:] * (0.5 / points)
        seen = multi_scale_deformable_attention(value, tokens.shapes, centres + offsets * unit, weights)
        output: Tensor = self.output_proj(seen)
        return output


def head_directions(num_heads: int, spatial_dims: int) -> Float[Tensor, "heads dims"]:
    """Return one direction ``(x, y[, z])`` per head, spread evenly, the longest component 1.

    Equal angles in the plane; in space, the points of a Fibonacci lattice on the sphere.

    Example:
        >>> head_directions(8, 2)[1].tolist()
        [1.0, 1.0]
    """
    index = torch.arange(num_heads, dtype=torch.float64)
    if spatial_dims == 2:
        angles = index * (2 * math.pi / num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
    else:
        height = 1 - (2 * index + 1) / num_heads
        angles = index * (math.pi * (3 - math.sqrt(5)))
        radius = (1 - height**2).sqrt()
        rays = torch.stack([radius * angles.cos(), radius * angles.sin(), height], dim=-1)
    return (rays / rays.abs().amax(dim=-1, keepdim=True)).float()

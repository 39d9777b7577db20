"""Multi-scale deformable attention for any number of dimensions.

"Deformable DETR" (Zhu et al., 2020, https://arxiv.org/abs/2010.04159).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.ops.sampling import corner_taps, multilinear_sampling


def multi_scale_deformable_attention(
    value: Float[Tensor, "batch positions heads channels"],
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Float[Tensor, "batch queries heads levels points dims"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    backend: str = "auto",
) -> Float[Tensor, "batch queries features"]:
    """Sum values sampled at a few points of each level, weighted, for each query and head.

    Arguments and order are those of transformers' function of this name. All points of a query and head are
    one weighted sum of rows, whatever the number of levels and dimensions.

    Args:
        value: Features of all levels, one level after the other, each row-major.
        spatial_shapes: Size of each level in array order.
        sampling_locations: ``(x, y[, z])`` relative to each level, 0 and 1 being its outer edges; what is
            outside counts as 0.
        attention_weights: Weight of each point, usually of sum 1 over levels and points.
        backend: As for ``multilinear_sampling``.

    Returns:
        ``heads * channels`` features per query.

    Raises:
        ValueError: If the levels do not add up to the positions of ``value``.
    """
    batch, positions, heads, channels = value.shape
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    lengths = [math.prod(shape) for shape in shapes]
    if sum(lengths) != positions or len(shapes) != sampling_locations.shape[3]:
        raise ValueError(
            f"levels of {list(map(tuple, shapes))} have {sum(lengths)} positions, but value has {positions} "
            f"and the sampling locations {sampling_locations.shape[3]} levels"
        )
    indices, weights, start = [], [], 0
    for level, shape in enumerate(shapes):
        locations = sampling_locations[:, :, :, level].flip(-1)
        if locations.dtype != torch.float64:
            locations = locations.float()
        index, weight = corner_taps(locations * locations.new_tensor(shape) - 0.5, shape)
        indices.append(index + start)
        weights.append(weight * attention_weights[:, :, :, level, :, None])
        start += lengths[level]
    # Row of the table: position and head of one image lie side by side.
    image = torch.arange(batch, device=value.device)[:, None, None, None] * positions
    head = torch.arange(heads, device=value.device)[:, None]
    index = (torch.stack(indices, dim=3).flatten(3) + image) * heads + head
    weight = torch.stack(weights, dim=3).flatten(3)
    output = multilinear_sampling(value.reshape(-1, channels), index, weight, backend)
    return output.flatten(2)

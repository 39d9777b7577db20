"""Points to learn masks at: drawn at random, and among them those where a prediction is least certain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pixvox.ops.sampling import channels_last_table, corner_taps, multilinear_sampling


def random_points(
    count: int,
    size: Int[Tensor, " dims"] | Sequence[int],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "count dims"]:
    """Draw points uniformly from a canvas, in pixels (the first pixel's centre is at 0.5), array order.

    Args:
        count: How many.
        size: Lengths of the canvas in array order.
        generator: Source of randomness; the global one of the device when None.
        device: Where the points are needed; the generator's when None.
    """
    if device is None:
        device = generator.device if generator is not None else "cpu"
    drawn = torch.rand(
        (count, len(size)), generator=generator, device=generator.device if generator is not None else device
    )
    return drawn.to(device) * torch.as_tensor(size, dtype=torch.float32, device=device)


def sample_at_points(
    features: Shaped[Tensor, "channels *grid"],
    points: Float[Tensor, "points dims"],
    size: Sequence[int],
) -> Float[Tensor, "points channels"]:
    """Interpolate a map at points; what lies beyond its border counts as 0, as in ``grid_sample``.

    Args:
        features: A map whose grid covers a canvas of ``size``.
        points: Places in pixels of the canvas, array order.
        size: Lengths of the canvas in array order.

    Example:
        >>> ramp = torch.tensor([[[0.0, 10.0, 20.0, 30.0]]])
        >>> sample_at_points(ramp, torch.tensor([[2.0, 10.0]]), size=(4, 16)).tolist()
        [[20.0]]
    """
    index, weight = point_taps(points, features.shape[1:], size)
    return multilinear_sampling(channels_last_table(features[None]), index, weight)


def point_taps(
    points: Float[Tensor, "points dims"], grid: Sequence[int], size: Sequence[int]
) -> tuple[Int[Tensor, "points corners"], Float[Tensor, "points corners"]]:
    """Return the cells around each point, numbered row-major, and the weight of each; 0 beyond the border.

    Args:
        points: Places in pixels of a canvas, array order.
        grid: Lengths of a grid that covers the canvas.
        size: Lengths of the canvas.
    """
    scale = points.new_tensor([cells / length for cells, length in zip(grid, size, strict=True)])
    return corner_taps(points * scale - 0.5, grid)


def most_uncertain(logits: Float[Tensor, "masks points"], count: int) -> Int[Tensor, "masks count"]:
    """Return the points of each mask whose logits are nearest to 0.

    "PointRend" (Kirillov et al., 2020, https://arxiv.org/abs/1912.08193), its importance sampling.

    Example:
        >>> most_uncertain(torch.tensor([[3.0, -0.1, -7.0, 0.5]]), 2).tolist()
        [[1, 3]]
    """
    return logits.detach().abs().topk(count, dim=1, largest=False, sorted=False).indices

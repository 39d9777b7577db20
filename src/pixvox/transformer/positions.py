"""Where a token or a box lies, as features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.layers import check_spatial_dims


class SinePositionalEncoding(nn.Module):
    """Sine and cosine of each position, as added to the tokens of a transformer.

    The plane is encoded as in "End-to-End Object Detection with Transformers" (Carion et al., 2020,
    https://arxiv.org/abs/2005.12872): half of the channels for y, half for x. Depth is encoded over all
    channels and **added**, so that a volume whose depth term is left out has the encoding of its slices.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of the encoding, a multiple of 4.
        temperature: Base of the wavelengths.
        scale: Positions are scaled to ``[0, scale]`` over the valid part.
        offset: Added to the 1-based positions before scaling (Deformable DETR uses -0.5).

    Raises:
        ValueError: If ``channels`` is not a multiple of 4.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        temperature: float = 10000.0,
        scale: float = 2 * math.pi,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if channels % 4 != 0:
            raise ValueError(
                f"channels must be a multiple of 4 (sine and cosine of two axes), got {channels}"
            )
        self.spatial_dims = check_spatial_dims(spatial_dims)
        self.channels = channels
        self.temperature = temperature
        self.scale = scale
        self.offset = offset

    def forward(
        self,
        x: Float[Tensor, "batch channels *spatial"],
        valid_sizes: Int[Tensor, "batch dims"] | None = None,
    ) -> Float[Tensor, "batch encoding *spatial"]:
        """Return the encoding for feature maps ``x``; ``valid_sizes`` counts feature pixels, in array order."""
        size = x.shape[2:]
        if valid_sizes is None:
            valid_sizes = torch.tensor([list(size)], device=x.device).expand(x.shape[0], -1)
        plane = [self._encode(axis, size, valid_sizes, self.channels // 2) for axis in (-2, -1)]
        broadcast = [part.expand(*part.shape[:2], *size) for part in plane]
        encoding = torch.cat(broadcast, dim=1)
        for axis in range(-len(size), -2):
            encoding = encoding + self._encode(axis, size, valid_sizes, self.channels)
        return encoding

    def _encode(self, axis: int, size: Sequence[int], valid_sizes: Tensor, channels: int) -> Tensor:
        length = size[axis]
        positions = torch.arange(1, length + 1, dtype=torch.float32, device=valid_sizes.device)
        valid = valid_sizes[:, axis, None]
        # Padding repeats the last valid position, as a running count over the valid pixels does.
        positions = torch.minimum(positions[None], valid) + self.offset
        positions = positions / (valid + 1e-6) * self.scale
        steps = torch.arange(channels // 2, dtype=torch.float32, device=valid_sizes.device)
        angles = positions[..., None] / self.temperature ** (2 * steps / channels)
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(2).transpose(1, 2)
        shape = [1] * len(size)
        shape[axis] = length
        return waves.reshape(*waves.shape[:2], *shape)


def grid_sines(
    size: Sequence[int],
    channels: int,
    device: torch.device | str | None = None,
    temperature: float = 10000.0,
) -> Float[Tensor, "1 positions channels"]:
    """Return sine and cosine of the indices of a grid's positions, as RT-DETR adds them to its tokens.

    The plane has a quarter of the channels each for sine and cosine of y, then of x. Depth has all channels and is
    added, less its first slice, so that a volume of one slice has the encoding of that slice.

    Args:
        size: Lengths of the grid in array order.
        channels: A multiple of 4.
        device: Where the encoding is needed.
        temperature: Base of the wavelengths.

    Raises:
        ValueError: If ``channels`` is not a multiple of 4.

    Example:
        >>> grid_sines((1, 2), 4).round(decimals=2).tolist()
        [[[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.8399999737739563, 0.5400000214576721]]]
    """
    if channels % 4 != 0:
        raise ValueError(f"channels must be a multiple of 4 (sine and cosine of two axes), got {channels}")

    def waves(length: int, count: int) -> Tensor:
        steps = torch.arange(count, dtype=torch.float64, device=device) / count
        angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] / temperature**steps
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()

    rows, columns = (waves(length, channels // 4) for length in size[-2:])
    shape = (len(rows), len(columns), -1)
    plane = torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], dim=-1)
    for length in size[:-2]:
        depth = waves(length, channels // 2)
        plane = plane + (depth - depth[:1])[:, None, None]
    return plane.reshape(1, -1, channels)


def sine_of_boxes(
    boxes: Float[Tensor, "*boxes coordinates"], channels: int, temperature: float = 10000.0
) -> Float[Tensor, "*boxes encoding"]:
    """Return sine and cosine of each coordinate of points or boxes, one block of ``channels`` after the other.

    "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR" (Liu et al., 2022, https://arxiv.org/abs/2201.12329).

    Args:
        boxes: Relative ``(x, y[, z])`` or ``(x, y[, z], w, h[, d])`` in [0, 1].
        channels: Channels per coordinate, even.
        temperature: Base of the wavelengths.

    Example:
        >>> sine_of_boxes(torch.tensor([[0.5, 0.0]]), 2).tolist()[0][2:]
        [0.0, 1.0]
    """
    steps = torch.arange(channels // 2, dtype=torch.float32, device=boxes.device)
    angles = boxes.float()[..., None] * (2 * math.pi) / temperature ** (2 * steps / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)

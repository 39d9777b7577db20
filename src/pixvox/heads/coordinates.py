"""Where each cell of a feature map lies, added to what it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.layers import check_spatial_dims
from pixvox.ranges import check_at_least


class Coordinates(nn.Module):
    """Adds to each cell of a feature map a learned function of its coordinates, one term per axis.

    The mask of a query is a product of the query and each pixel. Among objects that look alike, such as nuclei, that
    product tells one from the other only by what pixels know of their place, and convolutions learn that slowly.
    "An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution" (Liu et al., 2018,
    https://arxiv.org/abs/1807.03247); heads that make masks by products give pixels coordinates since "Conditional
    Convolutions for Instance Segmentation" (Tian et al., 2020, https://arxiv.org/abs/2003.05664).

    Coordinates are shares of the valid part, so that padding changes nothing. What is learned with them holds for
    images of about the size that was trained with: an object that is a fifth of a patch is a twentieth of four patches.

    Args:
        channels: Channels of the feature map.
        spatial_dims: 2 or 3.
        octaves: Wavelengths per axis: twice the valid part, and each half of the one before.

    Example:
        >>> place = Coordinates(8, spatial_dims=3)
        >>> tuple(place(torch.zeros(1, 8, 2, 4, 6), torch.tensor([[8, 16, 24]]), (8, 16, 24)).shape)
        (1, 8, 2, 4, 6)
    """

    def __init__(self, channels: int, spatial_dims: int = 2, octaves: int = 4) -> None:
        super().__init__()
        check_at_least(1, octaves=octaves)
        self.octaves = octaves
        axes = range(check_spatial_dims(spatial_dims))
        self.terms = nn.ModuleList(nn.Linear(2 * octaves, channels, bias=False) for _ in axes)

    def forward(
        self,
        level: Float[Tensor, "batch channels *grid"],
        valid_sizes: Int[Tensor, "batch dims"],
        padded_size: Sequence[int],
    ) -> Float[Tensor, "batch channels *grid"]:
        """Return the map with the terms of its cells' centres.

        Args:
            level: Feature map.
            valid_sizes: The part of each image that is not padding, in array order.
            padded_size: Size of the canvas that the map covers, in array order.
        """
        for axis, term in enumerate(self.terms):
            cells = level.shape[2 + axis]
            centres = torch.arange(cells, device=level.device) + 0.5
            pixels = centres * (padded_size[axis] / cells)
            shares = pixels / valid_sizes[:, axis, None]
            waves = 2.0 ** torch.arange(self.octaves, device=level.device)
            angles = math.pi * shares[..., None] * waves
            values = term(torch.cat([angles.sin(), angles.cos()], dim=-1)).transpose(1, 2)
            shape = [1] * (level.dim() - 2)
            shape[axis] = cells
            level = level + values.reshape(*values.shape[:2], *shape).to(level.dtype)
        return level


def coordinate_channels(level: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch dims *grid"]:
    """Return the place of each cell, x first, from -1 at the first cell of an axis to 1 at the last.

    The extra channels of CoordConv (Liu et al., 2018, https://arxiv.org/abs/1807.03247), as SOLO uses them; along an
    axis of one cell they are -1.

    Args:
        level: Feature map.

    Example:
        >>> coordinate_channels(torch.zeros(1, 4, 1, 3)).tolist()
        [[[[-1.0, 0.0, 1.0]], [[-1.0, -1.0, -1.0]]]]
    """
    axes = [torch.linspace(-1, 1, cells, device=level.device) for cells in level.shape[2:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])
    return places.to(level.dtype).expand(len(level), *places.shape)

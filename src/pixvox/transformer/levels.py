"""Feature maps of several levels as one row of tokens, and where each token lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixvox.masks import Size


@dataclass
class Tokens:
    """The positions of all levels, one level after the other, each row-major.

    Places are relative to the **valid** part of each image, ``(x, y[, z])`` in [0, 1], so that padding changes no
    prediction; ``per_level`` turns them into places on each padded map, which is what sampling needs.

    Args:
        values: Features of each position.
        shapes: Size of each level in array order, finest first.
        valid_ratios: Valid share of each level along ``(x, y[, z])``.
        padding: True where a position is padding; None when nothing is.

    Example:
        >>> maps = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
        >>> tokens = Tokens.of(maps, [(8, 8), (16, 16)])
        >>> tuple(tokens.values.shape), tokens.references()[0, 0].tolist()
        ((1, 30, 8), [0.0833333358168602, 0.125])
    """

    values: Float[Tensor, "batch positions channels"]
    shapes: tuple[Size, ...]
    valid_ratios: Float[Tensor, "batch levels dims"]
    padding: Bool[Tensor, "batch positions"] | None = None

    @classmethod
    def of(
        cls,
        levels: Sequence[Tensor],
        strides: Sequence[Sequence[int]],
        valid_sizes: Int[Tensor, "batch dims"] | None = None,
    ) -> Tokens:
        """Flatten feature maps ``(batch, channels, *spatial)`` of equal channels.

        Args:
            levels: Feature maps, finest first.
            strides: Input pixels per feature pixel of each level, per axis in array order.
            valid_sizes: The part of each image that is not padding, in input pixels and array order.
        """
        shapes = tuple(tuple(level.shape[2:]) for level in levels)
        for level in levels:
            _keep_layout(level)
        values = torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)
        batch, dims = levels[0].shape[0], len(shapes[0])
        if valid_sizes is None:
            ratios = torch.ones(batch, len(levels), dims, device=values.device)
            return cls(values, shapes, ratios)
        # A cell is valid when the pixel that nearest-neighbour resizing picks for it is.
        padded = valid_sizes.new_tensor([n * s for n, s in zip(shapes[0], strides[0], strict=True)])
        sizes = valid_sizes.new_tensor(shapes)
        cells = torch.minimum((valid_sizes[:, None] * sizes + padded - 1) // padded, sizes)
        ratios = (cells / sizes).flip(-1)
        # A look at the values costs a synchronisation, but saves masking where nothing is padded.
        if not torch.compiler.is_compiling() and bool((cells == sizes).all()):
            return cls(values, shapes, ratios)
        padding = [_padding(shape, cells[:, level]) for level, shape in enumerate(shapes)]
        return cls(values, shapes, ratios, torch.cat(padding, dim=1))

    def replace(self, values: Tensor) -> Tokens:
        """Return the same places with other values."""
        return replace(self, values=values)

    def maps(self) -> list[Tensor]:
        """Return the feature map ``(batch, channels, *spatial)`` of each level."""
        lengths = [math.prod(shape) for shape in self.shapes]
        parts = torch.split(self.values, lengths, dim=1)
        return [
            part.transpose(1, 2).reshape(len(part), -1, *shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def valid_cells(self, level: int) -> Int[Tensor, "batch dims"]:
        """Return the valid size of a level in its own cells, in array order."""
        sizes = self.valid_ratios.new_tensor(self.shapes[level])
        return (self.valid_ratios[:, level].flip(-1) * sizes).round().long()

    def references(self) -> Float[Tensor, "batch positions dims"]:
        """Return the centre of each position, relative to the valid part of its image."""
        places = []
        for level, shape in enumerate(self.shapes):
            axes = [torch.arange(n, device=self.values.device, dtype=torch.float32) + 0.5 for n in shape]
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2).flip(-1)
            extent = self.valid_ratios[:, level] * self.valid_ratios.new_tensor(shape[::-1])
            places.append(grid[None] / extent[:, None])
        return torch.cat(places, dim=1)

    def per_level(
        self, references: Float[Tensor, "batch queries coordinates"]
    ) -> Float[Tensor, "batch queries levels coordinates"]:
        """Return points ``(x, y[, z])`` or boxes ``(centre, sides)`` relative to each padded level."""
        repeats = references.shape[-1] // self.valid_ratios.shape[-1]
        return references[:, :, None] * self.valid_ratios.repeat(1, 1, repeats)[:, None]


def _keep_layout(level: Tensor) -> None:
    """Let the gradient of a map have the layout of the map.

    Tokens hand it back with the channels last. On a CPU torch's batch and instance norms then give wrong gradients for
    a batch of one (seen in torch 2.15).
    """
    if level.requires_grad and len(level) == 1 and not torch.compiler.is_compiling():
        level.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]


def _padding(shape: Size, cells: Int[Tensor, "batch dims"]) -> Bool[Tensor, "batch positions"]:
    """Return which positions of a level lie beyond the valid cells."""
    outside = torch.zeros(cells.shape[0], *shape, dtype=torch.bool, device=cells.device)
    for axis, length in enumerate(shape):
        beyond = torch.arange(length, device=cells.device) >= cells[:, axis, None]
        outside |= beyond.reshape(-1, *(1,) * axis, length, *(1,) * (len(shape) - axis - 1))
    return outside.flatten(1)

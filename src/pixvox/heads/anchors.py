"""Anchor boxes per axis, for images and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Boxes of given sizes and shapes round every position of every level.

    "Faster R-CNN" (Ren et al., 2015, https://arxiv.org/abs/1506.01497), N-D: the ratio of height and width keeps
    an anchor's area and the ratio of depth keeps its volume, so that sizes and shapes are chosen apart.

    Args:
        sizes: Sides in input pixels, per level a list (the cube root of the volume, or square root of the
            area).
        aspect_ratios: Height over width.
        depth_ratios: Depth over the side in the plane, in physical units; used for volumes only.
        anisotropy: Spacing in the plane over spacing along depth (0.46 for voxels of 1.75 x 0.8 x 0.8 um):
            the depth of every anchor is multiplied by it.
        rounded: Round half sides to whole pixels, as torchvision does.

    Example:
        >>> anchors = AnchorGenerator([[8.0]], aspect_ratios=[1.0])
        >>> anchors([(1, 2)], input_size=(4, 8), device="cpu")[0].tolist()
        [[-4.0, -4.0, 4.0, 4.0], [0.0, -4.0, 8.0, 4.0]]
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        depth_ratios: Sequence[float] = (1.0,),
        anisotropy: float = 1.0,
        rounded: bool = False,
    ) -> None:
        super().__init__()
        if not sizes or any(not level for level in sizes):
            raise ValueError(f"sizes needs a list of sides for each level, got {sizes!r}")
        self.sizes = [tuple(float(size) for size in level) for level in sizes]
        self.aspect_ratios = tuple(aspect_ratios)
        self.depth_ratios = tuple(depth_ratios)
        self.anisotropy = anisotropy
        self.rounded = rounded

    def num_anchors(self, spatial_dims: int) -> int:
        """Return the number of anchors at each position.

        Raises:
            ValueError: If the levels have different numbers (they share one prediction layer).
        """
        counts = {len(self.cell_anchors(level, spatial_dims)) for level in range(len(self.sizes))}
        if len(counts) > 1:
            raise ValueError(f"every level needs as many anchor sizes as the others, got {self.sizes}")
        return counts.pop()

    def cell_anchors(self, level: int, spatial_dims: int) -> Float[Tensor, "anchors sides"]:
        """Return the anchors of one position, centred on 0."""
        depth_ratios = self.depth_ratios if spatial_dims == 3 else (1.0,)
        rows = []
        for depth_ratio in depth_ratios:
            for aspect_ratio in self.aspect_ratios:
                for size in self.sizes[level]:
                    side = size * depth_ratio ** (-1 / 3)
                    width, height = side / math.sqrt(aspect_ratio), side * math.sqrt(aspect_ratio)
                    depth = side * depth_ratio * self.anisotropy
                    half = [width / 2, height / 2, depth / 2][:spatial_dims]
                    rows.append([-extent for extent in half] + half)
        anchors = torch.tensor(rows)
        return anchors.round() if self.rounded else anchors

    def forward(
        self, level_sizes: Sequence[Sequence[int]], input_size: Sequence[int], device: torch.device | str
    ) -> list[Float[Tensor, "anchors sides"]]:
        """Return the anchors of each level: positions in row-major order, the anchors of a position together.

        Raises:
            ValueError: If there are not as many levels as sizes.
        """
        if len(level_sizes) != len(self.sizes):
            raise ValueError(
                f"{len(level_sizes)} levels of features but anchor sizes for {len(self.sizes)}: "
                f"give head.anchor_sizes one list per level, or 'auto'"
            )
        anchors = []
        for level, level_size in enumerate(level_sizes):
            steps = [total // length for total, length in zip(input_size, level_size, strict=True)]
            axes = [
                torch.arange(length, dtype=torch.float32, device=device) * step
                for length, step in zip(level_size, steps, strict=True)
            ]
            positions = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).flatten(0, -2)
            cell = self.cell_anchors(level, len(input_size)).to(device)
            anchors.append((positions.repeat(1, 2)[:, None] + cell[None]).flatten(0, 1))
        return anchors

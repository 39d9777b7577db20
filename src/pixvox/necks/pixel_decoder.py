"""Multi-scale deformable pixel decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pixvox.layers import ConvNormAct, conv, norm, resize
from pixvox.necks.neck import Neck
from pixvox.ranges import check_at_least
from pixvox.transformer.encoder import DeformableEncoder
from pixvox.transformer.levels import Tokens
from pixvox.transformer.positions import SinePositionalEncoding


class PixelDecoder(Neck):
    """A deformable encoder over the coarse levels, then a top-down pathway to one fine level for masks.

    The pixel decoder of "Masked-attention Mask Transformer for Universal Image Segmentation" (Cheng et al., 2021,
    https://arxiv.org/abs/2112.01527) and "Mask DINO" (Li et al., 2022, https://arxiv.org/abs/2206.02777); without the
    level for masks it is the encoder of "Deformable DETR" (Zhu et al., 2020, https://arxiv.org/abs/2010.04159). For
    images and volumes.

    It gives out, finest first: the level for masks, the encoded levels, the extra ones.

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        strides: Strides of the backbone's levels, per axis in array order.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of the encoded levels, a multiple of 4 and of ``num_heads``.
        mask_channels: Channels of the level for masks; None gives out the encoded levels alone.
        encoded_levels: Coarsest backbone levels that are encoded; the finer ones join on the way down. None is
            all but the finest (all, when there is one level or none for masks).
        extra_levels: Still coarser levels, made by strided convolutions of the backbone's coarsest.
        lateral_levels: Finest backbone levels that join on the way down. None is those that are not encoded; Mask DINO
            lets the finest join though it is encoded.
        num_layers: Layers of the encoder.
        num_heads: Heads of its attention.
        points_per_head: Points per head and level.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        position_offset: Shift of the encoded positions, in cells: -0.5 is their centres, as Deformable DETR has them,
            0 their far ends, as Mask2Former.

    Raises:
        ValueError: If there are fewer backbone levels than ``encoded_levels``, or a level that is not encoded does not
            join.

    Example:
        >>> neck = PixelDecoder((8, 16, 24), ((4, 4), (8, 8), (16, 16)), channels=8, mask_channels=6, num_layers=1)
        >>> maps = [torch.zeros(1, c, 32 // s, 48 // s) for c, s in zip((8, 16, 24), (4, 8, 16))]
        >>> [tuple(level.shape) for level in neck(maps)]
        [(1, 6, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        spatial_dims: int = 2,
        channels: int = 256,
        mask_channels: int | None = 256,
        encoded_levels: int | None = None,
        extra_levels: int = 0,
        num_layers: int = 6,
        num_heads: int = 8,
        points_per_head: int = 4,
        feedforward: int = 1024,
        dropout: float = 0.0,
        position_offset: float = 0.0,
        lateral_levels: int | None = None,
    ) -> None:
        check_at_least(0, extra_levels=extra_levels)
        available = len(in_channels)
        encoded = encoded_levels
        if encoded is None:
            encoded = available if mask_channels is None else max(1, available - 1)
        if not 1 <= encoded <= available:
            raise ValueError(
                f"encoded_levels={encoded}, but the backbone has {available} levels; choose 1 to {available}"
            )
        laterals = available - encoded if lateral_levels is None else lateral_levels
        if not available - encoded <= laterals <= available:
            raise ValueError(
                f"lateral_levels={laterals}, but {available - encoded} of the {available} backbone levels are not "
                f"encoded and must join; choose {available - encoded} to {available}, or null"
            )
        laterals = 0 if mask_channels is None else laterals
        coarse_strides = [tuple(stride) for stride in strides[available - encoded :]]
        for _ in range(extra_levels):
            coarse_strides.append(tuple(2 * step for step in coarse_strides[-1]))
        out_channels, out_strides = [channels] * len(coarse_strides), list(coarse_strides)
        if mask_channels is not None:
            out_channels.insert(0, mask_channels)
            out_strides.insert(0, tuple(strides[0]))
        super().__init__(out_channels, out_strides)
        self.encoded_levels = encoded
        self.encoded_strides = tuple(coarse_strides)
        self.projections = nn.ModuleList()
        for width in in_channels[available - encoded :]:
            self.projections.append(_projection(spatial_dims, width, channels, 1, 1))
        width = in_channels[-1]
        for _ in range(extra_levels):
            self.projections.append(_projection(spatial_dims, width, channels, 3, 2))
            width = channels
        levels = len(self.projections)
        # Only layers look at it: without any, no process may wait for its gradient.
        self.level_embedding = nn.Parameter(torch.randn(levels, channels), requires_grad=num_layers > 0)
        self.positions = SinePositionalEncoding(spatial_dims, channels, offset=position_offset)
        self.encoder = DeformableEncoder(
            channels, levels, spatial_dims, num_layers, num_heads, points_per_head, feedforward, dropout
        )
        self.lateral = nn.ModuleList(
            ConvNormAct(spatial_dims, width, channels, 1, 1, "group", act=False)
            for width in in_channels[:laterals]
        )
        self.output = nn.ModuleList(
            ConvNormAct(spatial_dims, channels, channels, 3, 1, "group") for _ in range(laterals)
        )
        self.mask_features = None if mask_channels is None else conv(spatial_dims, channels, mask_channels, 1)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the encoder."""
        return list(self.encoder.layers)

    def forward(
        self, levels: Sequence[Tensor], valid_sizes: Int[Tensor, "batch dims"] | None = None
    ) -> tuple[Tensor, ...]:
        """Return the level for masks, if there is one, then the encoded levels, finest first."""
        finer = len(levels) - self.encoded_levels
        inputs = list(levels[finer:])
        coarse = [project(level) for project, level in zip(self.projections, inputs, strict=False)]
        source = inputs[-1]
        for project in self.projections[self.encoded_levels :]:
            coarse.append(project(source))
            source = coarse[-1]
        tokens = Tokens.of(coarse, self.encoded_strides, valid_sizes)
        positions = [
            self.positions(level, tokens.valid_cells(i)).flatten(2).transpose(1, 2) + self.level_embedding[i]
            for i, level in enumerate(coarse)
        ]
        encoded = self.encoder(tokens, torch.cat(positions, dim=1)).maps()
        if self.mask_features is None:
            return tuple(encoded)
        fine = encoded[0]
        for level, lateral, output in zip(
            reversed(levels[: len(self.lateral)]), reversed(self.lateral), reversed(self.output), strict=True
        ):
            joined = lateral(level)
            fine = output(joined + resize(fine, joined.shape[2:]))
        return (self.mask_features(fine), *encoded)


def _projection(
    spatial_dims: int, in_channels: int, channels: int, kernel: int, stride: int
) -> nn.Sequential:
    return nn.Sequential(
        conv(spatial_dims, in_channels, channels, kernel, stride), norm("group", spatial_dims, channels)
    )

"""SOLOv2: every cell predicts the kernel that finds its object in one map of pixel features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.heads.coordinates import coordinate_channels
from pixvox.heads.location_head import LocationHead, LocationMasks, resized
from pixvox.heads.query_predictions import QueryMasks
from pixvox.layers import ConvNormAct, conv, resize
from pixvox.ranges import check_at_least
from pixvox.structures import Features


class KernelMasks(LocationMasks):
    """Masks of cells as products of their kernels with the features of pixels.

    Args:
        kernels: ``(batch, channels, *grid of cells)`` per level.
        pixels: ``(batch, channels, *grid)`` for all levels.
    """

    def __init__(self, kernels: Sequence[Tensor], pixels: Tensor) -> None:
        super().__init__([tuple(pixels.shape[2:])] * len(kernels))
        self.kernels = list(kernels)
        self.pixels = pixels
        # One view per image: an index into the whole would fill a gradient of all images for each of them.
        self._of_images = [[part[None] for part in tensor.unbind()] for tensor in (*kernels, pixels)]

    def probabilities(
        self, image: int, level: int, cells: Int[Tensor, " chosen"], size: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen *size"]:
        """Return the sigmoids of the products of some cells."""
        embeddings = self._of_images[level][image].flatten(2).transpose(1, 2)
        return resized(QueryMasks(embeddings, self._of_images[-1][image]).of_image(0, cells).sigmoid(), size)

    def tensors(self) -> list[Tensor]:
        """Return kernels and pixel features."""
        return [*self.kernels, self.pixels]


class PixelFeatures(nn.Module):
    """Adds up the levels at the size of the finest into the features that all masks are made of.

    The paper's unified mask feature: the coarsest of the levels is told where its pixels lie.

    Args:
        in_channels: Channels of the levels.
        channels: Channels of the convolutions.
        out_channels: Channels of the features.
        num_levels: How many levels are used, finest first.
        spatial_dims: 2 or 3.
        norm: Normalisation of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        num_levels: int,
        spatial_dims: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(num_levels):
            told = spatial_dims if self._is_told(level, num_levels) else 0
            self.levels.append(_Upward(in_channels + told, channels, max(1, level), spatial_dims, norm))
        self.output = ConvNormAct(spatial_dims, channels, out_channels, 1, 1, norm)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the features at the size of the finest level."""
        sizes = [tuple(level.shape[2:]) for level in levels]
        raised = []
        for i, (level, upward) in enumerate(zip(levels, self.levels, strict=True)):
            if self._is_told(i, len(levels)):
                level = torch.cat([level, coordinate_channels(level)], dim=1)
            raised.append(upward(level, sizes[: max(1, i)][::-1]))
        features: Tensor = self.output(sum(raised))
        return features

    @staticmethod
    def _is_told(level: int, num_levels: int) -> bool:
        """Tell whether a level gets the coordinates of its pixels: the coarsest, unless it is the only one."""
        return 0 < level == num_levels - 1


class _Upward(nn.Module):
    """Convolutions, each followed by the step to the size of a finer level."""

    def __init__(self, in_channels: int, channels: int, steps: int, spatial_dims: int, norm: str) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * steps
        self.convs = nn.ModuleList(
            ConvNormAct(spatial_dims, a, b, 3, 1, norm) for a, b in itertools.pairwise(widths)
        )

    def forward(self, level: Tensor, sizes: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the level at the last of the sizes."""
        for step, size in zip(self.convs, sizes, strict=True):
            level = resize(step(level), size)
        return level


class SOLOv2(LocationHead):
    """SOLO with dynamic kernels: each cell predicts the convolution whose answer on shared features is its mask.

    "SOLOv2: Dynamic and Fast Instance Segmentation" (Wang et al., 2020, https://arxiv.org/abs/2003.10152). Equal to
    mmdet's ``SOLOV2Head`` with kernels of one pixel and plain convolutions.

    Args:
        in_channels: Channels of each level, finest first; all the same.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of the convolutions of each branch.
        num_convs: Convolutions of each branch.
        mask_channels: Channels of the convolutions that make the pixel features.
        kernel_channels: Channels of pixel features and kernels.
        mask_levels: Levels that the pixel features are made of, finest first; as many as there are at most.
        options: Further arguments of ``LocationHead``.

    Example:
        >>> small = {"channels": 8, "num_convs": 1, "mask_channels": 8, "kernel_channels": 6}
        >>> head = SOLOv2((8,), ((4, 4),), 3, num_grids=[5], **small)
        >>> images, sizes = torch.zeros(1, 1, 16, 24), torch.tensor([[16, 24]])
        >>> outputs = head(Features((torch.zeros(1, 8, 4, 6),), ((4, 4),), images, (16, 24), sizes))
        >>> outputs["masks"].kernels[0].shape, outputs["masks"].pixels.shape
        (torch.Size([1, 6, 5, 5]), torch.Size([1, 6, 4, 6]))
    """

    one_object_per_cell = False

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        channels: int = 512,
        num_convs: int = 4,
        mask_channels: int = 128,
        kernel_channels: int = 256,
        mask_levels: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels, strides, num_classes, spatial_dims, channels=channels, num_convs=num_convs, **options
        )
        check_at_least(
            1, mask_channels=mask_channels, kernel_channels=kernel_channels, mask_levels=mask_levels
        )
        self.mask_levels = min(mask_levels, len(in_channels))
        self.kernel_convs = self.tower(in_channels[0] + spatial_dims, channels, num_convs)
        self.kernel = conv(spatial_dims, channels, kernel_channels, 3)
        self.pixels = PixelFeatures(
            in_channels[0], mask_channels, kernel_channels, self.mask_levels, spatial_dims, self.norm_name
        )
        self.reset_parameters()

    def masks(self, features: Features, levels: Sequence[Tensor]) -> KernelMasks:
        """Return the kernels of all cells, and the features of the finest level's pixels."""
        kernels = []
        for level, grid in zip(levels, self.rule.num_grids, strict=True):
            placed = torch.cat([level, coordinate_channels(level)], dim=1)
            kernels.append(self.kernel(self.kernel_convs(resize(placed, grid))))
        return KernelMasks(kernels, self.pixels(features.levels[: self.mask_levels]))

"""Plain vision transformers with attention within windows, for images and volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import Suggestion, suggest_depth_strides
from pixvox.layers import PerAxis, patch_conv, per_axis

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

_LEAST_IN_WINDOW = 2


class WindowedBlock(nn.Module):
    """Self-attention within windows or over the whole image, then two layers; each scaled per channel.

    Args:
        channels: Channels of the tokens.
        num_heads: Heads of the attention.
        hidden_channels: Width between the two layers.
        num_windows: Windows that attend to each other: all those of an image, or 1 when each attends to itself.
        key_bias: Add a bias to the keys.
        layer_scale: First value of the scales, as in "Going Deeper with Image Transformers" (Touvron et al., 2021,
            https://arxiv.org/abs/2103.17239).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        hidden_channels: int,
        num_windows: int,
        key_bias: bool,
        layer_scale: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_windows = num_windows
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=key_bias)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.scale1 = nn.Parameter(torch.full((channels,), layer_scale))
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.scale2 = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(
        self, tokens: Float[Tensor, "windows tokens channels"]
    ) -> Float[Tensor, "windows tokens channels"]:
        """Return the transformed tokens of all windows of all images."""
        tokens = tokens + self.scale1 * self._attend(self.norm1(tokens))
        output: Tensor = tokens + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return output

    def _attend(self, tokens: Tensor) -> Tensor:
        shape = tokens.shape
        tokens = tokens.reshape(shape[0] // self.num_windows, self.num_windows * shape[1], shape[2])
        query, key, value = (
            projection(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        output: Tensor = self.output(attended.reshape(shape))
        return output


class PositionTable(nn.Module):
    """Learned positions of a grid of patches, resized to any grid.

    The plane has a table that is resized bicubically. Each axis before it (depth) has a table of its own that is
    resized linearly and **added**, beginning with zeros: a volume whose depth table is zero has the positions of its
    slices, so that weights of images serve volumes.

    Args:
        channels: Channels of the tokens.
        size: Patches per axis of the tables, in array order.
        antialias: Smooth before the plane is made smaller (DINOv2's RF-DETR does, LW-DETR does not).
    """

    def __init__(self, channels: int, size: Sequence[int], antialias: bool) -> None:
        super().__init__()
        self.antialias = antialias
        self.plane = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels, *size[-2:]), std=0.02))
        self.axes = nn.ParameterList([torch.zeros(1, channels, length) for length in size[:-2]])

    def forward(self, size: Sequence[int]) -> Float[Tensor, "1 channels *size"]:
        """Return the positions of a grid of ``size`` patches."""
        positions: Tensor = self.plane
        if tuple(positions.shape[2:]) != tuple(size[-2:]):
            positions = F.interpolate(
                positions.float(), tuple(size[-2:]), mode="bicubic", antialias=self.antialias
            ).to(positions.dtype)
        for axis, table in reversed(list(enumerate(self.axes))):
            line = table if table.shape[2] == size[axis] else F.interpolate(table, size[axis], mode="linear")
            positions = positions[:, :, None] + line[(..., *(None,) * (positions.dim() - 2))]
        return positions


class WindowedViT(Backbone):
    """A vision transformer most of whose blocks attend within windows; gives out several blocks at one stride.

    "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection" (Chen et al., 2024,
    https://arxiv.org/abs/2406.03459), section 3: windows alternate with global blocks and stay in window order
    between them. With a class token in every window, biases of the keys and a last norm it is RF-DETR's DINOv2.
    Any size will do: images are padded to multiples of ``patch_size * windows``.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        channels: Channels of the tokens.
        num_heads: Heads of each attention.
        out_blocks: Numbers of the blocks, counted from 1, whose maps are given out, ascending. The last is the
            depth of the network: what came after it would not be used.
        windowed_blocks: Numbers of the blocks that attend within windows; all others see the whole image.
        windows: Windows per axis, one number or one per axis in array order.
        patch_size: Pixels per patch, one number or one per axis in array order: the stride.
        position_size: Patches per axis of the learned positions before they are resized to the image's.
        mlp_ratio: Width of the two layers of each block over ``channels``.
        layer_scale: First value of the scales of each block's terms.
        class_token: Put a learned token into every window, as RF-DETR does.
        key_bias: Add a bias to the keys (DINOv2 does, LW-DETR does not).
        final_norm: Normalise what is given out, as DINOv2 does.
        antialias: Smooth positions before they are made smaller.

    Raises:
        ValueError: If ``out_blocks`` is not ascending from 1 on, a windowed block does not exist, or the channels
            are no multiple of the heads.

    Example:
        >>> vit = WindowedViT(channels=8, num_heads=2, out_blocks=(1, 2), windowed_blocks=(1,), windows=2, patch_size=4)
        >>> [tuple(level.shape) for level in vit(torch.zeros(1, 3, 16, 24))], vit.strides, vit.size_divisor
        ([(1, 8, 4, 6), (1, 8, 4, 6)], ((4, 4), (4, 4)), (8, 8))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        channels: int = 192,
        num_heads: int = 12,
        out_blocks: Sequence[int] = (3, 5, 6, 10),
        windowed_blocks: Sequence[int] = (1, 2, 4, 7, 8, 10),
        windows: PerAxis = 4,
        patch_size: PerAxis = 16,
        position_size: PerAxis = 14,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        class_token: bool = False,
        key_bias: bool = False,
        final_norm: bool = False,
        antialias: bool = False,
    ) -> None:
        depth = _check_blocks(out_blocks, windowed_blocks)
        if channels % num_heads:
            raise ValueError(f"channels={channels} is no multiple of num_heads={num_heads}")
        patch = per_axis(patch_size, spatial_dims, "patch_size")
        super().__init__(spatial_dims, in_channels, (channels,) * len(out_blocks), (patch,) * len(out_blocks))
        self.windows = per_axis(windows, spatial_dims, "windows")
        self.out_blocks = tuple(out_blocks)
        self.embedding = patch_conv(spatial_dims, in_channels, channels, patch)
        self.positions = PositionTable(
            channels, per_axis(position_size, spatial_dims, "position_size"), antialias
        )
        self.class_token = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(channels), std=0.02)) if class_token else None
        )
        self.layers = nn.ModuleList(
            WindowedBlock(
                channels,
                num_heads,
                int(channels * mlp_ratio),
                1 if number in windowed_blocks else math.prod(self.windows),
                key_bias,
                layer_scale,
            )
            for number in range(1, depth + 1)
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6) if final_norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose patches and windows along depth by spacing and size."""
        if facts.spatial_dims == 2:
            return []
        side = per_axis(options["patch_size"], 3, "patch_size")[-1]
        windows = per_axis(options["windows"], 3, "windows")
        # A patch of 16 x 16 pixels halves the plane four times.
        (depth,) = suggest_depth_strides(facts, 1, first=int(math.log2(side)))
        patch = [*depth.value, side, side]
        along = max(1, min(windows[0], int(facts.median_size[0] / patch[0] / _LEAST_IN_WINDOW)))
        return [
            replace(depth, key="patch_size", value=patch),
            Suggestion(
                "windows", [along, *windows[1:]],
                f"{facts.median_size[0]} planes (median), patches of {patch[0]}",
                f"volumes are padded to whole windows; each holds at least {_LEAST_IN_WINDOW} patches along depth",
            ),
        ]  # fmt: skip

    @property
    def size_divisor(self) -> tuple[int, ...]:
        """Input sizes are padded to whole patches in every window."""
        return tuple(p * w for p, w in zip(self.strides[0], self.windows, strict=True))

    def blocks(self) -> list[nn.Module]:
        """Return the transformer blocks."""
        return list(self.layers)

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per number of ``out_blocks``.

        Raises:
            ValueError: If the size is no multiple of ``size_divisor``; ``Segmenter`` pads to it.
        """
        if any(n % d for n, d in zip(images.shape[2:], self.size_divisor, strict=True)):
            raise ValueError(
                f"images of {tuple(images.shape[2:])} pixels do not split into whole patches and windows; pad them to "
                f"multiples of {self.size_divisor}, as Segmenter does"
            )
        maps = self.embedding(images)
        grid = tuple(maps.shape[2:])
        tokens = self._to_windows(maps + self.positions(grid))
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        levels = []
        for number, block in enumerate(self.layers, 1):
            tokens = block(tokens)
            if number in self.out_blocks:
                patches = tokens if self.class_token is None else tokens[:, 1:]
                levels.append(self._to_map(self.norm(patches), grid))
        return tuple(levels)

    def _to_windows(self, maps: Tensor) -> Tensor:
        """Turn maps ``(batch, channels, *grid)`` into ``(batch * windows, tokens, channels)``."""
        dims = self.spatial_dims
        sides = [side for n, w in zip(maps.shape[2:], self.windows, strict=True) for side in (w, n // w)]
        outer, inner = (tuple(range(first, 2 + 2 * dims, 2)) for first in (2, 3))
        return (
            maps.reshape(*maps.shape[:2], *sides)
            .permute(0, *outer, *inner, 1)
            .flatten(1 + dims, 2 * dims)
            .flatten(0, dims)
        )

    def _to_map(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Turn tokens of windows back into maps."""
        dims = self.spatial_dims
        inner = tuple(n // w for n, w in zip(grid, self.windows, strict=True))
        parts = tokens.reshape(-1, *self.windows, *inner, tokens.shape[-1])
        order = [
            axis
            for pair in zip(range(1, 1 + dims), range(1 + dims, 1 + 2 * dims), strict=True)
            for axis in pair
        ]
        return parts.permute(0, 1 + 2 * dims, *order).reshape(len(parts), -1, *grid)


def _check_blocks(out_blocks: Sequence[int], windowed_blocks: Sequence[int]) -> int:
    """Return the depth of the network."""
    if not out_blocks or list(out_blocks) != sorted(set(out_blocks)) or out_blocks[0] < 1:
        raise ValueError(f"out_blocks must be ascending numbers from 1 on, got {list(out_blocks)}")
    depth = out_blocks[-1]
    absent = [number for number in windowed_blocks if not 1 <= number <= depth]
    if absent:
        raise ValueError(
            f"windowed_blocks {absent} do not exist: blocks are counted from 1 to the last of out_blocks, {depth}"
        )
    return depth

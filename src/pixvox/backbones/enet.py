"""ENet's encoder: many narrow bottlenecks, for images and volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import Suggestion, suggest_depth_strides
from pixvox.layers import ConvNormAct, conv, max_pool, norm, patch_conv
from pixvox.structures import Size

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

_SECTION = ((1, 0), (2, 0), (1, 5), (4, 0), (1, 0), (8, 0), (1, 5), (16, 0))
"""Dilation, and length of the asymmetric convolution, of the bottlenecks of stage 2, which stage 3 repeats."""

_FIRST_CHANNELS = 13
"""Channels of the first convolution; the pooled image stands beside them."""


class ENetEncoder(Backbone):
    """The stages 1 to 3 of ENet: 22 bottlenecks, most of them at a stride of 8.

    "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation" (Paszke et al., 2016,
    https://arxiv.org/abs/1606.02147). As in https://github.com/davidtvs/PyTorch-ENet a PReLU has one slope for all
    channels.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        channels: Channels of stage 1 and of the stages 2 and 3; before them there are 13 and those of the images.
        dropout: Shares of channels set to zero in training, in stage 1 and later.
        depth_strides: In 3-D, stride along depth of the three halvings; by default as in the plane.
        norm_name: Normalisation, see ``pixvox.layers.norm``.

    Raises:
        ValueError: If there are not two ``channels`` and ``dropout``, three ``depth_strides``, or stage 1 has fewer
            channels than what comes before it.

    Example:
        >>> backbone = ENetEncoder()
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 64, 96))]
        [(1, 16, 32, 48), (1, 64, 16, 24), (1, 128, 8, 12)]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128),
        dropout: Sequence[float] = (0.01, 0.1),
        depth_strides: Sequence[int] | None = None,
        norm_name: str = "batch",
    ) -> None:
        depth = tuple(depth_strides) if depth_strides is not None else (2, 2, 2)
        first = _FIRST_CHANNELS + in_channels
        _check(first, channels, dropout, depth)
        steps = [(*(along,) * (spatial_dims - 2), 2, 2) for along in depth]
        strides = [steps[0]]
        for step in steps[1:]:
            strides.append(tuple(reached * s for reached, s in zip(strides[-1], step, strict=True)))
        super().__init__(spatial_dims, in_channels, (first, *channels), strides)
        self.initial = Initial(spatial_dims, in_channels, steps[0], norm_name)
        near, far = channels
        self.stage1 = nn.Sequential(
            Downsampling(spatial_dims, first, near, steps[1], dropout[0], norm_name),
            *(Bottleneck(spatial_dims, near, dropout=dropout[0], norm_name=norm_name) for _ in range(4)),
        )
        self.stage2 = nn.Sequential(
            Downsampling(spatial_dims, near, far, steps[2], dropout[1], norm_name),
            *(
                Bottleneck(spatial_dims, far, dilation, asymmetric, dropout[1], norm_name)
                for dilation, asymmetric in 2 * _SECTION
            ),
        )

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        return suggest_depth_strides(facts, 3)

    def blocks(self) -> list[nn.Module]:
        """Return the bottlenecks."""
        return [*self.stage1, *self.stage2]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return the maps before each of the last two halvings, and those of stage 3."""
        fine = self.initial(self.padded(images))
        middle = self.stage1(fine)
        return self.cropped((fine, middle, self.stage2(middle)), images.shape[2:])


class Initial(nn.Module):
    """A convolution beside the pooled image.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        step: Stride, per axis in array order.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, in_channels: int, step: Size, norm_name: str) -> None:
        super().__init__()
        self.step = step
        self.conv = conv(spatial_dims, in_channels, _FIRST_CHANNELS, 3, step, bias=False)
        self.norm = norm(norm_name, spatial_dims, _FIRST_CHANNELS + in_channels)
        self.act = nn.PReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return maps of the first level."""
        maps = torch.cat([self.conv(images), max_pool(images, 3, self.step, 1)], dim=1)
        activated: Tensor = self.act(self.norm(maps))
        return activated


class Bottleneck(nn.Module):
    """A convolution between two that make the channels a quarter and whole again, and the shortcut.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of input and output.
        dilation: Of the convolution of 3 x 3.
        asymmetric: Instead of it a convolution of this length along each axis, one after the other; 0 for none.
        dropout: Share of channels set to zero in training.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
        act: Makes the activation.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        dilation: int = 1,
        asymmetric: int = 0,
        dropout: float = 0.0,
        norm_name: str = "batch",
        act: Callable[[], nn.Module] = nn.PReLU,
    ) -> None:
        super().__init__()
        hidden = max(1, channels // 4)
        kernels: list[int | Size] = [3]
        if asymmetric:
            kernels = [
                tuple(asymmetric if axis == along else 1 for axis in range(spatial_dims))
                for along in range(spatial_dims)
            ]
        layers = [
            (channels, hidden, 1),
            *((hidden, hidden, kernel) for kernel in kernels),
            (hidden, channels, 1),
        ]
        self.layers = nn.Sequential()
        for width, wider, kernel in layers:
            spread = dilation if kernel == 3 else 1
            self.layers.extend(
                [*ConvNormAct(spatial_dims, width, wider, kernel, 1, norm_name, False, spread), act()]
            )
        self.dropout = dropout
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed maps."""
        activated: Tensor = self.act(x + drop_channels(self.layers(x), self.dropout, self.training))
        return activated


class Downsampling(nn.Module):
    """A strided bottleneck beside max pooling, whose missing channels are zero.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output, not fewer.
        step: Stride, per axis in array order.
        dropout: Share of channels set to zero in training.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        step: Size,
        dropout: float,
        norm_name: str,
    ) -> None:
        super().__init__()
        hidden = max(1, in_channels // 4)
        self.step, self.dropout = step, dropout
        self.layers = nn.Sequential(
            patch_conv(spatial_dims, in_channels, hidden, step, bias=False),
            norm(norm_name, spatial_dims, hidden),
            nn.PReLU(),
            *ConvNormAct(spatial_dims, hidden, hidden, 3, 1, norm_name, act=False),
            nn.PReLU(),
            *ConvNormAct(spatial_dims, hidden, out_channels, 1, 1, norm_name, act=False),
            nn.PReLU(),
        )
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the next level."""
        added = drop_channels(self.layers(x), self.dropout, self.training)
        pooled = max_pool(x, self.step, self.step)
        missing = added.shape[1] - pooled.shape[1]
        activated: Tensor = self.act(added + F.pad(pooled, [0, 0] * (x.dim() - 2) + [0, missing]))
        return activated


def drop_channels(x: Tensor, share: float, training: bool) -> Tensor:
    """Set a share of the channels of each image to zero while training, and make the others larger for it."""
    if not training or share == 0:
        return x
    return x * F.dropout(x.new_ones(x.shape[:2]), share).view(*x.shape[:2], *[1] * (x.dim() - 2))


def _check(
    first: int, channels: Sequence[int], dropout: Sequence[float], depth_strides: Sequence[int]
) -> None:
    """Refuse what does not describe ENet's stages."""
    for name, values, count in (
        ("channels", channels, 2), ("dropout", dropout, 2), ("depth_strides", depth_strides, 3),
    ):  # fmt: skip
        if len(values) != count:
            raise ValueError(f"{name} needs {count} entries, got {list(values)}")
    if not first <= channels[0] <= channels[1]:
        raise ValueError(
            f"channels={list(channels)}: pooled maps keep their channels, so each stage needs at least as many as the "
            f"one before; the first has {first}"
        )

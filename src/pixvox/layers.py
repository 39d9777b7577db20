"""Layers by ``spatial_dims``: beside ``backbones/lifting.py`` the only file that says ``Conv2d`` or ``Conv3d``.

Kernel sizes, strides and paddings are one number for all axes, or one per axis in array order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.image_means import mean_of_image

PerAxis = int | Sequence[int]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX_POOL: dict[int, Callable[..., Any]] = {2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


def check_spatial_dims(spatial_dims: int) -> int:
    """Return ``spatial_dims`` when it is 2 or 3.

    Raises:
        ValueError: Otherwise.
    """
    if spatial_dims not in _CONV:
        raise ValueError(f"spatial_dims must be 2 (images) or 3 (volumes), got {spatial_dims!r}")
    return spatial_dims


def per_axis(value: PerAxis, spatial_dims: int, name: str = "value") -> tuple[int, ...]:
    """Return ``value`` once per axis in array order.

    Raises:
        ValueError: If a sequence of another length is given.

    Example:
        >>> per_axis(2, 3), per_axis((1, 2, 2), 3)
        ((2, 2, 2), (1, 2, 2))
    """
    if isinstance(value, int):
        return (value,) * spatial_dims
    if len(value) != spatial_dims:
        raise ValueError(f"{name} must be one number or {spatial_dims} (in array order), got {list(value)}")
    return tuple(int(v) for v in value)


def conv(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: PerAxis = 3,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    groups: int = 1,
    bias: bool = True,
) -> nn.Module:
    """Return a convolution padded so that stride 1 keeps the size (odd kernels)."""
    check_spatial_dims(spatial_dims)
    kernel = per_axis(kernel_size, spatial_dims, "kernel_size")
    spread = per_axis(dilation, spatial_dims, "dilation")
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, spread, strict=True))
    return _CONV[spatial_dims](
        in_channels,
        out_channels,
        kernel,  # type: ignore[arg-type]
        stride=per_axis(stride, spatial_dims, "stride"),  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        dilation=spread,  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
    )


def patch_conv(
    spatial_dims: int, in_channels: int, out_channels: int, patch_size: PerAxis, bias: bool = True
) -> nn.Module:
    """Return a convolution that turns each patch into one pixel: its stride is its kernel, nothing is padded."""
    sides = per_axis(patch_size, check_spatial_dims(spatial_dims), "patch_size")
    return _CONV[spatial_dims](in_channels, out_channels, sides, stride=sides, bias=bias)  # type: ignore[arg-type]


def conv_transpose(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: PerAxis = 2,
    stride: PerAxis = 2,
    bias: bool = True,
) -> nn.Module:
    """Return a transposed convolution that multiplies each length by its stride, which is at most its kernel."""
    check_spatial_dims(spatial_dims)
    kernel = per_axis(kernel_size, spatial_dims, "kernel_size")
    step = per_axis(stride, spatial_dims, "stride")
    padding = tuple((k - s + 1) // 2 for k, s in zip(kernel, step, strict=True))
    added = tuple(2 * p + s - k for p, s, k in zip(padding, step, kernel, strict=True))
    return _CONV_TRANSPOSE[spatial_dims](
        in_channels,
        out_channels,
        kernel,  # type: ignore[arg-type]
        stride=step,  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        output_padding=added,  # type: ignore[arg-type]
        bias=bias,
    )


def norm(name: str, spatial_dims: int, channels: int) -> nn.Module:
    """Return a normalisation layer.

    Args:
        name: ``"batch"``, ``"group"`` (up to 32 groups), ``"instance"``, ``"layer"`` (over channels and space),
            ``"channel"`` (over the channels of each pixel) or ``"none"``.
        spatial_dims: 2 or 3.
        channels: Channels of the input.

    Raises:
        ValueError: If the name is not one of these.
    """
    check_spatial_dims(spatial_dims)
    if name == "batch":
        return (BatchNorm2d if spatial_dims == 2 else BatchNorm3d)(channels)
    if name == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    if name == "instance":
        return (_InstanceNorm2d if spatial_dims == 2 else _InstanceNorm3d)(channels, affine=True)
    if name == "layer":
        return nn.GroupNorm(1, channels)
    if name == "channel":
        return ChannelNorm(channels)
    if name == "none":
        return nn.Identity()
    raise ValueError(
        f"norm must be one of 'batch', 'group', 'instance', 'layer', 'channel', 'none', got {name!r}"
    )


class _AnySize(nn.modules.instancenorm._InstanceNorm):
    """Instance normalisation that also takes maps of one pixel, whose normalised value is zero; torch's raises."""

    def _apply_instance_norm(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        if input.shape[2:].numel() > 1:
            normalised: Tensor = super()._apply_instance_norm(input)  # type: ignore[no-untyped-call]
            return normalised
        shape = (1, -1, *(1,) * (input.dim() - 2))
        return (input - input) * self.weight.view(shape) + self.bias.view(shape)


class _InstanceNorm2d(_AnySize, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_AnySize, nn.InstanceNorm3d):
    pass


class _OneValue(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that also learns from one value per channel, as of one pooled image; torch's raises.

    One value has no variance: it is normalised by the running statistics, which stay as they are.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        if not self.training or input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class BatchNorm2d(_OneValue, nn.BatchNorm2d):
    """Of images."""


class BatchNorm3d(_OneValue, nn.BatchNorm3d):
    """Of volumes."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel or voxel of maps ``(batch, channels, *spatial)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, ReLU; the bias goes where there is no normalisation to replace it."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis = 3,
        stride: PerAxis = 1,
        norm_name: str = "batch",
        act: bool = True,
        dilation: PerAxis = 1,
        groups: int = 1,
    ) -> None:
        bias = norm_name == "none"
        layers = [
            conv(spatial_dims, in_channels, out_channels, kernel_size, stride, dilation, groups, bias),
            norm(norm_name, spatial_dims, out_channels),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if act else []))


class SeparableConvNormAct(nn.Sequential):
    """A convolution of each channel by itself, one that mixes the channels of each pixel, normalisation, ReLU.

    "Xception: Deep Learning with Depthwise Separable Convolutions" (Chollet, 2016, https://arxiv.org/abs/1610.02357).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis = 3,
        norm_name: str = "batch",
        dilation: PerAxis = 1,
    ) -> None:
        each = conv(spatial_dims, in_channels, in_channels, kernel_size, 1, dilation, in_channels, bias=False)
        super().__init__(each, *ConvNormAct(spatial_dims, in_channels, out_channels, 1, 1, norm_name))


def max_pool(x: Tensor, kernel_size: PerAxis, stride: PerAxis, padding: PerAxis = 0) -> Tensor:
    """Pool by the maximum over the spatial axes of ``x``."""
    dims = x.dim() - 2
    pooled: Tensor = _MAX_POOL[dims](
        x, per_axis(kernel_size, dims), stride=per_axis(stride, dims), padding=per_axis(padding, dims)
    )
    return pooled


def max_unpool(x: Tensor, finer: Tensor, step: PerAxis) -> Tensor:
    """Put each value where ``finer`` is largest in its cell, and zeros elsewhere.

    Args:
        x: ``(batch, channels, *spatial)``.
        finer: What max pooling in cells of ``step`` made the size of ``x`` of: as many channels, ``step`` as long.
        step: Size of a cell, in array order.

    Example:
        >>> finer = torch.tensor([[[[1.0, 2.0, 8.0, 6.0], [4.0, 3.0, 5.0, 7.0]]]])
        >>> max_unpool(torch.tensor([[[[10.0, 20.0]]]]), finer, 2)[0, 0]
        tensor([[ 0.,  0., 20.,  0.],
                [10.,  0.,  0.,  0.]])
    """
    dims = x.dim() - 2
    cell = per_axis(step, dims)
    _, index = _MAX_POOL[dims](finer.detach(), cell, stride=cell, return_indices=True)
    for axis, length in enumerate(cell, start=2):
        x, index = (maps.repeat_interleave(length, axis) for maps in (x, index))
    place = torch.arange(math.prod(finer.shape[2:]), device=x.device).view(finer.shape[2:])
    return torch.where(index == place, x, 0.0)


def average_pool(x: Tensor, kernel_size: PerAxis, stride: PerAxis, padding: PerAxis = 0) -> Tensor:
    """Pool by the mean over the spatial axes of ``x``; what pads it counts as zeros."""
    dims = x.dim() - 2
    return _AVERAGE_POOL[dims](
        x, per_axis(kernel_size, dims), stride=per_axis(stride, dims), padding=per_axis(padding, dims)
    )


def adaptive_average_pool(x: Tensor, output_size: PerAxis) -> Tensor:
    """Pool by the mean to a given size; a single value stands for the whole image where ``x`` is of a tile of it."""
    sizes = per_axis(output_size, x.dim() - 2)
    pooled = _ADAPTIVE_AVERAGE_POOL[x.dim() - 2](x, sizes)
    return mean_of_image(pooled) if set(sizes) == {1} else pooled


def resize(
    x: Float[Tensor, "batch channels *spatial"],
    size: Sequence[int],
    mode: str = "linear",
    align_corners: bool = False,
) -> Tensor:
    """Resize the spatial axes to ``size``.

    Args:
        x: Feature maps.
        size: Lengths in array order.
        mode: ``"linear"`` (bi- or trilinear) or ``"nearest"``.
        align_corners: Whether linear interpolation maps the centres of the first and last pixels onto each other, as
            some published networks do; the frame of pixels then shifts.
    """
    size = tuple(int(length) for length in size)
    if tuple(x.shape[2:]) == size:
        return x
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode=_LINEAR_MODE[x.dim() - 2], align_corners=align_corners)


def pad_to_multiple(x: Tensor, divisor: Sequence[int]) -> Tensor:
    """Pad the far end of each spatial axis with zeros, the neutral value of normalised images and of features.

    Args:
        x: ``(batch, channels, *spatial)``.
        divisor: What each length becomes a multiple of, in array order.

    Example:
        >>> tuple(pad_to_multiple(torch.zeros(1, 1, 5, 8), (4, 4)).shape)
        (1, 1, 8, 8)
    """
    padding = [-length % step for length, step in zip(x.shape[2:], divisor, strict=True)]
    return F.pad(x, [side for extra in reversed(padding) for side in (0, extra)]) if any(padding) else x


def memory_format(spatial_dims: int) -> torch.memory_format:
    """Return the channels-last format of images or volumes."""
    return torch.channels_last if check_spatial_dims(spatial_dims) == 2 else torch.channels_last_3d

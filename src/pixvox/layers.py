"""Layers by ``spatial_dims``: the only file that says ``Conv2d`` or ``Conv3d``.

Kernel sizes, strides and paddings are one number for all axes, or one per axis in array order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PerAxis = int | Sequence[int]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
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


def patch_conv(spatial_dims: int, in_channels: int, out_channels: int, patch_size: PerAxis) -> nn.Module:
    """Return a convolution that turns each patch into one pixel: its stride is its kernel, nothing is padded."""
    sides = per_axis(patch_size, check_spatial_dims(spatial_dims), "patch_size")
    return _CONV[spatial_dims](in_channels, out_channels, sides, stride=sides)  # type: ignore[arg-type]


def conv_transpose(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: PerAxis = 2, stride: PerAxis = 2
) -> nn.Module:
    """Return a transposed convolution; kernel = stride = 2 doubles the size."""
    check_spatial_dims(spatial_dims)
    return _CONV_TRANSPOSE[spatial_dims](
        in_channels,
        out_channels,
        per_axis(kernel_size, spatial_dims, "kernel_size"),  # type: ignore[arg-type]
        stride=per_axis(stride, spatial_dims, "stride"),  # type: ignore[arg-type]
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
        return _BATCH_NORM[spatial_dims](channels)
    if name == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    if name == "instance":
        return _INSTANCE_NORM[spatial_dims](channels, affine=True)
    if name == "layer":
        return nn.GroupNorm(1, channels)
    if name == "channel":
        return ChannelNorm(channels)
    if name == "none":
        return nn.Identity()
    raise ValueError(
        f"norm must be one of 'batch', 'group', 'instance', 'layer', 'channel', 'none', got {name!r}"
    )


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
    ) -> None:
        bias = norm_name == "none"
        layers = [
            conv(spatial_dims, in_channels, out_channels, kernel_size, stride, bias=bias),
            norm(norm_name, spatial_dims, out_channels),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if act else []))


def max_pool(x: Tensor, kernel_size: PerAxis, stride: PerAxis, padding: PerAxis = 0) -> Tensor:
    """Pool by the maximum over the spatial axes of ``x``."""
    dims = x.dim() - 2
    return _MAX_POOL[dims](
        x, per_axis(kernel_size, dims), stride=per_axis(stride, dims), padding=per_axis(padding, dims)
    )


def average_pool(x: Tensor, kernel_size: PerAxis, stride: PerAxis) -> Tensor:
    """Pool by the mean over the spatial axes of ``x``."""
    dims = x.dim() - 2
    return _AVERAGE_POOL[dims](x, per_axis(kernel_size, dims), stride=per_axis(stride, dims))


def adaptive_average_pool(x: Tensor, output_size: PerAxis) -> Tensor:
    """Pool by the mean to a given size."""
    return _ADAPTIVE_AVERAGE_POOL[x.dim() - 2](x, per_axis(output_size, x.dim() - 2))


def resize(x: Float[Tensor, "batch channels *spatial"], size: Sequence[int], mode: str = "linear") -> Tensor:
    """Resize the spatial axes to ``size``.

    Args:
        x: Feature maps.
        size: Lengths in array order.
        mode: ``"linear"`` (bi- or trilinear, corners not aligned) or ``"nearest"``.
    """
    size = tuple(int(length) for length in size)
    if tuple(x.shape[2:]) == size:
        return x
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode=_LINEAR_MODE[x.dim() - 2], align_corners=False)


def memory_format(spatial_dims: int) -> torch.memory_format:
    """Return the channels-last format of images or volumes."""
    return torch.channels_last if check_spatial_dims(spatial_dims) == 2 else torch.channels_last_3d


def _inflate(conv2d: nn.Conv2d, kernel_depth: int, stride_depth: int, dilation_depth: int) -> nn.Conv3d:
    """Return the 3-D convolution whose centre slice is ``conv2d`` and whose other slices are zero.

    On a volume of one slice, or of equal slices, it gives what ``conv2d`` gives on each slice.
    """
    kernel, stride, dilation = (_pair(v) for v in (conv2d.kernel_size, conv2d.stride, conv2d.dilation))
    padding = conv2d.padding if isinstance(conv2d.padding, str) else _pair(conv2d.padding)
    depth_padding = dilation_depth * (kernel_depth - 1) // 2
    lifted = nn.Conv3d(
        conv2d.in_channels,
        conv2d.out_channels,
        (kernel_depth, *kernel),  # type: ignore[arg-type]
        stride=(stride_depth, *stride),  # type: ignore[arg-type]
        padding=padding if isinstance(padding, str) else (depth_padding, *padding),  # type: ignore[arg-type]
        dilation=(dilation_depth, *dilation),  # type: ignore[arg-type]
        groups=conv2d.groups,
        bias=conv2d.bias is not None,
    )
    with torch.no_grad():
        lifted.weight.zero_()
        lifted.weight[:, :, kernel_depth // 2] = conv2d.weight
        if conv2d.bias is not None and lifted.bias is not None:
            lifted.bias.copy_(conv2d.bias)
    return lifted


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return per_axis(value, 2)


def lift_to_3d(
    module: nn.Module, depth_stride: int | None = None, depth_kernel: int | None = None
) -> nn.Module:
    """Turn a 2-D convolutional module into its 3-D twin, in place where it can be, and return it.

    Convolutions get their 2-D kernel as the centre slice ("centre inflation"), so that a volume of one
    slice or of equal slices reproduces the 2-D network exactly; normalisation layers keep weights and
    statistics.

    Args:
        module: Any module built of convolutions, batch norms, pools and element-wise layers.
        depth_stride: Stride along depth of every layer that strides in the plane; by default the same.
        depth_kernel: Kernel length along depth; by default as in the plane.

    Raises:
        ValueError: If the module holds a layer that has no 3-D twin here.
    """
    if isinstance(module, nn.Conv2d):
        kernel, stride, dilation = (_pair(v) for v in (module.kernel_size, module.stride, module.dilation))
        along = 1 if kernel[0] == 1 else (depth_kernel or kernel[0])
        step = 1 if stride[0] == 1 else (stride[0] if depth_stride is None else depth_stride)
        return _inflate(module, along, step, dilation[0] if along > 1 else 1)
    if isinstance(module, nn.BatchNorm2d):
        return _lift_batch_norm(module)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _lift_pool(module, depth_stride)
    if isinstance(module, nn.ConvTranspose2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        raise ValueError(f"{type(module).__name__} has no 3-D twin here; add it to pixvox.layers.lift_to_3d")
    for name, child in module.named_children():
        setattr(module, name, lift_to_3d(child, depth_stride, depth_kernel))
    return module


def _lift_batch_norm(module: nn.BatchNorm2d) -> nn.BatchNorm3d:
    lifted = nn.BatchNorm3d(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )
    lifted.load_state_dict(module.state_dict())
    return lifted


def _lift_pool(module: nn.MaxPool2d | nn.AvgPool2d, depth_stride: int | None) -> nn.Module:
    kernel, stride, padding = (_pair(v) for v in (module.kernel_size, module.stride, module.padding))
    step = stride[0] if depth_stride is None else depth_stride
    if isinstance(module, nn.MaxPool2d):
        # A maximum over equal slices is one slice's: the depth of the window does not change lifted results.
        return nn.MaxPool3d(
            (kernel[0], *kernel), (step, *stride), (padding[0], *padding), ceil_mode=module.ceil_mode
        )
    height, width = kernel
    return nn.AvgPool3d(
        (1, height, width),
        (step, stride[0], stride[1]),
        (0, padding[0], padding[1]),
        ceil_mode=module.ceil_mode,
        count_include_pad=module.count_include_pad,
    )

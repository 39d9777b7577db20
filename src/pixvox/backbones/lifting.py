"""Networks for images turned into networks for volumes.

Kernels become the centre slices of kernels that are zero elsewhere, so that a volume of one slice, or of equal slices,
gives what the network for images gives on a slice, and weights of images serve volumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.grn import GlobalResponseNorm
from timm.layers.norm import LayerNorm2d
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import get_same_padding
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.convnext import ConvNeXtBlock
from timm.models.hgnet import EseModule
from torch import Tensor, nn

from pixvox.layers import BatchNorm2d, BatchNorm3d, ChannelNorm, per_axis

_PROBE = 64
"""Side of the image that tells where a network halves the size."""

_WITHOUT_TWIN = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ConvTranspose2d)

_Levels = tuple[int, int]


def lift_to_3d(
    network: nn.Module,
    in_channels: int,
    depth_strides: Sequence[int],
    depth_kernels: Sequence[int] | None = None,
    run: Callable[[Tensor], Any] | None = None,
) -> nn.Module:
    """Turn a convolutional network for images into its twin for volumes, in place where it can be, and return it.

    "Centre inflation" of "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset" (Carreira and
    Zisserman, 2017, https://arxiv.org/abs/1705.07750), section 2.4.1, with one slice instead of a mean of equal ones.
    Patches (kernel equal to stride) are padded along depth with their last slice.

    Args:
        network: Takes images; built of convolutions, pools, normalisations, squeeze-and-excitation, ConvNeXt's blocks
            and element-wise layers.
        in_channels: Channels of the images.
        depth_strides: Stride along depth for each halving of the plane, in their order.
        depth_kernels: Longest kernels along depth at each of these levels; by default as long as in the plane.
        run: Passes an image through the parts that are used; by default the network itself.

    Raises:
        ValueError: If the network halves the plane more often than there are ``depth_strides``, or has a layer
            without a twin.

    Example:
        >>> plane = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)).eval()
        >>> image = torch.rand(1, 1, 8, 8)
        >>> expected = plane(image)
        >>> volume = lift_to_3d(plane, 1, depth_strides=[1])
        >>> torch.allclose(volume(image[:, :, None])[:, :, 0], expected, atol=1e-6)
        True
    """
    levels = _levels(network, in_channels, run or network)
    halvings = max((after for _, after in levels.values() if after < math.log2(_PROBE)), default=0)
    if len(depth_strides) < halvings:
        raise ValueError(
            f"depth_strides needs one entry for each of {halvings} halvings of the plane, got {list(depth_strides)}"
        )
    if depth_kernels is not None and len(depth_kernels) != len(depth_strides):
        raise ValueError(
            f"depth_kernels needs as many entries as depth_strides, {len(depth_strides)}, got {list(depth_kernels)}"
        )

    def lift(module: nn.Module, name: str) -> nn.Module:
        return twin_of(module, name).train(module.training)

    def twin_of(module: nn.Module, name: str) -> nn.Module:
        before, after = levels.get(name, (0, 0))
        step = math.prod(depth_strides[before:after])
        longest = None if depth_kernels is None else depth_kernels[max(after, 1) - 1 : after or 1]
        if isinstance(module, nn.Conv2d):
            return lift_conv(module, step, *(longest or ()))
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            return _lift_pool(module, step, *(longest or ()))
        if isinstance(module, _WITHOUT_TWIN) and name in levels:
            raise ValueError(f"{type(module).__name__} ({name}) has no twin for volumes here")
        for part, child in module.named_children():
            setattr(module, part, lift(child, f"{name}.{part}" if name else part))
        twin = _TWINS.get(type(module))
        return module if twin is None else twin(module)

    return lift(network, "")


def _levels(network: nn.Module, in_channels: int, run: Callable[[Tensor], Any]) -> dict[str, _Levels]:
    """Return how often the plane was halved before and after each convolution and pool that takes part."""
    levels: dict[str, _Levels] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            sizes = (inputs[0].shape[-1], output.shape[-1])
            before, after = (round(math.log2(_PROBE / size)) for size in sizes)
            levels[name] = (before, after)

        return hook

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, *_WITHOUT_TWIN)
    hooks = [
        module.register_forward_hook(note(name))
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    ]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()
            run(torch.zeros(1, in_channels, _PROBE, _PROBE))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return levels


def lift_conv(conv: nn.Conv2d, step: int, longest: int | None = None) -> nn.Conv3d:
    """Return the convolution whose centre slice is ``conv`` and whose other slices are zero."""
    same = isinstance(conv, Conv2dSame)
    if isinstance(conv.padding, str) or not (same or type(conv) is nn.Conv2d):
        raise ValueError(
            f"a {type(conv).__name__} with padding={conv.padding!r} has no twin for volumes here"
        )
    kernel, stride, padding, dilation = (
        per_axis(value, 2) for value in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    )
    patches = kernel == stride and kernel[0] > 1 and not any(padding) and not same
    if patches:
        along = step
    else:
        # An even kernel has no centre.
        along = kernel[0] if kernel[0] % 2 else 1
        along = min(along, longest or along)
    spread = dilation[0] if along > 1 else 1
    kind = _PatchConv if patches else _SameConv if same else nn.Conv3d
    lifted = kind(
        conv.in_channels,
        conv.out_channels,
        (along, *kernel),  # type: ignore[arg-type]
        stride=(step, *stride),  # type: ignore[arg-type]
        padding=(0 if patches else spread * (along - 1) // 2, *padding),  # type: ignore[arg-type]
        dilation=(spread, *dilation),  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    with torch.no_grad():
        lifted.weight.zero_()
        lifted.weight[:, :, along // 2] = conv.weight
        if conv.bias is not None and lifted.bias is not None:
            lifted.bias.copy_(conv.bias)
    return lifted


class _PatchConv(nn.Conv3d):
    """A convolution of patches, the last of them filled up."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_whole_depth(x, self.stride[0]))


class _SameConv(nn.Conv3d):
    """A convolution that pads the plane as TensorFlow does: so that each stride has a value, more at the far ends."""

    def forward(self, x: Tensor) -> Tensor:
        geometry = zip(x.shape[3:], self.kernel_size[1:], self.stride[1:], self.dilation[1:], strict=True)
        missing = [get_same_padding(*axis) for axis in geometry]
        sides = [(count // 2, count - count // 2) for count in reversed(missing)]
        return super().forward(F.pad(x, [*sides[0], *sides[1]]))


class _PatchMean(nn.AvgPool3d):
    """Means of patches, the last of them filled up."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_whole_depth(x, per_axis(self.stride, 3)[0]))


def _whole_depth(x: Tensor, step: int) -> Tensor:
    """Repeat the last slice until the depth is a multiple of ``step``."""
    missing = -x.shape[2] % step
    return torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2) if missing else x


def _lift_pool(pool: nn.MaxPool2d | nn.AvgPool2d, step: int, longest: int | None = None) -> nn.Module:
    kernel, stride, padding = (per_axis(v, 2) for v in (pool.kernel_size, pool.stride, pool.padding))
    if isinstance(pool, nn.AvgPool2d):
        return _PatchMean(
            (step, *kernel),  # type: ignore[arg-type]
            (step, *stride),  # type: ignore[arg-type]
            (0, *padding),  # type: ignore[arg-type]
            ceil_mode=pool.ceil_mode,
            count_include_pad=pool.count_include_pad,
        )
    if kernel == stride:
        along, padded = step, 0
    else:
        along = kernel[0] if kernel[0] % 2 else 1
        along = min(along, longest or along)
        padded = along // 2
    ceil = pool.ceil_mode or along == step > 1
    return nn.MaxPool3d((along, *kernel), (step, *stride), (padded, *padding), ceil_mode=ceil)


def _lift_batch_norm(norm: nn.BatchNorm2d) -> nn.Module:
    kind = _BatchNormAct3d if isinstance(norm, BatchNormAct2d) else BatchNorm3d
    lifted = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if isinstance(norm, BatchNormAct2d) and isinstance(lifted, _BatchNormAct3d):
        lifted.drop, lifted.act = norm.drop, norm.act
    lifted.load_state_dict(norm.state_dict())
    return lifted


class _BatchNormAct3d(nn.BatchNorm3d):
    """Batch normalisation and what timm puts behind it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


def _lift_channel_norm(norm: LayerNorm2d) -> ChannelNorm:
    lifted = ChannelNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=norm.elementwise_affine)
    lifted.load_state_dict(norm.state_dict())
    return lifted


def _lift_response_norm(norm: Any) -> nn.Module:
    """Let a global response norm look at three axes."""
    channels_last = norm.channel_dim == -1
    norm.spatial_dim = (1, 2, 3) if channels_last else (2, 3, 4)
    norm.wb_shape = (1, 1, 1, 1, -1) if channels_last else (1, -1, 1, 1, 1)
    lifted: nn.Module = norm
    return lifted


def _mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


class _SqueezeExcite3d(SqueezeExcite):
    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(_mean(x)))))
        return x * weights


class _SEModule3d(SEModule):
    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.gate(self.fc2(self.act(self.bn(self.fc1(_mean(x))))))
        return x * weights


class _EffectiveSEModule3d(EffectiveSEModule):
    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.gate(self.fc(_mean(x)))
        return x * weights


class _EseModule3d(EseModule):
    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.sigmoid(self.conv(_mean(x)))
        return x * weights


class _ConvNeXtBlock3d(ConvNeXtBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_dw(x)
        if not self.use_conv_mlp:
            out = out.movedim(1, -1)
        out = self.mlp(self.norm(out))
        if not self.use_conv_mlp:
            out = out.movedim(-1, 1)
        if self.gamma is not None:
            out = out * self.gamma[:, None, None, None]
        residual: Tensor = self.drop_path(out) + self.shortcut(x)
        return residual


def _as(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Return what makes a module of timm's one of ``kind``: the same parts, another ``forward``."""

    def change(module: nn.Module) -> nn.Module:
        if getattr(module, "add_maxpool", False):
            raise ValueError(f"{type(module).__name__} with add_maxpool has no twin for volumes here")
        module.__class__ = kind
        return module

    return change


_TWINS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.BatchNorm2d: _lift_batch_norm,
    BatchNorm2d: _lift_batch_norm,
    BatchNormAct2d: _lift_batch_norm,
    LayerNorm2d: _lift_channel_norm,
    GlobalResponseNorm: _lift_response_norm,
    SqueezeExcite: _as(_SqueezeExcite3d),
    SEModule: _as(_SEModule3d),
    EffectiveSEModule: _as(_EffectiveSEModule3d),
    EseModule: _as(_EseModule3d),
    ConvNeXtBlock: _as(_ConvNeXtBlock3d),
}
"""What the layers of timm's networks that look at two axes become; all others treat any number of axes alike."""

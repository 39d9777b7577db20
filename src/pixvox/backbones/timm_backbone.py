"""Hierarchical networks of timm, for images; the convolutional ones lifted, for volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from pixvox.backbones.branches import fold_branches
from pixvox.backbones.network_backbone import NetworkBackbone
from pixvox.layers import ChannelNorm
from pixvox.weights.timm_network import build_timm


class TimmBackbone(NetworkBackbone):
    """A network of timm that makes images smaller step by step: ResNet, ConvNeXt, RepVGG, EfficientNet, Swin V2, ...

    timm (https://github.com/huggingface/pytorch-image-models) names the paper and origin of each network. In 3-D every
    layer of a convolutional one is lifted with its 2-D kernel in the centre slice, so that weights of images serve
    volumes. Any input size: images are padded inside and the maps cropped. Levels are numbered as in feature pyramids:
    level ``l`` has stride ``2 ** l``.

    Args:
        name: timm's name, with or without the tag of its weights, such as ``"resnet50"`` or ``"resnet50.a1_in1k"``; may
            hold ``{variant}``.
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images; other than 3 adapts the first layer's weights.
        pretrained: Load timm's weights (fetched once by timm), or those of a file or run folder at this path.
        out_levels: Levels given out; by default those of 2 to 5 (strides 4 to 32) that the network has.
        depth_strides: In 3-D, stride along depth for each halving of the plane; ``(1, 1, 2, 2, 2)`` keeps thin or
            anisotropic volumes longer. By default as in the plane.
        depth_kernels: In 3-D, longest kernels along depth at each level from 1 on; by default as in the plane.
        output_stride: 8 or 16 replaces the last strides by dilation, as torchvision's
            ``replace_stride_with_dilation`` does.
        drop_path: Chance that a block of the last stage is left out of a training step, earlier blocks less; by
            default timm's.
        freeze: Weights and statistics that this level and finer ones are made of stay as they are: 1 the stem of a
            ResNet, 2 also its first stage; 0 for none, -1 for all.
        freeze_norms: Weights and statistics of every batch norm stay as they are, as in most published detectors.
        variant: Takes the place of ``{variant}`` in the name.
        level_norms: Normalise the channels of each level given out, as ConvNeXt and Swin do for dense prediction; these
            norms learn whatever is frozen.

    Raises:
        ValueError: If timm has no such network, it does not make images smaller step by step, a level does not exist,
            or an option does not fit the network.
        WeightsError: If the weights are not found or do not fit.

    Example:
        >>> import torch
        >>> backbone = TimmBackbone("resnet18", spatial_dims=3, in_channels=1, depth_strides=(1, 1, 2, 2, 2))
        >>> backbone.strides
        ((1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32))
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 1, 8, 61, 83))][::3]
        [(1, 64, 8, 16, 21), (1, 512, 1, 2, 3)]
    """

    def __init__(
        self,
        name: str = "resnet50",
        spatial_dims: int = 2,
        in_channels: int = 3,
        pretrained: bool | str = False,
        out_levels: Sequence[int] | None = None,
        depth_strides: Sequence[int] | None = None,
        depth_kernels: Sequence[int] | None = None,
        output_stride: int = 32,
        drop_path: float | None = None,
        freeze: int = 0,
        freeze_norms: bool = False,
        variant: str | int | None = None,
        level_norms: bool = False,
    ) -> None:
        name = name.format(variant=variant)
        options: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
        dilated: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        whole = build_timm(name, False, meta=True, in_channels=in_channels)
        if type(whole.model).__name__.startswith("SwinTransformer"):
            options["strict_img_size"] = False
        first, levels = _levels(name, whole.feature_info.reduction(), out_levels)
        getter = build_timm(
            name,
            pretrained,
            in_channels=in_channels,
            out_indices=[level - first for level in levels],
            **options,
            **dilated,
        )
        self.first_level = first
        network: Any = getter.model
        _keep_to_grid(network)
        if network.pretrained_cfg.get("fixed_input_size"):
            _check_sizes(name, getter, in_channels)
        super().__init__(
            network,
            getter.feature_info.channels(),
            getter.feature_info.reduction(),
            spatial_dims,
            in_channels,
            levels,
            depth_strides,
            depth_kernels,
            freeze,
            freeze_norms,
        )
        channels = getter.feature_info.channels() if level_norms else []
        self.level_norms = nn.ModuleList(ChannelNorm(width, eps=1e-6) for width in channels)

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first; images of any size."""
        maps = super().forward(images)
        if not self.level_norms:
            return maps
        return tuple(norm(level) for norm, level in zip(self.level_norms, maps, strict=True))

    def maps(self, images: Tensor, levels: Sequence[int]) -> Sequence[Tensor]:
        """Return the maps of ``levels``."""
        network: Any = self.network
        maps: list[Tensor] = network.forward_intermediates(
            images,
            indices=[level - self.first_level for level in levels],
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return maps

    def deploy(self) -> None:
        """Fold the branches of RepVGG's blocks; other networks stay as they are."""
        fold_branches(self.network)

    def known_levels(self) -> list[int]:
        """Return the levels that are built."""
        return list(range(self.first_level, max(self.out_levels) + 1))


class TimmTransformer(TimmBackbone):
    """A hierarchical transformer of timm, such as Swin V2 or SAM 2's Hiera: for images.

    Arguments and errors are those of ``TimmBackbone``; what is for volumes has no effect.
    """

    supported_dims = (2,)


def _levels(name: str, strides: Sequence[int], wanted: Sequence[int] | None) -> tuple[int, list[int]]:
    """Return the first level that the network has, and the levels to give out."""
    existing = [round(math.log2(stride)) for stride in strides]
    if existing != list(range(existing[0], existing[0] + len(existing))):
        raise ValueError(
            f"{name!r} does not halve the size from level to level (its strides are {list(strides)}); for plain vision "
            f"transformers choose backbone=vit backbone.name={name}"
        )
    levels = sorted(wanted) if wanted is not None else [level for level in existing if level >= 2]
    if not levels or not set(levels) <= set(existing):
        raise ValueError(
            f"out_levels={list(levels)}: {name!r} has levels {existing[0]} to {existing[-1]}; level l has stride 2 ** l"
        )
    return existing[0], levels


def _check_sizes(name: str, getter: nn.Module, in_channels: int) -> None:
    """Refuse a network that takes images of one size alone."""
    try:
        with torch.no_grad():
            getter.eval()(torch.zeros(1, in_channels, 64, 96))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{name!r} takes images of the size it was trained with alone ({error}); choose a network that takes any"
        ) from error
    getter.train()


def _keep_to_grid(network: nn.Module) -> None:
    """Pad convolutions that would lose the border (those of the first Xception): maps then have whole strides."""
    for conv in network.modules():
        if isinstance(conv, Conv2dSame):  # pads in its forward pass
            continue
        if isinstance(conv, nn.Conv2d) and conv.padding == (0, 0) and conv.stride != conv.kernel_size:
            sides = tuple(side // 2 if side % 2 else 0 for side in conv.kernel_size)
            conv.padding = sides

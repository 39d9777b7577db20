"""Branches that are one convolution when learning is over."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.byobnet import RepVggBlock
from torch import Tensor, nn


def fold_branches(network: nn.Module) -> int:
    """Replace the branches of RepVGG's blocks by the one convolution that they add up to, in place.

    "RepVGG: Making VGG-style ConvNets Great Again" (Ding et al., 2021, https://arxiv.org/abs/2101.03697), section 3.3,
    for images and volumes. The network gives the same maps in evaluation mode, faster, and can no longer learn as it
    did.

    Args:
        network: Any module; blocks that are folded already are left alone.

    Returns:
        The number of blocks that were folded.
    """
    blocks = [
        part for part in network.modules() if isinstance(part, RepVggBlock) and part.reparam_conv is None
    ]
    for block in blocks:
        _fold(block)
    return len(blocks)


@torch.no_grad()
def _fold(block: Any) -> None:
    main: Any = block.conv_kxk.conv
    sides = main.kernel_size
    weight, bias = _normalised(main.weight, block.conv_kxk.bn)
    narrow, shift = _normalised(block.conv_1x1.conv.weight, block.conv_1x1.bn)
    centre = [pad for side in reversed(sides) for pad in (side // 2, side // 2)]
    weight, bias = weight + F.pad(narrow, centre), bias + shift
    if block.identity is not None:
        groups = main.in_channels // main.groups
        unit = torch.zeros_like(main.weight)
        index = torch.arange(main.in_channels)
        unit[(index, index % groups, *(side // 2 for side in sides))] = 1.0
        same, shift = _normalised(unit, block.identity)
        weight, bias = weight + same, bias + shift
    folded = type(main)(
        main.in_channels, main.out_channels, sides, main.stride, main.padding, main.dilation, main.groups
    ).to(weight)
    folded.weight.copy_(weight)
    folded.bias.copy_(bias)
    block.reparam_conv = folded.requires_grad_(main.weight.requires_grad)
    del block.conv_kxk, block.conv_1x1
    block.identity = None


def _normalised(weight: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of a convolution without bias and the batch norm behind it."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), norm.bias - norm.running_mean * scale

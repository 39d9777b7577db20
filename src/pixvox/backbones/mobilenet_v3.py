"""MobileNetV3 as torchvision has it, for images: the network of its published DeepLabV3 and Lite R-ASPP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from pixvox.backbones.network_backbone import NetworkBackbone
from pixvox.errors import WeightsError

VARIANTS = ("large", "small")


class MobileNetV3(NetworkBackbone):
    """torchvision's MobileNetV3, whose levels end where torchvision's heads take them.

    "Searching for MobileNetV3" (Howard et al., 2019, https://arxiv.org/abs/1905.02244). Levels 1 to 4 are what the
    first block of their stride gives, level 5 the last of all maps. timm's ``mobilenetv3`` gives the last block of each
    stride, has more variants and is there for volumes too; the weights of the two fit one another neither in names nor
    in what dilation does to them.

    Args:
        variant: ``"large"`` or ``"small"``.
        spatial_dims: 2.
        in_channels: Channels of the images; other than 3 adapts the first layer's weights.
        pretrained: Load torchvision's weights (fetched once), or those of a file or run folder at this path.
        out_levels: Levels given out, of 1 to 5; level ``l`` has stride ``2 ** l``.
        output_stride: 16, or less, replaces the last stride by dilation, as in torchvision's models for segmentation.
        freeze: Weights and statistics that this level and finer ones are made of stay as they are; 0 for none, -1 for
            all.
        freeze_norms: Weights and statistics of every batch norm stay as they are.

    Raises:
        ValueError: If there is no such variant or level.
        WeightsError: If the weights are not found or do not fit.

    Example:
        >>> import torch
        >>> backbone = MobileNetV3("small", out_levels=(3, 5), output_stride=16)
        >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 61, 83))]
        [(1, 24, 8, 11), (1, 576, 4, 6)]
    """

    supported_dims = (2,)

    def __init__(
        self,
        variant: str = "large",
        spatial_dims: int = 2,
        in_channels: int = 3,
        pretrained: bool | str = False,
        out_levels: Sequence[int] = (2, 3, 4, 5),
        output_stride: int = 32,
        freeze: int = 0,
        freeze_norms: bool = False,
    ) -> None:
        self.check_dims(spatial_dims)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        levels = sorted(out_levels)
        if not levels or not set(levels) <= set(range(1, 6)):
            raise ValueError(f"out_levels={levels}: there are levels 1 to 5; level l has stride 2 ** l")
        dilated = output_stride < 32
        features: Any = _network(variant, pretrained, in_channels, dilated)
        strided = [place for place, block in enumerate(features) if getattr(block, "_is_cn", False)]
        # torchvision's C1 to C3; in place of the first block of stride 32 the last layer of all.
        self.places = dict(enumerate([0, *strided[:3], len(features) - 1], start=1))
        super().__init__(
            features,
            [features[self.places[level]].out_channels for level in levels],
            [2 ** min(level, 4 if dilated else 5) for level in levels],
            spatial_dims,
            in_channels,
            levels,
            freeze=freeze,
            freeze_norms=freeze_norms,
        )

    def maps(self, images: Tensor, levels: Sequence[int]) -> Sequence[Tensor]:
        """Return the maps of ``levels``."""
        wanted = [self.places[level] for level in levels]
        found: dict[int, Tensor] = {}
        x = images
        for place, layer in enumerate(self.network.children()):
            if place > max(wanted):
                break
            x = layer(x)
            found[place] = x
        return [found[place] for place in wanted]

    def known_levels(self) -> list[int]:
        """Return all levels."""
        return list(self.places)


def _network(variant: str, pretrained: bool | str, in_channels: int, dilated: bool) -> nn.Sequential:
    """Return the layers before the classifier of images."""
    from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

    build = mobilenet_v3_large if variant == "large" else mobilenet_v3_small
    features: nn.Sequential = build(weights=None, dilated=dilated).features
    if pretrained:
        state = _weights(variant, pretrained)
        try:
            features.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(
                f"{pretrained}: these are not the weights of torchvision's mobilenet_v3_{variant} ({error})"
            ) from error
    first: Any = features[0]
    if in_channels != 3:
        conv = first[0]
        kernel = adapt_input_conv(in_channels, conv.weight.detach())
        first[0] = type(conv)(in_channels, conv.out_channels, 3, stride=2, padding=1, bias=False)
        first[0].weight.data.copy_(kernel)
    return features


def _weights(variant: str, pretrained: bool | str) -> dict[str, Tensor]:
    """Return the weights of the layers, out of torchvision's file, or of one of a whole network or run."""
    from torchvision.models import MobileNet_V3_Large_Weights, MobileNet_V3_Small_Weights

    from pixvox.weights.checkpoint import read_weights
    from pixvox.weights.loading import find_checkpoint
    from pixvox.weights.torchvision import fetch

    if pretrained is True:
        state = fetch(
            (MobileNet_V3_Large_Weights if variant == "large" else MobileNet_V3_Small_Weights).DEFAULT
        )
    else:
        state = read_weights(find_checkpoint(Path(str(pretrained))))
    for prefix in ("teacher.", "segmenter.", "backbone.network.", "features."):
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = own or state
    return state

"""A small member of each family of backbones, and weights behind which nothing hides."""

import torch
from torch import nn

from pixvox.models import list_backbones, part_class

_SIZES = ("resnet", "resnet34", "resnet50", "resnet101", "resnet152", "darknet21", "darknet24", "darknet53")
"""Other sizes of a family, or its second name."""

OPTIONS: dict[str, dict[str, object]] = {
    "convnext": {"variant": "atto"},
    "convnextv2": {"variant": "atto"},
    "custom_resnet": {
        "stem_channels": 8,
        "channels": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "block": "basic",
    },
    "bisenetv2": {"width": 0.125},
    "darknet18": {"width": 4},
    "dino": {"feature_layer": 2},
    "dinov3": {"feature_layer": 2},
    "enet": {"channels": [16, 16]},
    "mobilenet_v3": {"variant": "small"},
    "mobilenetv3": {"variant": "small_050"},
    "pidnet": {"channels": 4, "scale_channels": 4},
    "regseg": {"channels": [4, 4, 8, 8, 8], "dilations": [[1], [1, 2]], "group_width": 4},
    "repvgg": {"variant": "a0"},
    "residual_encoder": {"channels": [4, 8, 8, 8], "strides": [1, 2, 4, 8], "blocks": [1, 1, 1, 1]},
    "sam": {"feature_layer": 1},
    "simple": {"channels": [4, 8, 8, 16]},
    "swin": {"channels": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window": 4},
    "timm": {"name": "regnety_002"},
    "vgg": {"variant": "11_bn"},
    "vit": {"name": "vit_tiny_patch16_224", "feature_layer": 2},
    "windowed_vit": {
        "channels": 24,
        "num_heads": 2,
        "out_blocks": [1, 2, 3, 4],
        "windowed_blocks": [1, 3],
        "windows": 2,
    },
}
"""Options that make members small."""


def small_families(spatial_dims: int) -> list[str]:
    """Return one name of each family that exists in ``spatial_dims``."""
    return [name for name in list_backbones(spatial_dims) if name not in _SIZES]


def pyramids(spatial_dims: int) -> list[str]:
    """Return one name of each family whose levels are a pyramid, not branches for one head."""
    return [name for name in small_families(spatial_dims) if not part_class("backbone", name).branches]


def randomised(network: nn.Module) -> nn.Module:
    """Draw statistics, scales and shifts anew, so that nothing hides behind ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.dim() == 1 and value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise - 0.5 if name.endswith(("bias", "mean")) else noise + 0.5)
    return network.eval()

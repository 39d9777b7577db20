import os

import pytest
import torch
from torch import nn

from pixvox.backbones.swin import Swin
from pixvox.weights.backbones import lift_swin, swin_from_timm, swin_from_transformers

os.environ["HF_HUB_OFFLINE"] = "1"
SMALL = {
    "channels": 8,
    "depths": (2, 3),
    "num_heads": (2, 4),
    "window": 3,
    "out_levels": (1, 2),
    "drop_path": 0.0,
}


def randomised(module: nn.Module, std: float = 0.3, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, so that nothing hides behind ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def transformers_backbone(depths, heads, window, width, stages):
    from transformers import SwinBackbone, SwinConfig

    config = SwinConfig(
        embed_dim=width, depths=depths, num_heads=heads, window_size=window,
        out_features=[f"stage{stage}" for stage in stages],
    )  # fmt: skip
    return randomised(SwinBackbone(config))


@pytest.mark.parametrize(
    ("depths", "heads", "window", "width", "stages", "size"),
    [
        ([2, 3], [2, 4], 3, 8, [1, 2], (45, 62)),
        ([1, 2, 2], [1, 2, 4], 4, 16, [1, 3], (96, 64)),
        ([2, 2, 2, 2], [1, 2, 4, 8], 7, 8, [1, 2, 3, 4], (33, 70)),
        ([2, 2], [2, 2], 12, 8, [2], (16, 100)),
    ],
)
def test_equals_transformers_with_its_weights(depths, heads, window, width, stages, size):
    theirs = transformers_backbone(depths, heads, window, width, stages)
    ours = Swin(channels=width, depths=depths, num_heads=heads, window=window, out_levels=stages).eval()
    ours.load_state_dict(swin_from_transformers(theirs.state_dict()))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(images).feature_maps
        levels = ours(images)
    assert len(levels) == len(expected)
    for level, reference in zip(levels, expected, strict=True):
        assert level.shape == reference.shape
        assert close(level, reference)

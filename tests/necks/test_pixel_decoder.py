"""The pixel decoder equals transformers' Mask2Former's; in 3-D, one slice and permuted axes."""

import pytest
import torch

from parity import assert_near, randomise
from pixvox.necks.pixel_decoder import PixelDecoder
from pixvox.weights.pixel_decoder import TRANSFORMERS, convert_pixel_decoder

CHANNELS, STRIDES = (6, 10, 12, 14), (4, 8, 16, 32)


def _levels(size, batch=2, seed=1, strides=STRIDES):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, *(-(-n // s) for n in size), generator=generator, requires_grad=True)
        for c, s in zip(CHANNELS, strides, strict=True)
    ]


def _reference(**options):
    from transformers import Mask2FormerConfig, SwinConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    config = Mask2FormerConfig(
        backbone_config=SwinConfig(embed_dim=6, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]), **options
    )
    return randomise(Mask2FormerPixelDecoder(config, list(CHANNELS)).eval())


@pytest.mark.parametrize(
    ("size", "common_stride", "channels", "heads", "layers", "mask_channels"),
    [((64, 96), 4, 32, 4, 2, 20), ((160, 96), 8, 64, 8, 1, 64)],
)
def test_levels_and_gradients_equal_transformers(size, common_stride, channels, heads, layers, mask_channels):
    reference = _reference(
        feature_size=channels, mask_feature_size=mask_channels, num_attention_heads=heads,
        encoder_layers=layers, encoder_feedforward_dim=40, common_stride=common_stride,
    )  # fmt: skip
    used = 0 if common_stride == 4 else 1  # without a finer level masks come from the finest encoded one
    neck = PixelDecoder(
        CHANNELS[used:],
        [(s, s) for s in STRIDES[used:]],
        2,
        channels,
        mask_channels,
        3,
        0,
        layers,
        heads,
        4,
        40,
    ).eval()
    state, unknown = convert_pixel_decoder(reference.state_dict(), TRANSFORMERS, heads, (2, 1, 0))
    assert unknown == []
    neck.load_state_dict(state)
    levels = _levels(size)
    own = [level.detach().clone().requires_grad_() for level in levels]
    expected = reference(levels, return_dict=True)
    wanted = [expected.mask_features, *reversed(expected.multi_scale_features)]
    outputs = neck(own[used:])
    assert [tuple(o.shape) for o in outputs] == [tuple(w.shape) for w in wanted]
    for output, want in zip(outputs, wanted, strict=True):
        assert_near(output, want)
    sum((w * w.detach().cos()).sum() for w in wanted).backward()
    sum((o * o.detach().cos()).sum() for o in outputs).backward()
    for level, other in list(zip(own, levels, strict=True))[used:]:
        assert_near(level.grad, other.grad, relative=1e-4)

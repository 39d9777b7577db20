"""The pixel decoder equals transformers' Mask2Former's; in 3-D, one slice and permuted axes."""

import pytest
import torch

from parity import assert_near, randomise
from pixvox.necks.pixel_decoder import PixelDecoder
from pixvox.transformer.positions import SinePositionalEncoding
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


def _neck(dims, extra=1):
    neck = PixelDecoder(
        CHANNELS[:3], [(s,) * dims for s in STRIDES[:3]], dims, 8, 6, None, extra, 2, num_heads=2, points_per_head=2,
        feedforward=12,
    )  # fmt: skip
    return randomise(neck).eval()


def _offsets(value, heads=2, points=2, axes=2):
    """Return offsets as heads, levels, points, axes, and what is left."""
    return value.unflatten(0, (heads, -1, points, axes))


@pytest.mark.parametrize("order", [(1, 2, 0), (0, 2, 1)])
def test_permuting_the_axes_permutes_the_levels(order, monkeypatch):
    # Encodings have depth apart from the plane: they are taken out. Kernels and offsets turn with the axes.
    monkeypatch.setattr(
        SinePositionalEncoding, "forward", lambda self, x, valid=None: torch.zeros_like(x[:, :8])
    )
    axes = (0, 1, *(2 + axis for axis in order))
    back = [2 - axis for axis in reversed(order)]  # the same of (x, y, z)
    neck, turned = _neck(3), _neck(3)
    state = neck.state_dict()
    for key, value in state.items():
        if value.dim() == 5:
            state[key] = value.permute(axes)
        elif "sampling_offsets" in key:
            state[key] = _offsets(value, axes=3)[:, :, :, back].flatten(0, 3)
    turned.load_state_dict(state)
    levels = [level.detach() for level in _levels((32, 64, 48), 1, strides=STRIDES)[:3]]
    with torch.no_grad():
        expected, outputs = neck(levels), turned([level.permute(axes) for level in levels])
    for output, want in zip(outputs, expected, strict=True):
        assert_near(output, want.permute(axes), relative=2e-5)


def test_one_slice_gives_what_2d_gives(monkeypatch):
    # Depth's encoding of the one slice is a constant: it is taken out.
    encode = SinePositionalEncoding._encode
    monkeypatch.setattr(
        SinePositionalEncoding,
        "_encode",
        lambda self, axis, *rest: encode(self, axis, *rest) * (0.0 if axis == -3 else 1.0),
    )
    flat, deep = _neck(2), _neck(3)
    state, lifted = deep.state_dict(), {}
    for key, value in flat.state_dict().items():
        lifted[key] = torch.zeros_like(state[key])
        if "sampling_offsets" in key:
            _offsets(lifted[key], axes=3)[:, :, :, :2] = _offsets(value)
        elif value.dim() == 4:
            lifted[key][:, :, state[key].shape[2] // 2] = value
        else:
            lifted[key] = value
    deep.load_state_dict(lifted)
    deep.encoded_strides = tuple((1, *stride) for stride in flat.encoded_strides)
    levels = [level.detach() for level in _levels((64, 96))[:3]]
    valid = torch.tensor([[40, 96], [64, 50]])
    with torch.no_grad():
        expected = flat(levels, valid)
        outputs = deep(
            [level[:, :, None] for level in levels], torch.cat([torch.ones_like(valid[:, :1]), valid], 1)
        )
    for output, want in zip(outputs, expected, strict=True):
        assert_near(output[:, :, 0], want)


@pytest.mark.parametrize("size", [(64, 96), (16, 48, 32)])
def test_every_parameter_and_level_gets_a_gradient(size):
    neck, levels = _neck(len(size)).train(), _levels(size)[:3]
    outputs = neck(levels)
    assert [o.shape[1] for o in outputs] == list(neck.channels)
    for output, stride in zip(outputs, neck.strides, strict=True):
        assert tuple(output.shape[2:]) == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    sum((output * output.detach().cos()).sum() for output in outputs).backward()
    for name, parameter in [*neck.named_parameters(), *enumerate(levels)]:
        grad = parameter.grad
        assert grad is not None and bool(grad.isfinite().all()) and float(grad.abs().max()) > 0, name


def test_without_layers_no_weight_waits_for_a_gradient():
    neck = PixelDecoder((8, 16), ((4, 4), (8, 8)), channels=8, mask_channels=6, num_layers=0, num_heads=2)
    levels = neck([torch.randn(1, 8, 4, 6), torch.randn(1, 16, 2, 3)])
    sum(level.sum() for level in levels).backward()
    assert [name for name, p in neck.named_parameters() if p.requires_grad and p.grad is None] == []

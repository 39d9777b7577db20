"""RT-DETR's encoder against transformers' D-FINE, and in volumes."""

import re

import pytest
import torch
from torch import nn
from transformers import DFineConfig
from transformers.models.d_fine.modeling_d_fine import DFineHybridEncoder

from parity import assert_near, randomise
from pixvox.necks.hybrid_encoder import HybridEncoder
from pixvox.transformer.positions import grid_sines

IN = (6, 8, 12)
STRIDES = ((8, 8), (16, 16), (32, 32))
SMALL = {"channels": 16, "num_heads": 2, "feedforward": 24}

_CONV = {"conv": 0, "norm": 1}
_PARTS = {"conv1": "enter", "csp_rep1": "first.0", "conv2": "first.1", "csp_rep2": "second.0", "conv3": "second.1",
          "conv4": "leave"}  # fmt: skip


def _renamed(key):
    """Return our name of a weight of transformers' encoder."""
    key = re.sub(r"\.(conv|norm)\.(\w+)$", lambda m: f".{_CONV[m[1]]}.{m[2]}", key)
    key = re.sub(r"^aifi\.0\.layers\.", "attention.", key)
    for theirs, ours in (
        ("self_attn.q_proj", "self_attention.query"), ("self_attn.k_proj", "self_attention.key"),
        ("self_attn.v_proj", "self_attention.value"), ("self_attn.o_proj", "self_attention.output"),
        ("self_attn_layer_norm", "norm1"), ("final_layer_norm", "norm2"), ("mlp.layers.0", "linear1"),
        ("mlp.layers.1", "linear2"), ("lateral_convs", "lateral"),
    ):  # fmt: skip
        key = key.replace(theirs, ours)
    key = re.sub(r"^(fpn|pan)_blocks\.(\d)\.(\w+)\.", lambda m: f"{m[1]}.{m[2]}.{_PARTS[m[3]]}.", key)
    key = key.replace("fpn.", "down.").replace("pan.", "up.")
    key = re.sub(r"downsample_convs\.(\d)\.conv(\d)", lambda m: f"shrink.{m[1]}.{int(m[2]) - 1}", key)
    key = re.sub(r"(first|second)\.0\.conv1", r"\1.0.enter", key)
    key = re.sub(r"(first|second)\.0\.conv2", r"\1.0.shortcut", key)
    key = re.sub(r"bottlenecks\.(\d)\.conv1", r"blocks.\1.wide", key)
    return re.sub(r"bottlenecks\.(\d)\.conv2", r"blocks.\1.narrow", key)


@pytest.mark.parametrize(
    ("expansion", "blocks", "layers", "size"),
    [(1.0, 3, 1, (8, 8)), (0.5, 1, 2, (8, 12)), (1.0, 2, 0, (12, 8))],
)
def test_it_is_transformers_encoder(expansion, blocks, layers, size):
    config = DFineConfig(
        encoder_in_channels=[16] * 3, encoder_hidden_dim=16, encoder_layers=layers, encoder_ffn_dim=24,
        num_attention_heads=2, encoder_attention_heads=2, hidden_expansion=expansion, depth_mult=blocks / 3,
        dropout=0.0,
    )  # fmt: skip
    theirs = randomise(DFineHybridEncoder(config)).eval()
    ours = HybridEncoder(
        (16,) * 3, STRIDES, expansion=expansion, num_blocks=blocks, num_layers=layers, **SMALL
    ).eval()
    ours.projections = nn.ModuleList(nn.Identity() for _ in range(3))
    state = {_renamed(key): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 16, 4 * size[0] >> i, 4 * size[1] >> i, generator=generator) for i in range(3)]
    with torch.no_grad():
        expected = theirs(inputs_embeds=[level.clone() for level in levels]).last_hidden_state
        found = ours(levels)
    for level, wanted in zip(found, expected, strict=True):
        assert_near(level, wanted)


def _levels(dims, widths=IN, size=(4, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2,) * (dims - 2) + size] * len(widths)
    return [
        torch.randn(2, width, *(length << (len(widths) - 1 - i) for length in shape), generator=generator)
        for i, (width, shape) in enumerate(zip(widths, shapes, strict=True))
    ]


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_keep_their_sizes_and_every_weight_learns(dims):
    strides = [(step,) * dims for step in (4, 8, 16, 32)]
    neck = HybridEncoder((5, *IN), strides, dims, **SMALL)
    levels = _levels(dims, (5, *IN))
    found = neck(levels)
    assert neck.strides == tuple(strides[1:]) and neck.channels == (16, 16, 16)
    assert [level.shape[2:] for level in found] == [level.shape[2:] for level in levels[1:]]
    sum(level.square().mean() for level in found).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_one_slice_is_the_image():
    flat = randomise(HybridEncoder(IN, STRIDES, 2, **SMALL)).eval()
    deep = HybridEncoder(IN, [(1, *stride) for stride in STRIDES], 3, **SMALL).eval()
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        if value.dim() == 4:
            lifted = torch.zeros_like(state[name])
            lifted[:, :, lifted.shape[2] // 2] = value
            value = lifted
        state[name] = value
    deep.load_state_dict(state)
    levels = _levels(2)
    with torch.no_grad():
        for wanted, found in zip(flat(levels), deep([level[:, :, None] for level in levels]), strict=True):
            torch.testing.assert_close(found[:, :, 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_permuting_the_axes_permutes_the_levels(order, monkeypatch):
    # Encodings have depth apart from the plane: they are taken out.
    monkeypatch.setattr(
        "pixvox.necks.hybrid_encoder.grid_sines",
        lambda size, channels, device: torch.zeros(1, 1, channels),
    )
    strides = [(step,) * 3 for step in (8, 16, 32)]
    neck = randomise(HybridEncoder(IN, strides, 3, **SMALL)).eval()
    turned = HybridEncoder(IN, strides, 3, **SMALL).eval()
    axes = (0, 1, *(2 + axis for axis in order))
    turned.load_state_dict(
        {
            name: value.permute(axes) if value.dim() == 5 else value
            for name, value in neck.state_dict().items()
        }
    )
    levels = _levels(3)
    with torch.no_grad():
        for wanted, found in zip(
            neck(levels), turned([level.permute(axes) for level in levels]), strict=True
        ):
            torch.testing.assert_close(found, wanted.permute(axes), rtol=1e-4, atol=1e-4)


def test_attention_leaves_padding_out():
    neck = randomise(HybridEncoder(IN[-1:], STRIDES[-1:], **SMALL)).eval()
    level = torch.randn(1, 12, 3, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.randn(1, 12, 5, 6, generator=torch.Generator().manual_seed(1))
    padded[:, :, :3, :4] = level
    with torch.no_grad():
        (alone,) = neck([level])
        (among,) = neck([padded], torch.tensor([[96, 128]]))
    torch.testing.assert_close(among[:, :, :3, :4], alone, rtol=1e-4, atol=1e-5)


def test_channels_must_hold_sines_of_two_axes():
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_sines((2, 3), 6)

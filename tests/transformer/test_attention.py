"""Attention equals torch's with its weights split, masked or not."""

import pytest
import torch
from torch import nn

from parity import assert_near, randomise
from pixvox.transformer.attention import Attention
from pixvox.weights.renaming import split_attention


@pytest.mark.parametrize("masked", [False, True])
def test_equals_multihead_attention(masked):
    reference = randomise(nn.MultiheadAttention(12, 3, batch_first=True).eval())
    own = Attention(12, 3).eval()
    own.load_state_dict({k.removeprefix("x."): v for k, v in split_attention(
        {f"x.{key}": value for key, value in reference.state_dict().items()}
    ).items()})  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    queries, keys, values = (torch.randn(2, n, 12, generator=generator) for n in (5, 7, 7))
    blocked = torch.rand(2, 5, 7, generator=generator) < 0.5 if masked else None
    expected, _ = reference(
        queries, keys, values, attn_mask=None if blocked is None else blocked.repeat_interleave(3, dim=0)
    )
    assert_near(own(queries, keys, values, blocked), expected)


def test_heads_that_do_not_share_the_channels_are_refused():
    with pytest.raises(ValueError, match="10 channels cannot be shared by 3 heads"):
        Attention(10, 3)

"""ENet computes what davidtvs' computed (see tests/fixtures/semantic_networks), over its own encoder and others."""

import pytest
import torch
from torch.nn import functional as F

from formula import assert_every_second_pixel, fill, recorded, uniform
from pixvox.backbones.enet import Downsampling, ENetEncoder, drop_channels
from pixvox.errors import ConfigError
from pixvox.heads.enet import ENet
from pixvox.layers import max_unpool
from pixvox.models import create_model
from pixvox.structures import Features

PARTS = [
    *("backbone.initial.conv", "backbone.initial.norm", "backbone.initial.act", "backbone.stage1", "backbone.stage2"),
    *("head.upsamplings.0", "head.stages.0", "head.upsamplings.1", "head.stages.1", "head.classifier"),
]  # fmt: skip


def test_scores_equal_the_reference():
    wanted, names = recorded("enet")
    model = fill(create_model("enet", "enet", num_classes=3), PARTS, names)
    with torch.no_grad():
        assert_every_second_pixel(model(uniform("image", (1, 3, 72, 104)))["logits"], wanted["logits"])


def test_it_has_as_few_weights_as_published():
    model = create_model("enet", "enet", num_classes=12)
    assert sum(parameter.numel() for parameter in model.parameters()) == 350652  # as the reference


@pytest.mark.parametrize("size", [(4, 6), (2, 6, 4)])
def test_unpooling_is_torchs_with_the_places_of_pooling(size):
    torch.manual_seed(0)
    dims = len(size)
    finer, x = torch.randn(2, 3, *size), torch.randn(2, 3, *(n // 2 for n in size), requires_grad=True)
    pool, unpool = {2: (F.max_pool2d, F.max_unpool2d), 3: (F.max_pool3d, F.max_unpool3d)}[dims]
    _, places = pool(finer, 2, return_indices=True)
    assert torch.equal(max_unpool(x, finer, 2), unpool(x, places, 2))
    max_unpool(x, finer, 2).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    flat = torch.zeros(1, 1, *size)
    assert (
        max_unpool(flat[..., ::2, ::2] + 1, flat, (1,) * (dims - 2) + (2, 2)).sum()
        == flat[..., ::2, ::2].numel()
    )


def test_a_volume_of_one_slice_equals_the_image():
    torch.manual_seed(0)
    strides = ((2, 2), (4, 4))
    flat = ENet((4, 8), strides, 3).eval()
    deep = ENet((4, 8), [(1, *stride) for stride in strides], 3, spatial_dims=3).eval()
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        if value.dim() == 4:
            state[name].zero_()[:, :, state[name].shape[2] // 2] = value
        else:
            state[name] = value
    deep.load_state_dict(state)
    levels = [torch.randn(1, 4, 8, 12), torch.randn(1, 8, 4, 6)]
    image, volume = torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 1, 16, 24)
    expected = flat(Features(tuple(levels), strides, image, (16, 24), torch.tensor([[16, 24]])))
    found = deep(
        Features(
            tuple(x[:, :, None] for x in levels), strides, volume, (1, 16, 24), torch.tensor([[1, 16, 24]])
        )
    )
    torch.testing.assert_close(found["logits"][:, :, 0], expected["logits"], rtol=1e-5, atol=1e-6)


def test_dropout_takes_whole_channels_and_more_of_them_after_stage_1():
    torch.manual_seed(0)
    dropped = drop_channels(torch.ones(50, 40, 2, 3), 0.25, training=True)
    kept = dropped.amax(dim=(2, 3))
    assert torch.equal(dropped, kept[:, :, None, None].expand_as(dropped))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3]) and 0.2 < (kept == 0).float().mean() < 0.3
    encoder = ENetEncoder()
    assert {block.dropout for block in encoder.stage1} == {0.01}
    assert {block.dropout for block in encoder.stage2} == {0.1}
    assert isinstance(encoder.stage2[0], Downsampling)


def test_levels_that_cannot_be_unpooled_and_channels_that_shrink_are_refused():
    with pytest.raises(ValueError, match=r"stride \(6, 6\) is no multiple of \(4, 4\); choose backbone=enet"):
        ENet((4, 8), ((4, 4), (6, 6)), 2)
    with pytest.raises(ConfigError, match=r"channels=\[8, 16\]: pooled maps keep .* the first has 16"):
        create_model("enet", "enet", backbone__channels=[8, 16])
    with pytest.raises(ConfigError, match=r"depth_strides needs 3 entries, got \[1\]"):
        create_model("enet", "enet", spatial_dims=3, backbone__depth_strides=[1])

import pytest
import timm
import torch

from pixvox.backbones.vit import ImageViT, ViT
from small_backbones import randomised

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("name", "size"),
    [(TINY, (224, 224)), ("vit_small_patch16_dinov3", (64, 96)), ("samvit_base_patch16", (64, 96))],
)
def test_equals_timm_with_its_weights(name, size):
    theirs = randomised(timm.create_model(name))
    ours = (ImageViT if "sam" in name else ViT)(name, feature_layer=2).eval()
    missing = ours.network.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    assert not missing
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = ours._maps(images)
        (expected,) = theirs.forward_intermediates(images, [1], norm=True, intermediates_only=True)
    assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_equals_transformers_dinov2():
    from transformers import Dinov2Config, Dinov2Model

    theirs = randomised(Dinov2Model(Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=2, patch_size=16, image_size=592,
    )))  # fmt: skip
    ours = ViT(feature_layer=2).eval()
    state, own = theirs.state_dict(), {}
    embeddings = "embeddings."
    own["cls_token"] = state[f"{embeddings}cls_token"]
    own["pos_embed"] = state[f"{embeddings}position_embeddings"]
    own["norm.weight"], own["norm.bias"] = state["layernorm.weight"], state["layernorm.bias"]
    for kind in ("weight", "bias"):
        own[f"patch_embed.proj.{kind}"] = state[f"{embeddings}patch_embeddings.projection.{kind}"]
        for i in range(2):
            layer, block = f"encoder.layer.{i}.", f"blocks.{i}."
            own[f"{block}attn.qkv.{kind}"] = torch.cat(
                [state[f"{layer}attention.{part}_proj.{kind}"] for part in "qkv"]
            )
            own[f"{block}attn.proj.{kind}"] = state[f"{layer}attention.o_proj.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                own[f"{block}{part}.{kind}"] = state[f"{layer}{part}.{kind}"]
    for i in range(2):
        for j in (1, 2):
            own[f"blocks.{i}.ls{j}.gamma"] = state[f"encoder.layer.{i}.layer_scale{j}.lambda1"]
    ours.network.load_state_dict(own)
    images = torch.randn(1, 3, 592, 592)
    with torch.no_grad():
        maps = ours._maps(images)
        expected = theirs(images).last_hidden_state[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_patches_of_weights_are_resampled(tmp_path):
    source = timm.create_model("vit_small_patch14_dinov2")
    torch.save(source.state_dict(), tmp_path / "dinov2.pth")
    ours = ViT("vit_small_patch14_dinov2", pretrained=str(tmp_path / "dinov2.pth"), feature_layer=1)
    assert ours.network.patch_embed.proj.weight.shape[2:] == (16, 16)
    assert torch.equal(ours.network.pos_embed, source.pos_embed)
    with pytest.raises(ValueError, match="patch_size=14: the levels of a pyramid need a power of two"):
        ViT(patch_size=14)


@pytest.mark.parametrize("name", [TINY, "vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"])
def test_volume_of_one_slice_equals_the_image(name):
    plane = ViT(name, 2, 2, feature_layer=2).eval()
    volume = ViT(name, 3, 2, feature_layer=2, depth_strides=(1, 1, 1, 1, 1)).eval()
    randomised(plane.network)
    state = plane.network.state_dict()
    for key, value in volume.network.state_dict().items():
        if key == "patch_embed.weight":
            value.copy_(state["patch_embed.proj.weight"][:, :, None])
        elif key == "patch_embed.bias":
            value.copy_(state["patch_embed.proj.bias"])
        elif key != "depth_positions":
            value.copy_(state[key.removeprefix("network.")])
    image = torch.randn(1, 2, 64, 96)
    with torch.no_grad():
        flat, deep = plane._maps(image), volume._maps(image[:, :, None])
    assert (deep[:, :, 0] - flat).abs().max() <= 1e-5 * flat.abs().max()


def test_patches_read_their_centre_slice_at_first():
    volume = ViT(TINY, 3, 1, feature_layer=1, depth_strides=(1, 2, 2, 1, 1))
    weight = volume.network.patch_embed.weight
    assert weight.shape[2] == 4 and weight[:, :, 2].any() and not weight[:, :, [0, 1, 3]].any()


def test_volumes_tell_their_slices_apart_by_learning():
    volume = ViT(TINY, 3, 1, feature_layer=1, depth_strides=(1, 1, 1, 1, 1)).train()
    levels = volume(torch.randn(1, 1, 1, 32, 32).expand(-1, -1, 3, -1, -1))
    assert torch.allclose(levels[2][:, :, 0], levels[2][:, :, 2], atol=1e-5)
    # A plain sum would not do: what a layer norm gives sums to zero whatever it is given.
    (levels[2][:, :, 0] * torch.randn(levels[2][:, :, 0].shape)).sum().backward()
    assert volume.network.depth_positions.grad.abs().max() > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("freeze", "blocks"), [(1, 0), (2, 1), (-1, 3)])
def test_frozen_blocks_keep_their_weights_and_the_pyramid_learns(dims, freeze, blocks):
    backbone = ViT(TINY, dims, 1, feature_layer=3, freeze=freeze, drop_path=0.5).train()
    learning = {key for key, value in backbone.named_parameters() if value.requires_grad}
    assert not any("patch_embed" in key or key.endswith(("cls_token", "pos_embed")) for key in learning)
    for i in range(3):
        assert any(f"blocks.{i}." in key for key in learning) == (i >= blocks)
    assert any(key.startswith("pyramid.") for key in learning)
    assert [block.training for block in backbone.blocks()] == [i >= blocks for i in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "resnet18"},
            r"'resnet18' is no plain vision transformer \(it is a ResNet\); choose backbone=timm",
        ),
        ({"feature_layer": 13}, "feature_layer=13: .* has blocks 1 to 12, or -1 to -12 from the end"),
        ({"out_levels": (1, 2)}, "out_levels must be of 2 to 6 with patches of 16"),
        ({"name": "samvit_base_patch16", "spatial_dims": 3}, "has windows or positions for images alone"),
        (
            {"spatial_dims": 3, "depth_strides": (1, 2)},
            "depth_strides needs one entry for each of 5 halvings",
        ),
    ],
)
def test_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        ViT(**{"name": TINY, **options})

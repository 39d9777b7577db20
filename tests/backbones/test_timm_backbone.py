import pytest
import timm
import torch
from safetensors.torch import save_file

from pixvox.backbones.network_backbone import NetworkBackbone
from pixvox.backbones.timm_backbone import TimmBackbone, TimmTransformer
from pixvox.errors import WeightsError
from pixvox.models import create_model
from pixvox.weights.checkpoint import save_safetensors
from small_backbones import randomised

SMALL = [
    "resnet18", "convnext_atto", "convnextv2_atto", "repvgg_a0", "mobilenetv3_small_050", "vgg11_bn", "xception41",
    "efficientnet_b0", "hgnetv2_b0", "regnety_002",
]  # fmt: skip


@pytest.mark.parametrize("name", [*SMALL, "swinv2_tiny_window8_256", "sam2_hiera_tiny"])
def test_equals_timm_with_its_weights(name):
    theirs = randomised(timm.create_model(name))
    kind = TimmTransformer if "swin" in name or "sam" in name else TimmBackbone
    ours = kind(name).eval()
    left_out = theirs.load_state_dict(ours.network.state_dict(), strict=False).unexpected_keys
    assert not left_out
    ours.network.load_state_dict(theirs.state_dict(), strict=False)
    size = 256 if "swin" in name else 64
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        levels = ours(images)
        expected = theirs.forward_intermediates(images, intermediates_only=True)[-4:]
    for level, reference in zip(levels, expected, strict=True):
        assert (level - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_dilation_keeps_the_maps_fine_as_torchvisions_does():
    from torchvision.models.segmentation import fcn_resnet50

    theirs = randomised(
        fcn_resnet50(weights=None, weights_backbone=None).backbone
    )  # strides 1 for stages 3 and 4
    ours = TimmBackbone("resnet50", output_stride=8, out_levels=(4, 5)).eval()
    ours.network.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        levels, expected = ours(images), theirs(images)["out"]
    assert ours.strides == ((8, 8), (8, 8))
    assert (levels[1] - expected).abs().max() <= 1e-5 * expected.abs().max()
    deep = TimmBackbone("resnet18", 3, output_stride=8, depth_strides=(1, 2, 2))
    assert deep.strides[-1] == (4, 8, 8)


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0", "convnext_atto", "hgnetv2_b0"])
@pytest.mark.parametrize("dims", [2, 3])
def test_frozen_levels_are_those_that_a_level_is_made_of(name, dims):
    levels = (2, 3, 4, 5)
    first = TimmBackbone(name, dims, out_levels=levels, freeze=3).train()
    maps = first(torch.randn(2, 3, *(32,) * dims))
    assert [level.requires_grad for level in maps] == [False, False, True, True]
    frozen = {key for key, value in first.named_parameters() if not value.requires_grad}
    maps[2].sum().backward()
    assert frozen and not any(key.startswith("network.stages.2.") for key in frozen)
    before = {key: value.clone() for key, value in first.named_buffers()}
    first(torch.randn(2, 3, *(32,) * dims) + 3)
    moved = {
        key.rsplit(".", 1)[0] for key, value in first.named_buffers() if not torch.equal(value, before[key])
    }
    assert not {key for key in moved if f"{key}.weight" in frozen}
    assert moved or name == "convnext_atto"


def test_resnet_freezes_the_stages_of_its_paper():
    backbone = TimmBackbone("resnet50", freeze=2)
    frozen = {key.split(".")[1] for key, value in backbone.named_parameters() if not value.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_a_file_are_adapted_to_the_channels_of_the_images(channels, suffix, tmp_path):
    source = randomised(timm.create_model("resnet18"))
    file = tmp_path / f"resnet18.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(source.state_dict(), file)
    ours = TimmBackbone("resnet18", in_channels=channels, pretrained=str(file)).eval()
    expected = timm.create_model("resnet18", in_chans=channels, pretrained=True,
                                 pretrained_cfg_overlay={"state_dict": source.state_dict()})  # fmt: skip
    assert ours.network.conv1.weight.shape[1] == channels
    assert torch.equal(ours.network.conv1.weight, expected.conv1.weight)
    assert torch.equal(ours.network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_weights_of_a_model_for_images_start_one_for_volumes(tmp_path):
    plane = create_model(head="fcn", backbone="resnet18", num_classes=2, in_channels=1)
    file = save_safetensors(plane, tmp_path / "plane.safetensors")
    volume = TimmBackbone("resnet18", 3, in_channels=1, pretrained=str(file)).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for flat, deep in zip(plane.backbone.eval()(image), volume(image[:, :, None]), strict=True):
            assert torch.allclose(deep[:, :, 0], flat, atol=1e-5)
    deep_file = save_safetensors(
        create_model(head="fcn", backbone="resnet18", num_classes=2, spatial_dims=3),
        tmp_path / "volume.safetensors",
    )
    with pytest.raises(WeightsError, match="weights of a network for volumes"):
        TimmBackbone("resnet18", pretrained=str(deep_file))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4"])
def test_repvgg_becomes_one_convolution_per_block_for_deployment(name, dims):
    backbone = randomised(TimmBackbone(name, dims, 2, out_levels=(3, 4)))
    images = torch.randn(1, 2, *(16, 32, 48)[-dims:])
    with torch.no_grad():
        expected = backbone(images)
        backbone.deploy()
        given = backbone(images)
    kinds = {type(part).__name__ for part in backbone.network.modules()}
    assert f"Conv{dims}d" in kinds and not any("BatchNorm" in kind for kind in kinds)
    for level, reference in zip(given, expected, strict=True):
        assert (level - reference).abs().max() <= 1e-5 * reference.abs().max()
    before = len(backbone.state_dict())
    backbone.deploy()
    assert len(backbone.state_dict()) == before


class Evil:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_files_that_do_not_fit_are_refused_with_the_reason(tmp_path, monkeypatch):
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), other)
    with pytest.raises(
        WeightsError, match=r"other.safetensors: these are not the weights of timm's resnet18"
    ):
        TimmBackbone("resnet18", pretrained=str(other))
    with pytest.raises(WeightsError, match="there is no such run folder or file"):
        TimmBackbone("resnet18", pretrained=str(tmp_path / "absent.pth"))
    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="could execute code"):
        TimmBackbone("resnet18", pretrained=str(tmp_path / "evil.pth"))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(
        WeightsError, match=r"\(timm/resnet18.a1_in1k\) are not in .* copy its model.safetensors"
    ):
        TimmBackbone("resnet18", pretrained=True)
    with pytest.raises(
        WeightsError, match="timm has no weights of 'resnet10t_x'|has no weights of 'darknet17'"
    ):
        TimmBackbone("darknet17", pretrained=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18x", {}, r"timm has no network 'resnet18x'; near are .*resnet"),
        ("vit_tiny_patch16_224", {}, r"does not halve the size .* choose backbone=vit"),
        ("resnet18", {"out_levels": (2, 6)}, r"'resnet18' has levels 1 to 5; level l has stride 2 \*\* l"),
        ("resnet18", {"freeze": 6}, "freeze=6: it is a level from 1 to 5"),
        ("vgg11", {"drop_path": 0.1}, "'vgg11' does not take one of .*drop_path_rate"),
        ("vgg11", {"output_stride": 8}, "'vgg11'"),
        ("maxvit_tiny_tf_224", {}, "takes images of the size it was trained with alone"),
        ("edgenext_xx_small", {"spatial_dims": 3}, "has layers for images alone .* backbone=swin, dino"),
        ("resnet18", {"spatial_dims": 3, "depth_strides": (1, 2)}, "one entry for each of 5 halvings"),
    ],
)
def test_refuses_what_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, **options)


def test_images_alone_is_told_with_the_backbones_for_volumes():
    with pytest.raises(ValueError, match=r"TimmTransformer exists for spatial_dims in \(2,\), got 3; .*swin"):
        TimmTransformer("swinv2_tiny_window8_256", spatial_dims=3)


def test_a_layer_that_looks_at_two_axes_is_found_out():
    class Squeeze(torch.nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True)

    class Own(NetworkBackbone):
        def __init__(self):
            network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, 2, 1), Squeeze())
            super().__init__(network, (2,), (2,), 3, 1, (1,))

        def maps(self, images, levels):
            return [self.network(images)]

        def known_levels(self):
            return [1]

    with pytest.raises(ValueError, match="Sequential has layers that look at two axes of volumes alone"):
        Own()


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_of_each_level_are_normalised_where_asked(dims):
    backbone = TimmBackbone("convnext_atto", dims, in_channels=1, out_levels=[3, 4], level_norms=True)
    maps = backbone(torch.rand(2, 1, *(32,) * dims))
    for level, channels in zip(maps, backbone.channels, strict=True):
        assert level.shape[1] == channels
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            level.var(1, correction=0), torch.ones_like(level[:, 0]), atol=1e-3, rtol=0
        )

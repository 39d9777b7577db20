import pytest
import torch
from torch import nn

from pixvox.backbones.simple import Simple
from pixvox.backbones.timm_backbone import TimmBackbone
from pixvox.errors import ConfigError
from pixvox.optimizers.parameter_groups import parameter_groups


def model():
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 3)})


def test_every_trainable_parameter_is_in_one_group():
    parts = model()
    parts["backbone"][0].weight.requires_grad_(False)
    grouped = [p for group in parameter_groups(parts, 0.1) for p in group["params"]]
    trainable = [p for p in parts.parameters() if p.requires_grad]
    assert len(grouped) == len(trainable)
    assert {id(p) for p in grouped} == {id(p) for p in trainable}


def test_norms_and_biases_are_not_decayed_unless_asked():
    parts = model()
    optimizer = torch.optim.AdamW(parameter_groups(parts, 0.1), lr=0.1, weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(parts["head"].weight)] == 0.5
    assert decay[id(parts["head"].bias)] == 0.0
    assert decay[id(parts["backbone"][1].weight)] == 0.0
    everything = parameter_groups(parts, 0.1, decay_norms_and_biases=True)
    assert all("weight_decay" not in group for group in everything)


def test_backbone_learns_with_its_share_of_the_rate():
    rates = {group["name"]: group["lr"] for group in parameter_groups(model(), 0.2, backbone_factor=0.1)}
    assert rates["backbone"] == 0.2 * 0.1
    assert rates["model"] == 0.2


def rates_by_name(model, **options):
    groups = parameter_groups(model, 1.0, **options)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: rate[id(p)] for name, p in model.named_parameters()}


def test_blocks_nearer_to_the_image_learn_more_slowly():
    backbone = Simple(in_channels=1, channels=(4, 8), strides=(2, 4), blocks=2)  # four blocks
    parts = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 3)})
    rates = rates_by_name(parts, layer_decay=0.5, backbone_factor=0.1)
    assert rates["backbone.stem.0.weight"] == pytest.approx(0.1 * 0.5**5)
    assert rates["backbone.stages.0.0.conv1.0.weight"] == pytest.approx(0.1 * 0.5**4)
    assert rates["backbone.stages.0.1.conv2.1.bias"] == pytest.approx(0.1 * 0.5**3)
    assert rates["backbone.stages.1.1.conv1.0.weight"] == pytest.approx(0.1 * 0.5)
    assert rates["head.weight"] == rates["head.bias"] == 1.0


def test_what_lies_between_two_blocks_learns_as_the_first_of_them():
    parts = nn.ModuleDict({"backbone": TimmBackbone("convnext_atto"), "head": nn.Linear(2, 3)})
    rates = rates_by_name(parts, layer_decay=0.5)  # 2, 2, 6 and 2 blocks
    assert rates["backbone.network.stem.0.weight"] == pytest.approx(0.5**13)
    assert rates["backbone.network.stages.0.blocks.1.conv_dw.weight"] == pytest.approx(0.5**11)
    assert rates["backbone.network.stages.1.downsample.1.weight"] == pytest.approx(0.5**11)
    assert rates["backbone.network.stages.1.blocks.0.conv_dw.weight"] == pytest.approx(0.5**10)


@pytest.mark.parametrize("dims", [2, 3])
def test_rates_by_layer_are_those_of_timm(dims):
    """timm's own grouping of the same network, block by block, with its stem as the first layer."""
    import timm
    from timm.optim import param_groups_layer_decay

    network = timm.create_model("resnet18", features_only=False, num_classes=0)

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def group_matcher(self, coarse=False):
            return {"stem": r"^network\.(?:conv1|bn1)", "blocks": r"^network\.layer(\d+)\.(\d+)"}

        def no_weight_decay(self):
            return set()

    theirs = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(Blocks(), layer_decay=0.75)
        for p in group["params"]
    }
    named = {f"backbone.{name}": theirs[id(p)] for name, p in Blocks().named_parameters()}
    parts = nn.ModuleDict({"backbone": TimmBackbone("resnet18", dims), "head": nn.Linear(2, 3)})
    ours = rates_by_name(parts, layer_decay=0.75)
    ours = {name: rate / 0.75 for name, rate in ours.items() if name.startswith("backbone.")}
    assert len(ours) == len(named) > 40
    assert ours == pytest.approx(
        named
    )  # timm's scale is 1 for the last block, since its head follows as a layer


def test_without_layer_decay_groups_are_as_before():
    assert [g["name"] for g in parameter_groups(model(), 0.1)] == [
        "backbone", "backbone, not decayed", "model", "model, not decayed",
    ]  # fmt: skip


def test_backbone_that_tells_no_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"Sequential does not tell its blocks"):
        parameter_groups(model(), 0.1, layer_decay=0.75)
    with pytest.raises(ConfigError, match=r"layer_decay=1.5"):
        parameter_groups(model(), 0.1, layer_decay=1.5)

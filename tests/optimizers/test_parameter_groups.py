import torch
from torch import nn

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

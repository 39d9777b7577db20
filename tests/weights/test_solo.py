"""mmdet's SOLO files load by themselves; what does not fit is named."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import pixvox
from pixvox.backbones.custom_resnet import CustomResNet
from pixvox.errors import WeightsError
from pixvox.necks.fpn import FPN
from pixvox.structures import Features
from pixvox.weights.backbones import within

FOLDER = Path(__file__).parents[1] / "fixtures" / "solo"
KINDS = ("solo", "decoupled_solo", "solov2")


def _recorded(name):
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["configuration"])


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a model as mmdet saves it, changed by ``change``, and loads it."""

    def load(name, change=lambda state: None):
        torch.manual_seed(0)
        network = CustomResNet(
            stem_channels=4, channels=(8, 12, 16, 24), depths=(1, 1, 2, 1), block="bottleneck"
        )
        neck = FPN(network.channels, network.strides, out_channels=12)
        names = {"lateral": "lateral_convs", "output": "fpn_convs"}
        state = {
            f"mask_head.{key}": value.float() for key, value in within(_recorded(name)[0], "weights.").items()
        }
        for key, value in network.state_dict().items():
            state[key.replace("network.", "backbone.")] = value
        for key, value in neck.state_dict().items():
            part, level, rest = key.split(".")
            state[f"neck.{names[part]}.{level}.conv.{rest}"] = value
        change(state)
        torch.save({"meta": {"epoch": 36}, "state_dict": state}, tmp_path / f"{name}.pth")
        return pixvox.load(tmp_path / f"{name}.pth")

    return load


@pytest.mark.parametrize("name", KINDS)
def test_a_file_gives_a_model_with_its_sizes_and_weights(name, file):
    model = file(name)
    tensors, facts = _recorded(name)
    assert not model.training
    assert model.num_classes == 3 and model.backbone.channels == (8, 12, 16, 24)
    if name != "solov2":  # whose weights do not tell its grids
        assert [grid[0] for grid in model.head.rule.num_grids] == facts["shared"]["num_grids"]
    model.head.rule.num_grids[:] = [(cells, cells) for cells in facts["shared"]["num_grids"]]
    levels = tuple(tensors[f"levels.{i}"].float() for i in range(5))
    size = tuple(facts["size"])
    strides = model.neck.strides
    with torch.no_grad():
        outputs = model.head(
            Features(levels, strides, torch.zeros(2, 3, *size), size, torch.tensor([size] * 2))
        )
    scores = model.head._peaks(outputs["class_logits"].sigmoid())
    for image in range(2):
        labels = tensors[f"predictions.{image}.labels"]
        assert set(labels.tolist()) <= set((scores[image] > 0.1).nonzero()[:, 1].tolist())
    result = model.predict(torch.rand(3, 50, 75), resize=None)
    assert result.label_map().shape == (50, 75)


def test_a_leftover_key_is_named(file):
    with pytest.raises(WeightsError, match=re.escape("mask_head.kernel_convs.0.conv.conv_offset.weight")):
        file(
            "solov2",
            lambda state: state.update({"mask_head.kernel_convs.0.conv.conv_offset.weight": torch.zeros(1)}),
        )


def test_a_key_of_no_part_is_named(file):
    with pytest.raises(WeightsError, match=r"1 keys have no counterpart.*teacher\.weight"):
        file("solo", lambda state: state.update({"teacher.weight": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("name", "missing", "ours"),
    [
        ("solo", "mask_head.conv_cls.bias", "classifier.bias"),
        ("solo", "mask_head.mask_convs.1.gn.bias", "head.mask_convs.1.1.bias"),
        ("decoupled_solo", "mask_head.conv_mask_list_x.2.weight", "head.mask_layers.2.1.weight"),
        ("solov2", "mask_head.mask_feature_head.conv_pred.conv.weight", "head.pixels.output.0.weight"),
        ("solov2", "neck.fpn_convs.1.conv.weight", "neck.output.1.weight"),
    ],
)
def test_a_missing_key_is_named(name, missing, ours, file):
    with pytest.raises(WeightsError, match=re.escape(ours)):
        file(name, lambda state: state.pop(missing))

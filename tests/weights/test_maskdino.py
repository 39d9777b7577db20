"""The authors' Mask DINO files load by themselves; what does not fit is named."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import pixvox
from pixvox.backbones.custom_resnet import CustomResNet
from pixvox.errors import WeightsError
from pixvox.structures import Features
from pixvox.weights.backbones import within

FOLDER = Path(__file__).parents[1] / "fixtures" / "maskdino"


def _recorded(name):
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _detectron2(state):
    """Give the weights of a ResNet the names that detectron2 has for them."""
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"^network\.", "", key)
        name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = re.sub(r"bn(\d)\.", r"conv\1.norm.", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        name = f"stem.{name}" if name.startswith("conv1.") else name
        if not name.endswith("num_batches_tracked"):
            renamed[f"backbone.{name}"] = value
    return renamed


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    network = CustomResNet(
        stem_channels=4, channels=(8, 12, 16, 24), depths=(1, 2, 1, 1), block="bottleneck", freeze_norms=True
    )
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    return network


@pytest.fixture
def official(backbone):
    """Return the state dict of a model as the authors' training writes it."""

    def build(name):
        weights = {k: v.float() for k, v in within(_recorded(name), "weights.").items()}
        return {**_detectron2(backbone.state_dict()), **weights, "criterion.empty_weight": torch.ones(5)}

    return build


def _load(state, folder):
    torch.save({"model": state, "iteration": 3}, folder / "model_final.pth")
    return pixvox.load(folder / "model_final.pth")


@pytest.mark.parametrize(
    ("name", "initial_boxes"), [("boxes_of_masks", "masks"), ("boxes_of_tokens", "tokens")]
)
def test_a_file_gives_the_predictions_of_the_authors_code(name, initial_boxes, official, backbone, tmp_path):
    model = _load(official(name), tmp_path)
    assert not model.training and model.head.num_queries == 300
    model.head.num_queries, model.head.initial_boxes = 12, initial_boxes
    expected = backbone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.backbone.state_dict().items())
    tensors = _recorded(name)
    with torch.no_grad():
        maps = model.neck([tensors[f"features.res{i}"] for i in (2, 3, 4, 5)])
        sizes = torch.tensor([[64, 96]] * 2)
        outputs = model.head(Features(maps, model.neck.strides, torch.zeros(2, 3, 64, 96), (64, 96), sizes))
    for ours, theirs in (("class_logits", "logits"), ("boxes", "boxes"), ("mask_logits", "masks")):
        reference = tensors[f"eval.pred_{theirs}"]
        assert (outputs[ours] - reference).abs().max() <= 1e-5 * reference.abs().max(), ours


def test_a_loaded_model_segments_an_image_of_any_size(official, tmp_path):
    model = _load(official("boxes_of_masks"), tmp_path)
    result = model.predict(torch.rand(3, 50, 75), resize=None)
    assert result.label_map().shape == (50, 75)


def test_a_leftover_key_is_named(official, tmp_path):
    state = official("boxes_of_masks") | {"sem_seg_head.predictor.surplus.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"sem_seg_head\.predictor\.surplus\.weight"):
        _load(state, tmp_path)


def test_a_key_of_no_part_is_named(official, tmp_path):
    with pytest.raises(WeightsError, match="1 keys have no counterpart.*teacher.weight"):
        _load(official("boxes_of_masks") | {"teacher.weight": torch.zeros(1)}, tmp_path)


@pytest.mark.parametrize(
    "missing",
    ["enc_output.weight", "decoder.layers.1.norm3.bias", "class_embed.bias", "mask_embed.layers.0.weight"],
)
def test_a_missing_key_is_named(missing, official, tmp_path):
    state = official("boxes_of_masks")
    del state[f"sem_seg_head.predictor.{missing}"]
    ours = {
        "enc_output.weight": "head.proposals.projection.weight", "class_embed.bias": "class_branch.bias",
        "decoder.layers.1.norm3.bias": "head.decoder.layers.1.norm3.bias",
        "mask_embed.layers.0.weight": "head.mask_branch.layers.0.weight",
    }[missing]  # fmt: skip
    with pytest.raises(WeightsError, match=re.escape(ours)):
        _load(state, tmp_path)


def test_models_with_learned_queries_are_refused_with_the_reason(official, tmp_path):
    state = official("boxes_of_masks") | {"sem_seg_head.predictor.query_feat.weight": torch.zeros(12, 32)}
    with pytest.raises(WeightsError, match="learned instead of chosen"):
        _load(state, tmp_path)


def test_copies_that_differ_are_no_copies(official, tmp_path):
    state = official("boxes_of_masks")
    state["sem_seg_head.predictor.bbox_embed.1.layers.0.bias"] = torch.zeros(32)
    with pytest.raises(WeightsError, match=r"bbox_embed\.1\.layers\.0\.bias"):
        _load(state, tmp_path)

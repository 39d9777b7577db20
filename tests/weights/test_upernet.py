"""Folders of transformers' UPerNet load with equal outputs."""

import pytest
import torch
from transformers import ConvNextConfig, SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

from parity import assert_near, randomise
from pixvox.errors import WeightsError
from pixvox.weights import load
from pixvox.weights.upernet import convert_head


@pytest.mark.parametrize("aux", [True, False])
def test_model_answers_as_transformers(aux, tmp_path):
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=10, pool_scales=[1, 2, 3], num_labels=3, use_auxiliary_head=aux,
        auxiliary_channels=6, auxiliary_in_channels=32, id2label={0: "sky", 1: "sea", 2: "land"},
    )  # fmt: skip
    reference = randomise(UperNetForSemanticSegmentation(config)).eval()
    reference.save_pretrained(tmp_path / "upernet")
    model = load(tmp_path / "upernet")
    assert model.class_names == ("sky", "sea", "land")
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_near(model(images)["logits"], reference(images).logits, 1e-4)
    assert (model.head.aux_classifier is not None) == aux


def save_upernet(folder, **options):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = UperNetConfig(
        backbone_config=ConvNextConfig(hidden_sizes=[96, 192, 384, 768], out_features=stages, **options),
        hidden_size=8, num_labels=3, auxiliary_channels=6, auxiliary_in_channels=384,
    )  # fmt: skip
    reference = randomise(UperNetForSemanticSegmentation(config)).eval()
    reference.save_pretrained(folder)
    return reference


def test_a_model_on_convnext_answers_as_transformers(tmp_path):
    reference = save_upernet(tmp_path / "upernet")
    model = load(tmp_path / "upernet")
    assert model.config["backbone"]["level_norms"] is True
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_near(model(images)["logits"], reference(images).logits, 1e-4)


def test_a_convnext_of_no_published_size_is_refused(tmp_path):
    save_upernet(tmp_path / "upernet", depths=[1, 1, 1, 1])
    with pytest.raises(WeightsError, match=r"96 channels and \[1, 1, 1, 1\] blocks.*tiny, small, base"):
        load(tmp_path / "upernet")


def test_names_that_have_no_counterpart_are_told():
    key = "auxiliary_head.conv_cat.conv.weight"
    assert convert_head({key: torch.zeros(1)}) == ({}, [key])

"""Folders of transformers' UPerNet load with equal outputs."""

import pytest
import torch
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

from parity import assert_near, randomise
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


def test_names_that_have_no_counterpart_are_told():
    key = "auxiliary_head.conv_cat.conv.weight"
    assert convert_head({key: torch.zeros(1)}) == ({}, [key])

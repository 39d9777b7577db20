"""torchvision's semantic models: files of random weights load with equal outputs."""

import pytest
import torch
from torchvision.models.segmentation import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    lraspp_mobilenet_v3_large,
)

from parity import randomise
from pixvox.errors import WeightsError
from pixvox.weights import load
from pixvox.weights.torchvision import build_semantic

CASES = {
    "deeplabv3_resnet50": (deeplabv3_resnet50, {"aux_loss": True}),
    "deeplabv3_mobilenet": (deeplabv3_mobilenet_v3_large, {"aux_loss": True}),
    "deeplabv3_without_aux": (deeplabv3_mobilenet_v3_large, {"aux_loss": False}),
    "lraspp": (lraspp_mobilenet_v3_large, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_model_answers_as_torchvisions(case, tmp_path):
    build, options = CASES[case]
    torch.manual_seed(0)
    reference = build(weights=None, weights_backbone=None, num_classes=21, **options).eval()
    randomise(reference.classifier)
    torch.save(reference.state_dict(), tmp_path / "model.pth")
    model = load(tmp_path / "model.pth")
    assert model.class_names[-1] == "tvmonitor" and model.config["inference"]["size"] == 520
    model.head.gives_aux = True
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, outputs = reference(images), model(images)
    torch.testing.assert_close(outputs["logits"], expected["out"], rtol=1e-3, atol=1e-4)
    assert ("aux_logits" in outputs) == bool(options.get("aux_loss"))
    if "aux" in expected:
        torch.testing.assert_close(outputs["aux_logits"]["aux"], expected["aux"], rtol=1e-3, atol=1e-4)


def test_weights_that_lack_the_classifier_or_have_more_are_refused():
    state = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2).state_dict()
    lacking = {key: value for key, value in state.items() if key != "classifier.low_classifier.bias"}
    with pytest.raises(WeightsError, match="lraspp lack classifier.low_classifier.bias"):
        build_semantic(lacking)
    with pytest.raises(WeightsError, match="'classifier.extra.weight' has no counterpart in lraspp"):
        build_semantic({**state, "classifier.extra.weight": torch.zeros(1)})

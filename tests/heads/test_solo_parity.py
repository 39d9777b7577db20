"""The SOLO heads compute what mmdet's computed (see tests/fixtures/solo/record.py)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from parity import assert_near
from pixvox.heads.decoupled_solo import DecoupledSOLO
from pixvox.heads.solo import SOLO
from pixvox.heads.solov2 import SOLOv2
from pixvox.structures import Features, Geometry, Instances
from pixvox.weights.backbones import within
from pixvox.weights.solo import convert_head

FOLDER = Path(__file__).parents[1] / "fixtures" / "solo"
STRIDES = ((4, 4), (8, 8), (16, 16), (32, 32), (64, 64))
KINDS = {"solo": SOLO, "decoupled_solo": DecoupledSOLO, "solov2": SOLOv2}


class Recorded:
    """One head: what was recorded, and ours with its weights."""

    def __init__(self, name):
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["configuration"])
        shared, test = facts["shared"], facts["test"]
        own = {"mask_channels": 16, "kernel_channels": 16, "mask_levels": 4} if name == "solov2" else {}
        self.size = tuple(facts["size"])
        self.head = KINDS[name](
            (shared["in_channels"],) * 5, STRIDES, shared["num_classes"], num_grids=shared["num_grids"],
            scale_ranges=shared["scale_ranges"], channels=shared["feat_channels"], num_convs=shared["stacked_convs"],
            num_candidates=test["nms_pre"], matrix_kernel=test["kernel"], detections_per_image=test["max_per_img"],
            **own,
        )  # fmt: skip
        weights = {key: value.float() for key, value in within(self.tensors, "weights.").items()}
        state, unknown = convert_head(weights)
        assert unknown == []
        self.head.load_state_dict(state)

    def levels(self):
        return [self.tensors[f"levels.{i}"].float().requires_grad_() for i in range(5)]

    def features(self, levels):
        sizes = torch.tensor([self.size] * 2)
        return Features(tuple(levels), STRIDES, torch.zeros(2, 3, *self.size), self.size, sizes)

    def targets(self):
        return [
            Instances(masks=self.tensors[f"targets.{i}.masks"], labels=self.tensors[f"targets.{i}.labels"])
            for i in range(2)
        ]


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_their_gradients(name):
    recorded = Recorded(name)
    levels = recorded.levels()
    outputs = recorded.head.train()(recorded.features(levels))
    losses = recorded.head.loss(outputs, recorded.targets())
    for ours, theirs in (("class", "cls"), ("dice", "mask")):
        assert_near(losses[ours], recorded.tensors[f"losses.loss_{theirs}"])
    sum(losses.values()).backward()
    for i, level in enumerate(levels):
        assert_near(level.grad, recorded.tensors[f"gradients.{i}"])


@pytest.mark.parametrize("name", KINDS)
def test_predictions(name):
    recorded = Recorded(name)
    with torch.no_grad():
        outputs = recorded.head.eval()(recorded.features(recorded.levels()))
        results = recorded.head.postprocess(outputs, [Geometry.identity(recorded.size)] * 2)
    for image, result in enumerate(results):
        wanted = {
            key: recorded.tensors[f"predictions.{image}.{key}"] for key in ("masks", "scores", "labels")
        }
        found = result.instances
        assert len(found) == len(wanted["scores"]) > 5
        assert_near(found.scores, wanted["scores"])
        assert torch.equal(found.labels, wanted["labels"])
        different = (found.masks.dense() != wanted["masks"]).sum()
        assert different <= 2, "rounding may move a pixel whose probability is the threshold"

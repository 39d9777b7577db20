"""Mask DINO computes what the authors' code computed (see tests/fixtures/maskdino/record.py), draws included."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pixvox.heads import denoising
from pixvox.heads.maskdino import MaskDINO
from pixvox.losses import mask_points
from pixvox.losses.set_prediction import SetCriterion
from pixvox.necks.pixel_decoder import PixelDecoder
from pixvox.structures import Features, Instances
from pixvox.weights.backbones import within
from pixvox.weights.maskdino import convert_head, convert_neck, decoder_order

FOLDER = Path(__file__).parents[1] / "fixtures" / "maskdino"
STRIDES = ((4, 4), (8, 8), (16, 16), (32, 32))
NAMES = {"ce": "class", "bbox": "box", "giou": "giou", "mask": "mask", "dice": "dice"}
WEIGHTS = {"class": 4.0, "box": 5.0, "giou": 2.0, "mask": 5.0, "dice": 5.0}


class Recorded:
    """One configuration: what was recorded, and our neck and head with its weights."""

    def __init__(self, name):
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.facts = facts = json.loads(file.metadata()["configuration"])
        weights = {k: v.float() for k, v in within(self.tensors, "weights.").items()}
        neck_state = within(weights, "sem_seg_head.pixel_decoder.")
        neck, unknown = convert_neck(neck_state)
        order = decoder_order(neck_state)
        head, unknown_too = convert_head(within(weights, "sem_seg_head.predictor."), order)
        assert unknown == unknown_too == []
        hidden = facts["hidden"]
        self.neck = PixelDecoder(
            (8, 12, 16, 24), STRIDES, channels=hidden, mask_channels=hidden, encoded_levels=facts["encoded"],
            extra_levels=facts["levels"] - facts["encoded"], lateral_levels=1, num_layers=2,
            num_heads=facts["heads"], feedforward=facts["feedforward"],
        )  # fmt: skip
        self.head = MaskDINO(
            self.neck.channels, self.neck.strides, facts["classes"], num_queries=facts["queries"],
            num_layers=facts["layers"], num_heads=facts["heads"], feedforward=facts["feedforward"],
            initial_boxes={"bitmask": "masks", "no": "tokens"}[facts["initial"]],
            proposal_sides=[0.05 * 2**place for place in order], denoising_queries=facts["denoising"],
            num_points=facts["points"],
        )  # fmt: skip
        self.neck.load_state_dict(neck)
        self.head.load_state_dict(head)

    def features(self, levels):
        size = tuple(self.facts["size"])
        maps = self.neck(levels)
        return Features(maps, self.neck.strides, torch.zeros(2, 3, *size), size, torch.tensor([size] * 2))

    def levels(self):
        return [self.tensors[f"features.res{i}"].clone().requires_grad_() for i in (2, 3, 4, 5)]

    def targets(self):
        return [
            Instances(masks=self.tensors[f"targets.{i}.masks"], labels=self.tensors[f"targets.{i}.labels"])
            for i in range(2)
        ]

    def inject(self, monkeypatch):
        """Hand out the recorded draws instead of new ones."""
        counts = [len(self.tensors[f"targets.{i}.labels"]) for i in range(2)]
        groups = self.facts["denoising"] // max(counts)
        images = iter(range(2))
        first = [0, counts[0]]

        def noise(alone, objects, sides, num_classes, generator, device):
            start = first[next(images)]
            drawn = [
                self.tensors[f"draws.{key}"].unflatten(0, (groups, -1))[:, start : start + objects]
                for key in ("flip", "labels", "boxes")
            ]
            return denoising.Noise(*drawn)

        def points(count, size, generator=None, device=None):
            number = self.facts["points"]
            base = self.tensors["draws.points"]
            drawn = torch.cat([base[:number], base[: 3 * number], base[: number - int(0.75 * number)]])
            assert len(drawn) == count
            return drawn.flip(1) * torch.as_tensor(size)

        monkeypatch.setattr(denoising, "draw_noise", noise)
        monkeypatch.setattr(mask_points, "random_points", points)


@pytest.fixture(params=["boxes_of_masks", "boxes_of_tokens"])
def recorded(request):
    return Recorded(request.param)


def _close(ours, theirs, tolerance=1e-5):
    scale = theirs.abs().max().clamp(min=1e-3)
    assert (ours - theirs).abs().max() <= tolerance * scale, float((ours - theirs).abs().max() / scale)


def test_neck_gives_the_recorded_levels(recorded):
    recorded.neck.eval()
    with torch.no_grad():
        levels = recorded.neck(recorded.levels())[1:]
    for i, level in enumerate(levels[1:], start=1):
        _close(level, recorded.tensors[f"neck.{i}"])


def test_predictions_are_the_recorded_ones(recorded):
    recorded.neck.eval(), recorded.head.eval()
    with torch.no_grad():
        outputs = recorded.head(recorded.features(recorded.levels()))
    for i, layer in enumerate(outputs["auxiliary"]):
        _close(layer.class_logits, recorded.tensors[f"eval.pred_logits.{i}"])
        _close(layer.boxes, recorded.tensors[f"eval.pred_boxes.{i}"])
    assert len(outputs["auxiliary"]) == recorded.facts["layers"]
    for ours, theirs in (("class_logits", "logits"), ("boxes", "boxes"), ("mask_logits", "masks")):
        _close(outputs[ours], recorded.tensors[f"eval.pred_{theirs}"])
    _close(outputs["proposals"].class_logits, recorded.tensors["eval.interm.pred_logits"])
    _close(outputs["proposals"].boxes, recorded.tensors["eval.interm.pred_boxes"])


def _expected(losses, kind):
    """Return the recorded losses of one kind, weighted and added up as ours."""
    suffixes = {
        "": [""], "auxiliary_": ["_0", "_1", "_2"], "proposals_": ["_interm"],
        "denoising_": ["_dn", "_dn_0", "_dn_1", "_dn_2"],
    }[kind]  # fmt: skip
    return {
        kind + ours: WEIGHTS[ours] * sum(losses[f"loss_{theirs}{suffix}"] for suffix in suffixes)
        for theirs, ours in NAMES.items()
    }


def test_losses_matches_and_gradients_are_the_recorded_ones(recorded, monkeypatch):
    recorded.inject(monkeypatch)
    matches = []
    match = SetCriterion.match

    def remember(self, *args):
        found = match(self, *args)
        matches.append(found[0])
        return found

    monkeypatch.setattr(SetCriterion, "match", remember)
    recorded.neck.train(), recorded.head.train()
    levels, targets = recorded.levels(), recorded.targets()
    outputs = recorded.head(recorded.features(levels), targets)
    losses = recorded.head.loss(outputs, targets)

    _close(outputs["prediction"].class_logits, recorded.tensors["train.pred_logits"])
    _close(outputs["denoising"].predictions[-1].boxes, recorded.tensors["train.denoising.pred_boxes"])
    _close(outputs["denoising"].predictions[-1].class_logits, recorded.tensors["train.denoising.pred_logits"])
    for name, found in zip(("last", "0", "1", "2", "interm"), matches, strict=True):
        for i, (queries, objects) in enumerate(found):
            pairs = recorded.tensors[f"matches.{name}.{i}"]
            assert dict(zip(queries.tolist(), objects.tolist(), strict=True)) == dict(pairs.T.tolist()), name
    expected = within(recorded.tensors, "losses.")
    for kind in ("", "auxiliary_", "proposals_", "denoising_"):
        for name, value in _expected(expected, kind).items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name

    sum(losses.values()).backward()
    for level, i in zip(levels, (2, 3, 4, 5), strict=True):
        _close(level.grad, recorded.tensors[f"gradients.res{i}"], 1e-4)
    ours = [p.grad.double().norm() for part in (recorded.neck, recorded.head) for p in part.parameters()]
    theirs = list(within(recorded.tensors, "norms.").values())
    assert torch.stack(ours).norm().item() == pytest.approx(
        torch.stack(theirs).double().norm().item(), rel=1e-4
    )
    assert (
        len(ours) == len(theirs) + 4 * recorded.facts["layers"]
    )  # three projections of attention are one there

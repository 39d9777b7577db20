"""ContourFormer's decoder and losses compute what the authors' code computed (see tests/fixtures/contourformer)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from parity import assert_near
from pixvox.heads import denoising
from pixvox.heads.query_predictions import QueryPrediction
from pixvox.losses.contours import ContourCriterion, ContourTargets, agreed
from pixvox.losses.query_classification import SigmoidFocal, Varifocal
from pixvox.losses.set_prediction import SetTargets
from pixvox.transformer.box_refinement import BoxBranch, move_in_logits
from pixvox.transformer.contour_decoder import ContourDecoder, Contours, LevelAttention, boxes_of, offset_bins
from pixvox.transformer.deformable import DeformableAttention
from pixvox.transformer.levels import Tokens
from pixvox.transformer.proposals import ProposalBranch
from pixvox.weights.backbones import within
from pixvox.weights.renaming import renamed, split_attention

FOLDER = Path(__file__).parents[1] / "fixtures" / "contourformer"
STRIDES = [(8, 8), (16, 16), (32, 32)]
COSTS = {"class": 2.0, "box": 5.0, "giou": 5.0, "points": 5.0}
WEIGHTS = {"class": 1.0, "points": 5.0, "direction": 0.25, "box": 5.0, "giou": 2.0}

TABLE = [
    (r"decoder\.layers\.(\d+)\.self_attn\.(.*)", r"layers.\1.self_attention.\2"),
    (
        r"decoder\.layers\.(\d+)\.cross_attn\.(sampling_offsets|attention_weights)\.(.*)",
        r"layers.\1.cross_attention.\2.\3",
    ),
    (r"decoder\.layers\.(\d+)\.gateway\.(.*)", r"layers.\1.gate.\2"),
    (r"decoder\.layers\.(\d+)\.((?:linear|norm)\d\..*)", r"layers.\1.\2"),
    (r"decoder\.lqe_layers\.(\d+)\.reg_conf\.(.*)", r"quality.\1.mlp.\2"),
    (r"dec_reg_head\.(\d+)\.(.*)", r"branches.\1.\2"),
    (r"dec_score_head\.(\d+)\.(.*)", r"classifiers.\1.\2"),
    (r"pre_reg_head\.(.*)", r"first.\1"),
    (r"query_pos_head\.(.*)", r"positions.\1"),
]


class Recorded:
    """One configuration: what was recorded, and our parts with its weights."""

    def __init__(self, name):
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["configuration"])
        options = facts["decoder"]
        weights = within(self.tensors, "weights.")
        hidden = options["hidden_dim"]
        self.size, self.queries = tuple(facts["size"]), options["num_queries"]
        self.projections = nn.ModuleList(self._projection(weights, i, hidden) for i in range(3)).eval()
        self.proposals = ProposalBranch(hidden, STRIDES)
        self.proposals.projection.load_state_dict(within(weights, "enc_output.proj."))
        self.proposals.norm.load_state_dict(within(weights, "enc_output.norm."))
        self.classifier = nn.Linear(hidden, options["num_classes"])
        self.classifier.load_state_dict(within(weights, "enc_score_head."))
        self.box_branch = BoxBranch(hidden)
        self.box_branch.load_state_dict(within(weights, "enc_bbox_head."))
        self.decoder = ContourDecoder(
            hidden, options["num_classes"], SigmoidFocal(), options["num_points_per_instances"],
            options["point_scale"], options["num_layers"], options["nhead"], options["num_points"],
            options["dim_feedforward"], 0.0, options["reg_max"],
        )  # fmt: skip
        state = {renamed(key, TABLE): value for key, value in split_attention(weights).items()}
        state.pop(None)
        state["part_positions"], state["part_contents"] = weights["pts_embedding.weight"].chunk(2, dim=1)
        self.decoder.load_state_dict(state)

    def _projection(self, weights, level, hidden):
        own = within(weights, f"input_proj.{level}.")
        if not own:
            return nn.Identity()
        convolution = nn.Conv2d(own["conv.weight"].shape[1], hidden, 1, bias=False)
        norm = nn.BatchNorm2d(hidden)
        convolution.load_state_dict(within(own, "conv."))
        norm.load_state_dict(within(own, "norm."))
        return nn.Sequential(convolution, norm)

    def levels(self):
        return [self.tensors[f"levels.{i}"].clone().requires_grad_() for i in range(3)]

    def noised(self, monkeypatch, denoising_queries=10):
        """Return the recorded noise as our queries."""
        drawn = within(self.tensors, "draws.")
        flips, labels, signs, parts = drawn["rand.0"], drawn["randint.1"], drawn["randint.2"], drawn["rand.3"]
        noise = denoising.Noise(flips, labels, ((2 * signs - 1) * parts + 1) / 2)
        monkeypatch.setattr(denoising, "draw_noise", lambda *arguments: noise)
        embedding = self.tensors["weights.denoising_class_embed.weight"][:-1]
        maker = denoising.Denoising(*embedding.shape, 2 * denoising_queries, 1.0, True, 0.5, corners=True)
        maker.labels.weight.data = embedding.clone()
        return maker([self.target().truth], self.queries, [None])

    def run(self, levels, noised=None):
        maps = [project(level) for project, level in zip(self.projections, levels, strict=True)]
        tokens = Tokens.of(maps, STRIDES, torch.tensor([self.size]))
        proposals = self.proposals(
            tokens,
            self.queries,
            self.classifier,
            lambda memory, boxes: move_in_logits(boxes, self.box_branch(memory)),
        )
        contents, boxes = proposals.memory.detach(), proposals.boxes.detach()
        if noised is None:
            return proposals, *self.decoder(contents, boxes, tokens)
        contents, boxes = torch.cat([noised.content, contents], 1), torch.cat([noised.boxes, boxes], 1)
        return proposals, *self.decoder(contents, boxes, tokens, noised.mask)

    def target(self):
        known = within(self.tensors, "target.")
        truth = SetTargets(known["labels"], known["boxes"], torch.zeros(0, 4))
        return ContourTargets(truth, known["instance_polys"])

    def total(self, name, kind):
        """Return the sum of the recorded losses of a kind over layers."""
        losses = within(self.tensors, "losses.")
        wanted = {"auxiliary": "_aux_", "first": "_pre", "proposals": "_enc_", "denoising": "_dn_"}.get(kind)
        if wanted is None:
            return losses[f"loss_{name}"]
        return sum(value for key, value in losses.items() if key.startswith(f"loss_{name}{wanted}"))


@pytest.mark.parametrize("name", ["plain", "denoising"])
def test_predictions(name):
    recorded = Recorded(name)
    with torch.no_grad():
        _, _, layers = recorded.run(recorded.levels())
    assert_near(layers[-1].class_logits, recorded.tensors["eval.pred_logits"])
    assert_near(layers[-1].boxes, recorded.tensors["eval.pred_boxes"])
    assert_near(layers[-1].points, recorded.tensors["eval.pred_coords"])


def test_losses_matches_and_gradients():
    recorded = Recorded("plain")
    levels = recorded.levels()
    proposals, first, layers = recorded.run(levels)
    criterion = ContourCriterion(Varifocal(), COSTS, WEIGHTS)
    target = recorded.target()
    proposed = QueryPrediction(proposals.class_logits, proposals.boxes)
    terms = criterion(first, layers, proposed, [target], torch.tensor([recorded.size]))
    for kind in ("", "auxiliary", "first"):
        for ours, theirs in (("class", "vfl"), ("points", "pts_l1"), ("direction", "pts_dir")):
            term = terms[f"{kind}_{ours}" if kind else ours]
            assert_near(term.reshape(()), recorded.total(theirs, kind).reshape(()))
    for ours, theirs in (("class", "vfl"), ("box", "bbox"), ("giou", "giou")):
        assert_near(terms[f"proposals_{ours}"].reshape(()), recorded.total(theirs, "proposals").reshape(()))
    (pairs,), _ = criterion.match(layers[-1], [target])
    assert torch.equal(pairs[0], recorded.tensors["train.query"])
    assert torch.equal(pairs[1], recorded.tensors["train.object"])
    sum(terms.values()).backward()
    for i, level in enumerate(levels):
        assert_near(level.grad, recorded.tensors[f"gradients.{i}"])


def test_losses_of_denoising(monkeypatch):
    recorded = Recorded("denoising")
    noised = recorded.noised(monkeypatch)
    count = noised.content.shape[1]
    levels = recorded.levels()
    proposals, first, layers = recorded.run(levels, noised)
    near = [Contours(each.class_logits[:, :count], each.points[:, :count]) for each in (first, *layers)]
    rest = [Contours(each.class_logits[:, count:], each.points[:, count:]) for each in (first, *layers)]
    assert_near(rest[-1].points, recorded.tensors["train.pred_coords"])
    criterion = ContourCriterion(Varifocal(), COSTS, WEIGHTS)
    targets, size = [recorded.target()], torch.tensor([recorded.size])
    terms = criterion.denoised(near[0], near[1:], noised.objects, targets, size)
    for ours, theirs in (("class", "vfl"), ("points", "pts_l1"), ("direction", "pts_dir")):
        wanted = recorded.total(theirs, "denoising")
        assert_near(terms[f"denoising_{ours}"].reshape(()), wanted.reshape(()))
    proposed = QueryPrediction(proposals.class_logits, proposals.boxes)
    terms |= criterion(rest[0], rest[1:], proposed, targets, size)
    sum(terms.values()).backward()
    for i, level in enumerate(levels):
        assert_near(level.grad, recorded.tensors[f"gradients.{i}"], 1e-4)  # float32 rounds, by processor


def test_an_image_predicts_the_same_beside_another():
    recorded = Recorded("plain")
    levels = recorded.levels()
    other = [level.detach().flip(2) * 3 for level in levels]
    with torch.no_grad():
        _, _, alone = recorded.run(levels)
        maps = [torch.cat(pair) for pair in zip(levels, other, strict=True)]
        maps = [project(level) for project, level in zip(recorded.projections, maps, strict=True)]
        tokens = Tokens.of(maps, STRIDES, torch.tensor([recorded.size] * 2))
        proposals = recorded.proposals(
            tokens,
            10,
            recorded.classifier,
            lambda memory, boxes: move_in_logits(boxes, recorded.box_branch(memory)),
        )
        _, together = recorded.decoder(proposals.memory, proposals.boxes, tokens)
    assert_near(together[-1].points[:1], alone[-1].points)


def test_what_is_ignored_teaches_no_class():
    recorded = Recorded("plain")
    proposals, first, layers = recorded.run(recorded.levels())
    everything = SetTargets(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.tensor([[-9.0, -9.0, 9.0, 9.0]])
    )
    target = ContourTargets(everything, torch.zeros(0, 16, 2))
    criterion = ContourCriterion(Varifocal(), COSTS, WEIGHTS)
    proposed = QueryPrediction(proposals.class_logits, proposals.boxes)
    terms = criterion(first, layers, proposed, [target], torch.tensor([recorded.size]))
    assert all(value == 0 for value in terms.values())
    sum(terms.values()).backward()
    assert recorded.decoder.classifiers[2].weight.grad is not None


def test_bins_are_fine_around_zero_and_mirrored():
    bins = offset_bins(32)
    assert len(bins) == 33 and bins[16] == 0 and bins[0] == -4 and bins[-1] == 4
    torch.testing.assert_close(bins, -bins.flip(0))
    steps = bins.diff()
    assert (steps > 0).all() and steps[16] < steps[30] < steps[31]


def test_boxes_hold_their_points():
    points = torch.tensor([[[1.0, 2.0], [5.0, 4.0], [3.0, 8.0]]])
    assert boxes_of(points).tolist() == [[3.0, 5.0, 4.0, 6.0]]


def test_with_equal_points_levels_are_looked_at_as_deformable_attention_does():
    torch.manual_seed(0)
    tokens = Tokens.of([torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)], STRIDES[:2])
    ours, plain = LevelAttention(8, [4, 4], 2), DeformableAttention(8, 2, 2, 2, 4)
    nn.init.normal_(ours.sampling_offsets.weight, std=0.5)
    nn.init.normal_(ours.attention_weights.weight)
    plain.sampling_offsets.load_state_dict(ours.sampling_offsets.state_dict())
    plain.attention_weights.load_state_dict(ours.attention_weights.state_dict())
    for projection in (plain.value_proj, plain.output_proj):
        projection.weight.data = torch.eye(8)
    queries, references = torch.randn(2, 5, 8), torch.rand(2, 5, 2, 4)
    torch.testing.assert_close(ours(queries, references, tokens), plain(queries, references, tokens))


def test_the_pair_that_most_layers_chose_counts():
    def pairs(*found):
        return [
            (torch.tensor([query for query, _ in found]), torch.tensor([instance for _, instance in found]))
        ]

    (agreement,) = agreed([pairs((0, 1), (2, 0)), pairs((0, 0), (1, 1)), pairs((0, 1), (2, 0))])
    assert [each.tolist() for each in agreement] == [[0, 1, 2], [1, 1, 0]]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown matching costs \['mask'\]"):
        ContourCriterion(Varifocal(), {"mask": 1.0}, WEIGHTS)
    with pytest.raises(ValueError, match=r"unknown loss weights \['dice'\]"):
        ContourCriterion(Varifocal(), COSTS, {"dice": 1.0})

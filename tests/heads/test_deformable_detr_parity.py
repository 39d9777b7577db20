"""Deformable DETR equals transformers': forward, matching and loss; plain, refined and in two stages; with padding."""

import json
import re

import pytest
import torch

import pixvox
from parity import assert_near, randomise
from pixvox.errors import WeightsError
from pixvox.ops.matching import Candidates
from pixvox.structures import Instances
from pixvox.weights.checkpoint import save_safetensors

transformers = pytest.importorskip("transformers")

CONFIGURATIONS = {
    "plain": {},
    "two layers and levels": {
        "num_feature_levels": 2, "decoder_layers": 2, "decoder_n_points": 3, "out_features": ["stage4"],
    },
    "refine": {"with_box_refine": True, "encoder_n_points": 2},
    "two stages": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 11},
}  # fmt: skip


def _reference(out_features=("stage2", "stage3", "stage4"), **options):
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], layer_type="basic",
        out_features=list(out_features),
    )  # fmt: skip
    small = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "num_queries": 7,
        "num_labels": 5, "auxiliary_loss": True, "dropout": 0.0, **options,
    }  # fmt: skip
    config = transformers.DeformableDetrConfig(backbone_config=backbone, use_timm_backbone=False, **small)
    model = randomise(transformers.DeformableDetrForObjectDetection(config).eval())
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():  # frozen norms hold buffers
        if hasattr(norm, "running_var"):
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            norm.running_mean.normal_(std=0.2, generator=generator)
    return model


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def pair(request, tmp_path_factory):
    """The reference, and what its folder becomes here."""
    folder = tmp_path_factory.mktemp("deformable_detr")
    reference = _reference(**CONFIGURATIONS[request.param])
    reference.save_pretrained(folder)
    return reference, pixvox.load(folder)


def _inputs(seed=3, valid=((64, 96), (64, 96))):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(2, 64, 96, dtype=torch.int64)
    for image, part, (height, width) in zip(images, mask, valid, strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
        part[:height, :width] = 1
    return images, mask, torch.tensor(valid)


def _targets(valid=((64, 96),)):
    """Three objects and none, as both sides take them; relative boxes count in the valid part."""
    boxes = torch.tensor([[8.0, 4.0, 40.0, 30.0], [50.0, 20.0, 90.0, 60.0], [5.0, 33.0, 20.0, 64.0]])
    labels = torch.tensor([1, 4, 1])
    ours = [Instances(boxes, labels, size=(64, 96)), Instances.empty((64, 96))]
    sides = torch.tensor([float(valid[0][1]), float(valid[0][0])])
    relative = torch.cat(
        [(boxes[:, :2] + boxes[:, 2:]) / 2 / sides, (boxes[:, 2:] - boxes[:, :2]) / sides], 1
    )
    empty = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    return ours, [{"class_labels": labels, "boxes": relative}, empty]


@pytest.mark.parametrize("valid", [((64, 96), (64, 96)), ((64, 80), (40, 96))])
def test_every_layer_equals_transformers(pair, valid):
    reference, model = pair
    images, mask, sizes = _inputs(valid=valid)
    _, theirs = _targets()
    with torch.no_grad():
        expected = reference(images, pixel_mask=mask, labels=theirs)
        outputs = model(images, valid_sizes=sizes)
    layers = [*outputs["auxiliary"], outputs["prediction"]]
    wanted = [*expected.auxiliary_outputs, {"logits": expected.logits, "pred_boxes": expected.pred_boxes}]
    assert len(layers) == len(wanted) == reference.config.decoder_layers
    for layer, other in zip(layers, wanted, strict=True):
        assert_near(layer.class_logits, other["logits"])
        assert_near(layer.boxes, other["pred_boxes"])


@pytest.mark.parametrize("valid", [((64, 96), (64, 96)), ((64, 80), (40, 96))])
def test_losses_and_their_gradients_equal_transformers(pair, valid):
    reference, model = pair
    images, mask, sizes = _inputs(valid=valid)
    ours, theirs = _targets(valid)
    reference.zero_grad()
    model.zero_grad()
    expected = reference(images, pixel_mask=mask, labels=theirs)
    losses = model(images, ours, valid_sizes=sizes)["losses"]
    layers = reference.config.decoder_layers - 1
    weights = {"class": ("ce", 1.0), "box": ("bbox", 5.0), "giou": ("giou", 2.0)}
    for name, (key, weight) in weights.items():
        assert_near(losses[name], weight * expected.loss_dict[f"loss_{key}"])
        earlier = sum(expected.loss_dict[f"loss_{key}_{layer}"] for layer in range(layers))
        assert_near(losses[f"auxiliary_{name}"], weight * earlier)
    # transformers teaches the proposals of two stages nothing.
    total = sum(value for name, value in losses.items() if not name.startswith("proposals_"))
    assert_near(total, expected.loss)
    expected.loss.backward()
    total.backward()
    assert_near(model.neck.level_embedding.grad, reference.model.level_embed.grad, relative=1e-3)


def test_the_same_queries_are_matched(pair):
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

    reference, model = pair
    images, _, _ = _inputs(seed=5)
    _, theirs = _targets()
    with torch.no_grad():
        outputs = reference(images)
        ours = model(images)["prediction"]
    matcher = DeformableDetrHungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    for image, (queries, objects) in enumerate(
        matcher({"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}, theirs)
    ):
        found = model.head.criterion.matcher(
            Candidates(ours.class_logits[image], ours.boxes[image]),
            Candidates(theirs[image]["class_labels"], theirs[image]["boxes"]),
        )
        assert [part.tolist() for part in found] == [queries.tolist(), objects.tolist()]


def test_the_folder_tells_classes_costs_and_sizes(pair):
    reference, model = pair
    assert model.num_classes == 5
    assert model.head.criterion.weights == {"class": 1.0, "box": 5.0, "giou": 2.0}
    assert model.neck.encoder.layers[0].attention.points_per_head == reference.config.encoder_n_points
    assert model.config["inference"]["size"] == 800
    assert not any(p.requires_grad for n, p in model.backbone.named_parameters() if ".bn" in n)


def test_a_model_without_masks_predicts_instances_of_boxes(tmp_path):
    _reference(**CONFIGURATIONS["two layers and levels"]).save_pretrained(tmp_path)
    model = pixvox.load(tmp_path)
    images, _, _ = _inputs()
    results = model.predict(images)
    for result in results:
        assert result.instances.masks is None
        assert result.instances.size == (64, 96)
        assert len(result.instances) > 0
        assert (result.instances.boxes[:, 2] <= 96).all()


def test_a_loaded_model_is_saved_and_loaded_as_our_own(pair, tmp_path):
    _, model = pair
    again = pixvox.load(save_safetensors(model, tmp_path / "own.safetensors"))
    images, _, _ = _inputs()
    with torch.no_grad():
        assert torch.equal(again(images)["boxes"], model(images)["boxes"])


def test_names_of_older_and_newer_files_are_both_known(pair):
    """Files keep the names of old releases; modules have new ones."""
    from pixvox.weights.deformable_detr import convert

    reference, model = pair
    new = {key.removeprefix("model."): value for key, value in reference.state_dict().items()}
    converted, unknown = convert(new, reference.config.to_dict())
    own = model.state_dict()
    assert unknown == []
    assert converted.keys() == {key for key in own if not key.startswith("backbone.")}
    assert all(torch.equal(value, own[key]) for key, value in converted.items())


def test_a_resnet_of_timm_under_frozen_norms_loads(tmp_path):
    """The layout of the published SenseTime/deformable-detr, by a smaller network of timm."""
    backbone = transformers.TimmBackboneConfig(
        backbone="resnet18", num_channels=3, features_only=True, use_pretrained_backbone=False,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=8, decoder_ffn_dim=8, num_queries=3, num_labels=2, dropout=0.0,
    )  # fmt: skip
    reference = transformers.DeformableDetrForObjectDetection(config).eval()
    reference.save_pretrained(tmp_path)
    model = pixvox.load(tmp_path)
    images, _, _ = _inputs()
    with torch.no_grad():
        expected, outputs = reference(images), model(images)
    assert_near(outputs["class_logits"], expected.logits)
    assert_near(outputs["boxes"], expected.pred_boxes)
    # Configurations of old releases name the backbone beside a flag.
    old = json.loads((tmp_path / "config.json").read_text())
    old |= {"backbone_config": None, "backbone": "resnet18", "use_timm_backbone": True}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with torch.no_grad():
        assert torch.equal(pixvox.load(tmp_path)(images)["boxes"], outputs["boxes"])


def _spoil(folder, change):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.level_embed"), r"lack what is here called 'neck\.level_embedding'"),
        (
            lambda state: state.pop("model.encoder.layers.0.final_layer_norm.bias"),
            r"1 missing \(neck\.encoder\.layers\.0\.norm2\.bias\)",
        ),
        (lambda state: state.update(surplus=torch.zeros(1)), r"1 keys have no counterpart .*: surplus"),
        (
            lambda state: state.update({"bbox_embed.1.layers.0.bias": torch.ones(32)}),
            "with_box_refine is false",
        ),
    ],
)
def test_what_is_missing_or_left_over_is_an_error_by_name(tmp_path, change, message):
    _reference().save_pretrained(tmp_path)
    _spoil(tmp_path, change)
    with pytest.raises(WeightsError, match=message):
        pixvox.load(tmp_path)


def test_a_nonsense_configuration_is_refused_or_overruled_by_the_weights(tmp_path):
    _reference().save_pretrained(tmp_path)
    honest = json.loads((tmp_path / "config.json").read_text())
    sizes = pixvox.load(tmp_path).config

    def load(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**honest, **changes}))
        return pixvox.load(tmp_path)

    # Built as it says, any of these would take all memory, or for ever.
    absurd = [
        "decoder_layers",
        "encoder_layers",
        "decoder_n_points",
        "decoder_ffn_dim",
        "d_model",
        "num_feature_levels",
    ]
    assert load(**dict.fromkeys(absurd, 10**8), num_queries=10**8, num_channels=10**8).config == sizes
    for changes in (
        {"decoder_attention_heads": 0}, {"encoder_attention_heads": "x"}, {"dropout": []}, {"backbone_config": 3},
        {"class_cost": None}, {"backbone_config": {"model_type": "resnet", "out_features": ["nowhere"]}},
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=re.escape(str(tmp_path))):
            load(**changes)


def test_learned_position_tables_are_refused(tmp_path):
    _reference(position_embedding_type="learned").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="position_embedding_type='learned' has no counterpart"):
        pixvox.load(tmp_path)

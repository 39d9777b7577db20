"""LW-DETR and RF-DETR equal transformers' with the same weights: outputs, matches and losses."""

import json

import pytest
import torch

from parity import assert_near, randomise
from pixvox.errors import WeightsError
from pixvox.losses.mask_points import PixelsAtPoints
from pixvox.structures import Geometry, Instances
from pixvox.weights import lw_detr, rf_detr
from pixvox.weights.transformers_folder import read_transformers_folder

transformers = pytest.importorskip("transformers")

SMALL = {
    "d_model": 16, "c2f_num_blocks": 1, "decoder_ffn_dim": 24, "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4, "decoder_n_points": 2, "num_queries": 6, "num_labels": 4, "dropout": 0.0,
}  # fmt: skip
SIZE = (32, 48)
LABELS = [
    {"class_labels": torch.tensor([1, 3, 0]), "boxes": torch.tensor(
        [[0.3, 0.4, 0.2, 0.3], [0.7, 0.5, 0.4, 0.6], [0.5, 0.2, 0.1, 0.1]])},
    {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.6, 0.6, 0.5, 0.3]])},
]  # fmt: skip


def _lw_detr(factors, groups=3, layers=2, outs=(1, 3)):
    backbone = transformers.LwDetrViTConfig(
        hidden_size=16, num_hidden_layers=max(outs) + 1, num_attention_heads=2, image_size=64, patch_size=8,
        num_windows=4, window_block_indices=[0, 2], out_indices=list(outs), pretrain_image_size=32,
    )  # fmt: skip
    config = transformers.LwDetrConfig(
        backbone_config=backbone,
        projector_scale_factors=factors,
        group_detr=groups,
        decoder_layers=layers,
        **SMALL,
    )
    return randomise(transformers.LwDetrForObjectDetection(config))


def _rf_detr(windows=1, kind="RfDetrForInstanceSegmentation"):
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

    backbone = RfDetrDinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8, num_windows=windows,
        out_indices=[1, 3],
    )  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, group_detr=3, decoder_layers=2, intermediate_size=40, **SMALL
    )
    return randomise(getattr(transformers, kind)(config))


def _converted(reference, family, folder):
    """Return the model that the saved reference becomes."""
    reference.save_pretrained(folder)
    config, state = read_transformers_folder(folder)
    assert family.matches(state, config)
    return family.build(state, config, folder)


def _instances(labels, size):
    sides = torch.tensor(size[::-1]).repeat(2)
    targets = []
    for image in labels:
        centre, extent = image["boxes"].chunk(2, dim=1)
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], dim=1) * sides
        targets.append(Instances(boxes=boxes, labels=image["class_labels"], size=size))
    return targets


def _indices(head, outputs, prediction, targets):
    truths = head.criterion._truths(outputs, targets)
    sampler = PixelsAtPoints([truth.points for truth in truths], outputs["padded_size"])
    pairs, _ = head.criterion.match(prediction, truths, sampler, outputs["groups"])
    return [sorted(zip(queries.tolist(), objects.tolist(), strict=True)) for queries, objects in pairs]


@pytest.mark.parametrize(
    ("factors", "groups", "layers", "outs"),
    [([1.0], 3, 2, (1, 3)), ([2.0, 0.5], 2, 3, (2, 3)), ([2.0, 1.0, 0.5], 1, 1, (3,))],
)
@pytest.mark.parametrize("training", [False, True])
def test_lw_detr_equals_transformers(tmp_path, factors, groups, layers, outs, training):
    reference = _lw_detr(factors, groups, layers, outs)
    model = _converted(reference, lw_detr, tmp_path).train(training)
    reference.train(training)
    images = torch.randn(3, 3, *SIZE)
    targets = _instances(LABELS, SIZE)
    expected = reference(images, labels=LABELS)
    outputs = model.head(model.features(images), targets)

    queries = 6 * (groups if training else 1)
    assert outputs["prediction"].class_logits.shape == (3, queries, 4)
    assert_near(outputs["prediction"].class_logits, expected.logits)
    assert_near(outputs["prediction"].boxes, expected.pred_boxes)
    assert_near(outputs["proposals"].class_logits, expected.enc_outputs_class)
    assert_near(outputs["proposals"].boxes, expected.enc_outputs_coord_logits)
    for ours, theirs in zip(outputs["auxiliary"], expected.auxiliary_outputs, strict=True):
        assert_near(ours.class_logits, theirs["logits"])
        assert_near(ours.boxes, theirs["pred_boxes"])

    from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher

    matcher = LwDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    wanted = matcher(
        {"logits": expected.logits, "pred_boxes": expected.pred_boxes}, LABELS, groups if training else 1
    )
    assert _indices(model.head, outputs, outputs["prediction"], targets) == [
        sorted(zip(i.tolist(), j.tolist(), strict=True)) for i, j in wanted
    ]

    if not training:
        return  # transformers' loss splits the queries into groups in evaluation too
    losses = model.head.loss(outputs, targets)
    names = {"class": ("loss_ce", 1), "box": ("loss_bbox", 5), "giou": ("loss_giou", 2)}
    for name, (theirs, weight) in names.items():
        assert_near(losses[name], weight * expected.loss_dict[theirs])
        assert_near(losses[f"proposals_{name}"], weight * expected.loss_dict[f"{theirs}_enc"])
        if layers > 1:
            total = sum(expected.loss_dict[f"{theirs}_{i}"] for i in range(layers - 1))
            assert_near(losses[f"auxiliary_{name}"], weight * total)
    total = sum(losses.values())
    assert_near(total, expected.loss)
    total.backward()
    expected.loss.backward()
    theirs = dict(reference.named_parameters())
    for name, other in (
        ("head.proposals.0.projection.weight", "model.enc_output.0.weight"),
        ("head.references.weight", "model.reference_point_embed.weight"),
        (
            "head.decoder.layers.0.cross_attention.value_proj.weight",
            "model.decoder.layers.0.cross_attn.value_proj.weight",
        ),
        ("backbone.embedding.weight", "model.backbone.backbone.embeddings.projection.weight"),
    ):
        assert_near(model.get_parameter(name).grad, theirs[other].grad, relative=1e-4)


def test_lw_detr_with_padding_equals_transformers(tmp_path):
    reference = _lw_detr([2.0, 0.5]).eval()
    model = _converted(reference, lw_detr, tmp_path).eval()
    images, valid = torch.randn(2, 3, *SIZE), torch.tensor([[32, 48], [24, 40]])
    mask = torch.zeros(2, *SIZE, dtype=torch.long)
    for i, (height, width) in enumerate(valid.tolist()):
        mask[i, :height, :width] = 1
    expected = reference(images, pixel_mask=mask)
    outputs = model.head(model.features(images, valid))
    assert_near(outputs["prediction"].class_logits, expected.logits)
    assert_near(outputs["boxes"], expected.pred_boxes)


# transformers cuts images that are not square into scrambled windows, so only one window is comparable there.
@pytest.mark.parametrize(("size", "windows"), [((32, 48), 1), ((48, 48), 2)])
@pytest.mark.parametrize("training", [False, True])
def test_rf_detr_equals_transformers_masks_included(tmp_path, size, windows, training):
    reference = _rf_detr(windows)
    model = _converted(reference, rf_detr, tmp_path).train(training)
    reference.train(training)
    images = torch.randn(2, 3, *size)
    expected = reference(images)
    outputs = model.head(model.features(images), _instances(LABELS[:2], size))
    assert_near(outputs["prediction"].class_logits, expected.logits)
    assert_near(outputs["prediction"].boxes, expected.pred_boxes)
    assert_near(outputs["prediction"].masks.logits(), expected.pred_masks)
    assert_near(outputs["proposals"].masks.logits(), expected.enc_outputs_mask_logits)
    spatial = reference.model.model(images).backbone_features
    every = reference.segmentation_head(spatial, expected.intermediate_hidden_states, size)
    assert_near(outputs["auxiliary"][0].masks.logits(), every[0])


def test_rf_detr_without_masks_equals_transformers_and_gives_boxes(tmp_path):
    reference = _rf_detr(kind="RfDetrForObjectDetection").eval()
    model = _converted(reference, rf_detr, tmp_path).eval()
    images = torch.randn(1, 3, *SIZE)
    expected, outputs = reference(images), model(images)
    assert_near(outputs["class_logits"], expected.logits)
    assert_near(outputs["boxes"], expected.pred_boxes)
    assert "mask_logits" not in outputs
    result = model.postprocess(outputs, [Geometry.identity(SIZE)])[0]
    assert result.instances.masks is None and len(result.instances) > 0


def test_layers_that_are_not_wanted_are_left_out_and_change_nothing(tmp_path):
    model = _converted(_rf_detr(), rf_detr, tmp_path).eval()
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        alone = model(images)
        learning = model(images, [Instances.empty(SIZE)])
    assert alone["auxiliary"] == [] and alone["proposals"].masks is None
    for name in ("class_logits", "boxes", "mask_logits"):
        assert torch.equal(alone[name], learning[name])


def test_pixvox_loads_the_folder_and_rebuilds_the_model_from_its_own_file(tmp_path):
    import pixvox

    reference = _rf_detr(windows=2).eval()
    reference.config.id2label, reference.config.mask_class_loss_coefficient = dict(enumerate("abcd")), 3.0
    reference.save_pretrained(tmp_path)
    model = pixvox.load(tmp_path)
    assert model.class_names == ("a", "b", "c", "d") and not model.training
    assert model.head.criterion.weights == {"class": 1, "box": 5, "giou": 2, "mask": 3, "dice": 5}
    assert model.config["inference"] == {"resize": "exact", "size": [32, 32]}
    images = torch.randn(1, 3, 32, 32)
    assert_near(model(images)["mask_logits"], reference(images).pred_masks)
    result = model.predict(torch.rand(3, 40, 56))
    assert result.size == (40, 56)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"height": 40, "width": 56}, {"resize": "exact", "size": [40, 56]}),
        ({"shortest_edge": 48, "longest_edge": 96}, {"resize": "shortest", "size": 48, "max_size": 96}),
        (None, {"resize": "exact", "size": [64, 64]}),
    ],
)
def test_images_are_resized_as_the_folder_says(tmp_path, size, expected):
    if size is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    assert _converted(_lw_detr([1.0]), lw_detr, tmp_path).config["inference"] == expected


def test_sizes_are_those_of_the_weights_whatever_the_configuration_says(tmp_path):
    _lw_detr([1.0]).save_pretrained(tmp_path)
    config, state = read_transformers_folder(tmp_path)
    absurd = {"decoder_layers": 10**8, "decoder_n_points": 10**8, "c2f_num_blocks": 10**8, "d_model": 10**8}
    built = lw_detr.build(state, {**config, **absurd}, tmp_path)
    assert built.config == lw_detr.build(state, config, tmp_path).config


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_a_key_too_few_or_too_many_is_named(tmp_path, change):
    _lw_detr([1.0]).save_pretrained(tmp_path)
    config, state = read_transformers_folder(tmp_path)
    if change == "missing":
        del state["model.decoder.layers.0.mlp.fc1.weight"]
    else:
        state["model.decoder.layers.0.extra"] = torch.zeros(1)
    name = r"head\.decoder\.layers\.0\.(linear1\.weight|extra)"
    with pytest.raises(WeightsError, match=rf"1 (missing|unexpected) \({name}"):
        lw_detr.build(state, config, tmp_path)


@pytest.mark.parametrize(
    ("place", "option", "message"),
    [
        (
            "head",
            {"decoder_activation_function": "gelu"},
            "decoder_activation_function='gelu' has no counterpart",
        ),
        (
            "backbone",
            {"use_absolute_position_embeddings": False},
            "only use_absolute_position_embeddings=True",
        ),
        ("head", {"projector_scale_factors": []}, "must tell projector_scale_factors"),
        ("backbone", {"out_indices": None, "out_features": ["final"]}, "which blocks are given out"),
        ("backbone", {"out_indices": [1, 10**8]}, "config.json tells 100000000, the weights 4"),
        ("head", {"projector_scale_factors": [1.0, 0.5]}, "config.json tells 2, the weights 1"),
        ("head", {"hidden_expansion": 1e12}, "is it that of these weights"),
    ],
)
def test_configurations_of_other_architectures_are_refused(tmp_path, place, option, message):
    _lw_detr([1.0]).save_pretrained(tmp_path)
    config, state = read_transformers_folder(tmp_path)
    (config if place == "head" else config["backbone_config"]).update(option)
    with pytest.raises(WeightsError, match=message):
        lw_detr.build(state, config, tmp_path)

"""Mask2Former with converted weights equals transformers' in outputs, matching, loss; the authors' names load too."""

import json
import re

import pytest
import torch

import pixvox
from parity import assert_near, randomise
from pixvox.errors import WeightsError
from pixvox.structures import Instances, Masks

SIZE = (64, 96)


def _config(kind, **options):
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

    stages = [f"stage{i}" for i in range(1, 5)]
    if kind == "swin":
        backbone = SwinConfig(
            embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=stages
        )
    else:
        backbone = ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 12, 16, 20],
            depths=[1, 2, 1, 1],
            layer_type="basic",
            out_features=stages,
        )
    small = {
        "feature_size": 32, "mask_feature_size": 12, "hidden_dim": 16, "num_attention_heads": 4, "decoder_layers": 5,
        "encoder_layers": 2, "encoder_feedforward_dim": 20, "dim_feedforward": 24, "num_queries": 7, "num_labels": 3,
        "train_num_points": 40,
    }  # fmt: skip
    return Mask2FormerConfig(backbone_config=backbone, **{**small, **options})


@pytest.fixture(scope="module", params=["swin", "resnet", "swin projected"])
def pair(request, tmp_path_factory):
    """A model of transformers with wide random weights, and ours loaded from its folder."""
    from transformers import Mask2FormerForUniversalSegmentation

    kind, _, projected = request.param.partition(" ")
    options = {"hidden_dim": 32, "enforce_input_projection": True, "class_weight": 3.0} if projected else {}
    reference = Mask2FormerForUniversalSegmentation(_config(kind, **options)).eval()
    randomise(reference)
    folder = tmp_path_factory.mktemp("weights") / f"mask2former-{kind}"
    reference.save_pretrained(folder)
    return reference, pixvox.load(folder)


def _images(batch=2):
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_outputs_of_every_layer_equal_transformers(pair):
    reference, model = pair
    with torch.no_grad():
        expected = reference(_images(), output_auxiliary_logits=True)
        outputs = model(_images())
    assert model.class_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert_near(outputs["class_logits"], expected.class_queries_logits)
    assert_near(outputs["mask_logits"], expected.masks_queries_logits)
    assert len(outputs["auxiliary"]) == len(expected.auxiliary_logits) == 4
    for own, other in zip(outputs["auxiliary"], expected.auxiliary_logits, strict=True):
        assert_near(own.class_logits, other["class_queries_logits"])
        assert_near(own.masks.logits(), other["masks_queries_logits"])


def _truth():
    """Overlapping masks of one image, and an image with a single object."""
    generator = torch.Generator().manual_seed(3)
    first = torch.zeros(4, *SIZE, dtype=torch.bool)
    first[0, 3:30, 5:40], first[1, 20:60, 30:90], first[2, 40:50, 2:20] = True, True, True
    first[3] = torch.rand(SIZE, generator=generator) > 0.7
    second = torch.zeros(1, *SIZE, dtype=torch.bool)
    second[0, :, 50:] = True
    return [first, second], [torch.tensor([0, 2, 1, 2]), torch.tensor([1])]


def _share_points(monkeypatch, num_points):
    """Make both models draw the same points, for every image and layer."""
    import pixvox.losses.mask_points as own

    total = num_points + 3 * num_points + num_points // 4
    points = torch.rand(total, 2, generator=torch.Generator().manual_seed(5))  # x, y
    kinds = {
        num_points: points[:num_points],
        3 * num_points: points[num_points : 4 * num_points],
        num_points // 4: points[4 * num_points :],
    }
    monkeypatch.setattr(
        own, "random_points", lambda count, size, generator, device: (points.flip(1) * size)[:count]
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: kinds[shape[1]].expand(shape).clone())


def test_matching_losses_and_gradients_equal_transformers(pair, monkeypatch):
    reference, model = pair
    masks, labels = _truth()
    found = []
    matcher = type(reference.criterion.matcher)
    match = matcher.forward
    monkeypatch.setattr(
        matcher, "forward", lambda self, *arguments: found.append(match(self, *arguments)) or found[-1]
    )
    own_found = []
    criterion = type(model.head.criterion)
    own_match = criterion.match

    def remember(self, *arguments, **options):
        own_found.append(own_match(self, *arguments, **options))
        return own_found[-1]

    monkeypatch.setattr(criterion, "match", remember)
    _share_points(monkeypatch, 40)
    images = _images().requires_grad_()
    other_images = _images().requires_grad_()
    targets = [
        Instances(masks=Masks.from_dense(m), labels=label) for m, label in zip(masks, labels, strict=True)
    ]
    losses = model(images, targets)["losses"]
    expected = reference(other_images, mask_labels=[m.float() for m in masks], class_labels=labels)
    for own, others in zip(own_found, found, strict=True):
        for (queries, objects), (other_queries, other_objects) in zip(own[0], others, strict=True):
            assert queries.tolist() == other_queries.tolist()
            assert objects.tolist() == other_objects.tolist()
    assert_near(sum(losses.values()), expected.loss)
    sum(losses.values()).backward()
    expected.loss.backward()
    assert_near(images.grad, other_images.grad, relative=1e-4)


_OFFICIAL = [
    (r"model\.pixel_level_module\.encoder\.embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (r"model\.pixel_level_module\.encoder\.embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    (r"model\.pixel_level_module\.encoder\.encoder\.stages\.0", "backbone.res2"),
    (r"model\.pixel_level_module\.encoder\.encoder\.stages\.1", "backbone.res3"),
    (r"model\.pixel_level_module\.encoder\.encoder\.stages\.2", "backbone.res4"),
    (r"model\.pixel_level_module\.encoder\.encoder\.stages\.3", "backbone.res5"),
    (r"(res\d)\.layers", r"\1"),
    (r"(res\d\.\d)\.layer\.0", r"\1.conv1"),
    (r"(res\d\.\d)\.layer\.1", r"\1.conv2"),
    (r"(res\d.*)\.convolution", r"\1"),
    (r"(res\d.*)\.normalization", r"\1.norm"),
    (r"model\.pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
    (r"pixel_decoder\.(level_embed|encoder)", r"pixel_decoder.transformer.\1"),
    (r"pixel_decoder\.input_projections", "pixel_decoder.input_proj"),
    (r"pixel_decoder\.mask_projection", "pixel_decoder.mask_features"),
    (r"(transformer\.encoder.*)self_attn_layer_norm", r"\1norm1"),
    (r"(transformer\.encoder.*)final_layer_norm", r"\1norm2"),
    (r"(transformer\.encoder.*)fc(\d)", r"\1linear\2"),
    (r"((?:adapter|layer)_1)\.0", r"\1"),
    (r"((?:adapter|layer)_1)\.1", r"\1.norm"),
    (r"model\.transformer_module\.", "sem_seg_head.predictor."),
    (r"predictor\.queries_features", "predictor.query_feat"),
    (r"predictor\.queries_embedder", "predictor.query_embed"),
    (r"predictor\.input_projections", "predictor.input_proj"),
    (r"predictor\.decoder\.layernorm", "predictor.decoder_norm"),
    (r"predictor\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0", r"predictor.mask_embed.layers.\1"),
    (r"decoder\.layers\.(\d)\.cross_attn\.", r"transformer_cross_attention_layers.\1.multihead_attn."),
    (r"decoder\.layers\.(\d)\.cross_attn_layer_norm", r"transformer_cross_attention_layers.\1.norm"),
    (r"predictor\.decoder\.layers\.(\d)\.self_attn\.", r"predictor.transformer_self_attention_layers.\1.self_attn."),
    (r"decoder\.layers\.(\d)\.self_attn_layer_norm", r"transformer_self_attention_layers.\1.norm"),
    (r"predictor\.decoder\.layers\.(\d)\.fc(\d)", r"predictor.transformer_ffn_layers.\1.linear\2"),
    (r"decoder\.layers\.(\d)\.final_layer_norm", r"transformer_ffn_layers.\1.norm"),
    (r"^class_predictor", "sem_seg_head.predictor.class_embed"),
]  # fmt: skip


def _official(reference, kind):
    """Return the weights of transformers' model under the names that the authors' code gives them."""
    from pixvox.weights.backbones import swin_from_transformers, within

    state, official = dict(reference.state_dict()), {}
    if kind == "swin":
        prefix = "model.pixel_level_module.encoder."
        swin = swin_from_transformers(within(state, prefix))
        official = {f"backbone.{key}": value for key, value in swin.items()}
        official["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
        state = {key: value for key, value in state.items() if not key.startswith(prefix)}
    for key, value in state.items():
        for pattern, name in _OFFICIAL:
            key = re.sub(pattern, name, key)
        if not key.endswith("num_batches_tracked"):
            official[key] = value
    for key in [key for key in official if ".q_proj." in key]:
        parts = [official.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        official[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return official


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_files_of_the_authors_load_and_equal_the_same_weights_of_transformers(kind, tmp_path):
    from transformers import Mask2FormerForUniversalSegmentation

    options = {"num_attention_heads": 8, "hidden_dim": 32, "decoder_layers": 3}
    reference = randomise(Mask2FormerForUniversalSegmentation(_config(kind, **options)).eval())
    state = _official(reference, kind)
    assert not any(key.startswith("model.") for key in state)
    torch.save({"model": state, "iteration": 7}, tmp_path / "coco-panoptic.pth")
    model = pixvox.load(tmp_path / "coco-panoptic.pth")
    assert model.task == "panoptic"
    with torch.no_grad():
        expected, outputs = reference(_images(1)), model(_images(1))
    assert_near(outputs["class_logits"], expected.class_queries_logits)
    assert_near(outputs["mask_logits"], expected.masks_queries_logits)
    # The first files had the pixel decoder directly in the head, and another name for the queries.
    old = {
        key.replace("pixel_decoder.", "").replace("query_feat", "static_query"): value
        for key, value in state.items()
    }
    torch.save({"model": old}, tmp_path / "old.pth")
    for key, value in pixvox.load(tmp_path / "old.pth").state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_the_sizes_of_a_backbone_are_those_of_its_weights_whatever_the_configuration_says(kind, tmp_path):
    from transformers import Mask2FormerForUniversalSegmentation

    Mask2FormerForUniversalSegmentation(_config(kind)).save_pretrained(tmp_path)
    honest = json.loads((tmp_path / "config.json").read_text())
    expected = pixvox.load(tmp_path).config["backbone"]
    absurd = {
        "depths": [10**8], "embed_dim": 10**8, "window_size": 10**5, "num_heads": "x", "hidden_sizes": None,
        "embedding_size": -1, "layer_type": {},
    }  # fmt: skip
    changed = {**honest, "id2label": [], "backbone_config": {**honest["backbone_config"], **absurd}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert pixvox.load(tmp_path).config["backbone"] == expected
    (tmp_path / "config.json").write_text(json.dumps({**honest, "num_attention_heads": 0}))
    with pytest.raises(WeightsError, match="no model can be built of it"):
        pixvox.load(tmp_path)


def test_a_configuration_that_names_a_function_is_refused_and_runs_nothing(tmp_path):
    from transformers import Mask2FormerForUniversalSegmentation

    Mask2FormerForUniversalSegmentation(_config("resnet")).save_pretrained(tmp_path)
    honest = json.loads((tmp_path / "config.json").read_text())
    canary = {"_target_": "pathlib.Path", "_args_": [str(tmp_path / "canary")]}
    for option in ("dropout", "no_object_weight", "class_weight", "train_num_points"):
        attack = {option: {"_target_": "pathlib.Path.touch", "self": canary}}
        (tmp_path / "config.json").write_text(json.dumps({**honest, **attack}))
        with pytest.raises(WeightsError, match="could run code; refused"):
            pixvox.load(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_missing_and_leftover_keys_are_named(tmp_path):
    from transformers import Mask2FormerForUniversalSegmentation

    options = {"num_attention_heads": 8, "hidden_dim": 32, "decoder_layers": 2, "encoder_layers": 1}
    state = _official(Mask2FormerForUniversalSegmentation(_config("resnet", **options)), "resnet")

    def refused(changed, match):
        torch.save({"model": changed}, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match=match):
            pixvox.load(tmp_path / "a.pth")

    gone = "sem_seg_head.predictor.transformer_ffn_layers.0.norm.bias"
    refused(
        {k: v for k, v in state.items() if k != gone},
        r"a\.pth: .*missing \(head\.decoder\.layers\.0\.norm3\.bias",
    )
    extra = {**state, "sem_seg_head.predictor.box_embed.weight": torch.zeros(1)}
    refused(extra, r"a\.pth: 1 keys .* sem_seg_head\.predictor\.box_embed\.weight")

"""Models of others by their id, and ours for others: as files of the same format, without a network."""

import json
from pathlib import Path

import pytest
import torch

from pixvox.errors import WeightsError
from pixvox.models import create_model, list_heads
from pixvox.weights import hub
from pixvox.weights.hub import fetch_model
from pixvox.weights.loading import load, load_weights
from pixvox.weights.published import (
    FCN_Weights,
    Mask2Former_Weights,
    get_model,
    get_model_weights,
    get_weight,
    list_models,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def published(tmp_path):
    """Write a small Mask2Former as transformers does."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=3, num_attention_heads=4, num_queries=7, num_labels=2,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def serve(monkeypatch, folders):
    """Let the hub hold these folders, by what is allowed of them; return what was asked for."""
    import huggingface_hub

    asked = []

    def snapshot_download(name, local_files_only=False, allow_patterns=None):
        asked.append((name, local_files_only, allow_patterns))
        found = folders.get("kept" if local_files_only else "fetched")
        if found is None:
            raise FileNotFoundError("not here")
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_an_id_is_fetched_once_and_safetensors_alone(published, monkeypatch):
    asked = serve(monkeypatch, {"fetched": published})
    model = load("someone/mask2former-tiny")
    assert model.num_classes == 2 and not model.training
    assert [entry[1] for entry in asked] == [True, False]
    assert not any("bin" in pattern or pattern.endswith(".py") for pattern in asked[1][2])
    asked = serve(monkeypatch, {"kept": published})
    again = load("someone/mask2former-tiny").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert [entry[1] for entry in asked] == [True]


def test_without_network_it_is_told_where_to_put_the_files(monkeypatch):
    serve(monkeypatch, {})
    with pytest.raises(
        WeightsError, match=r"someone/model: .* no such model in .*hub.* copy the model's folder"
    ):
        fetch_model("someone/model")


def test_a_mistyped_run_is_not_looked_for_on_the_network(monkeypatch, tmp_path):
    asked = serve(monkeypatch, {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for text in ("runs/lats", "models/best", "absent"):
        with pytest.raises(WeightsError, match="there is no such run folder or file"):
            load(text)
    assert not asked
    assert hub.is_hub_id("owner/name")


def test_torchvisions_weights_by_their_enumeration(monkeypatch):
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    kinds = []

    def state_dict(self, *_, check_hash=False, **__):
        kinds.append(check_hash)
        return theirs.state_dict()

    monkeypatch.setattr(MaskRCNN_ResNet50_FPN_Weights, "get_state_dict", state_dict)
    model = load(MaskRCNN_ResNet50_FPN_Weights.DEFAULT)
    assert kinds == [True] and model.num_classes == 90 and model.class_names[0] == "person"
    assert torch.equal(model.backbone.network.conv1.weight, theirs.backbone.body.conv1.weight)

    def offline(self, *_, **__):
        raise OSError("no network")

    monkeypatch.setattr(MaskRCNN_ResNet50_FPN_Weights, "get_state_dict", offline)
    with pytest.raises(
        WeightsError, match=r"maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth is not in .*checkpoints"
    ):
        load(MaskRCNN_ResNet50_FPN_Weights.DEFAULT)
    with pytest.raises(WeightsError, match="3 is neither a path, nor an id"):
        load(3)


def test_weights_have_names_that_models_and_commands_take(published, monkeypatch):
    asked = serve(monkeypatch, {"kept": published})
    assert get_model_weights("mask2former") is Mask2Former_Weights
    assert get_weight("Mask2Former_Weights.DEFAULT") is Mask2Former_Weights.SWIN_SMALL_COCO_INSTANCE
    weights = load("Mask2Former_Weights.DEFAULT").state_dict()
    for given in ("DEFAULT", "Mask2Former_Weights.SWIN_SMALL_COCO_INSTANCE", Mask2Former_Weights.DEFAULT):
        model = get_model("mask2former", given)
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert {name for name, _, _ in asked} == {"facebook/mask2former-swin-small-coco-instance"}
    assert load_weights("Mask2Former_Weights.DEFAULT").keys() == weights.keys()
    assert get_model("fcn", backbone="simple", num_classes=2).task == "semantic"
    assert get_weight("FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1") is FCN_Weights.DEFAULT
    with pytest.raises(WeightsError, match=r"my_Weights.pth: there is no such run folder or file"):
        load("my_Weights.pth")


def test_each_published_member_tells_what_it_is():
    for name in list_models(with_weights=True):
        for member in get_model_weights(name):
            assert member.url.startswith("https://") and member.meta["task"] in (
                "instance",
                "semantic",
                "panoptic",
            )
    categories = FCN_Weights.DEFAULT.meta["categories"]
    assert len(categories) == 21 and categories[0] == "__background__"
    assert set(list_models(with_weights=True)) < set(list_heads()) < set(list_models())
    assert "fcn_vgg16" in list_models()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("hybrid", "DEFAULT"),
            {},
            "no weights of 'hybrid' are known; there are some of deeplabv3, deformable_detr",
        ),
        (
            ("fcn", "RESNET50"),
            {},
            "no weights 'FCN_Weights.RESNET50'; there are FCN_Weights.RESNET50_COCO",
        ),
        (("fcn", Mask2Former_Weights.DEFAULT), {}, "are not those of fcn; these are: RESNET50_COCO"),
        (
            ("fcn", "DEFAULT"),
            {"num_classes": 3},
            "num_classes would change it.*pixvox train head=fcn weights=FCN_W",
        ),
    ],
)
def test_weights_that_are_not_those_of_a_model_are_refused(arguments, options, message):
    with pytest.raises(WeightsError, match=message):
        get_model(*arguments, **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_saved_folder_describes_itself_and_loads_alike(dims, tmp_path):
    model = create_model(
        head="fcn", backbone="simple", num_classes=2, spatial_dims=dims, class_names=("cell", "debris"),
        backbone__channels=[4, 8], backbone__strides=[2, 4],
    ).eval()  # fmt: skip
    folder = model.save_pretrained(tmp_path / "model", {"mIoU": 0.5, "broken": float("nan")}, licence="mit")
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) >= ["README.md"]
    again = load(folder)
    image = torch.rand(3, *(16, 24, 16)[:dims])
    assert torch.equal(again.predict(image).class_map, model.predict(image).class_map)
    card = (folder / "README.md").read_text()
    for word in (
        "license: mit",
        "| classes | cell, debris |",
        "| mIoU | 0.5 |",
        "pixvox.load(",
        "Percentile",
    ):
        assert word in card
    assert "nan" not in card
    record = json.loads((folder / "pixvox.json").read_text())
    assert record["metrics"] == {"mIoU": 0.5} and record["spatial_dims"] == dims


def test_torch_hub_lists_helps_and_loads(monkeypatch):
    with monkeypatch.context() as local:
        local.setattr(torch.hub, "_get_cache_or_reload", lambda *_, **__: str(ROOT))
        names = torch.hub.list("owner/pixvox")
        told = torch.hub.help("owner/pixvox", "maskrcnn")
    assert set(names) == {"load", "create_model", "get_model_weights", "get_weight", *list_models()}
    assert "num_classes: Classes of the data" in told
    options = {
        "backbone": "simple",
        "num_classes": 3,
        "backbone__channels": [4, 8],
        "backbone__strides": [2, 4],
    }
    semantic = torch.hub.load(str(ROOT), "fcn", source="local", **options).eval()
    images = torch.rand(2, 3, 20, 28)
    assert semantic(images)["out"].shape == (2, 3, 20, 28) and "aux" not in semantic(images)
    with_aux = torch.hub.load(str(ROOT), "fcn", source="local", aux_loss=True, **options).eval()
    assert with_aux(images)["aux"].shape == (2, 3, 20, 28)
    named = torch.hub.load(str(ROOT), "lraspp_resnet18", source="local", num_classes=3, channels=8).eval()
    assert named(images)["out"].shape == (2, 3, 20, 28)
    objects = torch.hub.load(str(ROOT), "solov2", source="local", neck__out_channels=8, channels=8, **options)
    assert objects.task == "instance"


def test_weights_of_a_pair_are_those_on_its_backbone(monkeypatch):
    from torchvision.models.segmentation import DeepLabV3_MobileNet_V3_Large_Weights as Theirs
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    theirs = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    monkeypatch.setattr(Theirs, "get_state_dict", lambda *_, **__: theirs.state_dict())
    model = get_model("deeplabv3_mobilenet_v3_large", "DEFAULT")
    assert torch.equal(model.head.classifier[2].weight, theirs.classifier[4].weight)
    assert model.backbone.strides[-1] == (16, 16)
    with pytest.raises(WeightsError, match="are not those of deeplabv3_resnet50; these are: RESNET50_COCO"):
        get_model("deeplabv3_resnet50", "RESNET101_COCO_WITH_VOC_LABELS_V1")

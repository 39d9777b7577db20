import json
import pickle

import pytest
import torch

import pixvox
from pixvox.errors import WeightsError
from pixvox.files import sum_path, summed_file
from pixvox.models import create_model
from pixvox.weights.checkpoint import RECORD_KEY, load_state, model_record, save_safetensors
from pixvox.weights.loading import find_checkpoint, load


def _model(dims=2, **options):
    torch.manual_seed(0)
    return create_model(
        "fcn", "simple", num_classes=2, spatial_dims=dims, in_channels=1, class_names=["soil", "root"],
        backbone__channels=[4, 8], backbone__strides=[2, 4], **options,
    ).eval()  # fmt: skip


def _checkpoint(path, model, **changes):
    state = {f"segmenter.{key}": value for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, RECORD_KEY: model_record(model), **changes}, path)
    return path


@pytest.mark.parametrize("dims", [2, 3])
def test_a_checkpoint_rebuilds_its_model_alone(tmp_path, dims):
    model = _model(dims)
    loaded = load(_checkpoint(tmp_path / "best.ckpt", model))
    x = torch.randn(1, 1, *(8, 12, 16)[-dims:])
    assert torch.equal(loaded(x)["logits"], model(x)["logits"])
    assert loaded.class_names == ("soil", "root")
    assert not loaded.training


def test_safetensors_hold_weights_and_record(tmp_path):
    model = _model()
    x = torch.randn(1, 1, 12, 16)
    assert torch.equal(
        load(save_safetensors(model, tmp_path / "m" / "model.safetensors"))(x)["logits"], model(x)["logits"]
    )
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {"model.safetensors", "model.safetensors.sha256"}


def test_a_run_folder_means_its_best_checkpoint_and_a_pointer_its_folder(tmp_path):
    _checkpoint(tmp_path / "one" / "checkpoints" / "last.ckpt", _model())
    assert find_checkpoint(tmp_path / "one").name == "last.ckpt"
    _checkpoint(tmp_path / "one" / "checkpoints" / "best.ckpt", _model())
    assert find_checkpoint(tmp_path / "one").name == "best.ckpt"
    (tmp_path / "last").write_text("one\n")
    assert find_checkpoint(tmp_path / "last") == tmp_path / "one" / "checkpoints" / "best.ckpt"


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    canary = tmp_path / "canary"
    for name, write in (("a.ckpt", torch.save), ("b.pth", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"state_dict": _Canary(str(canary))}, tmp_path / name)
        with pytest.raises(WeightsError, match=f"{name}: refused"):
            load(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "pixvox.weights.checkpoint.json.loads"])
def test_a_record_that_names_a_foreign_target_is_refused(tmp_path, target):
    record = model_record(_model())
    record["model"]["normalizer"] = {"_target_": target, "command": f"touch {tmp_path / 'canary'}"}
    with pytest.raises(WeightsError, match="is not run"):
        load(_checkpoint(tmp_path / "m.ckpt", _model(), **{RECORD_KEY: record}))
    assert not (tmp_path / "canary").exists()


def test_a_record_that_names_our_own_function_is_refused(tmp_path):
    record = model_record(_model())
    record["model"]["head"]["losses"] = {"x": {"_target_": "pixvox.weights.checkpoint.save_safetensors"}}
    with pytest.raises(WeightsError, match="is no module"):
        load(_checkpoint(tmp_path / "m.ckpt", _model(), **{RECORD_KEY: record}))


def test_damaged_and_missing_files_are_named(tmp_path):
    path = _checkpoint(tmp_path / "m.ckpt", _model())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="m.ckpt: cannot be read as a checkpoint; it may be truncated"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="the file is empty"):
        load(path)
    with pytest.raises(WeightsError, match="no such run folder or file"):
        load(tmp_path / "absent")
    with pytest.raises(WeightsError, match="no checkpoint in this folder"):
        load(tmp_path)
    save_safetensors(_model(), tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"m.safetensors: damaged.*does not match m.safetensors.sha256"):
        load(tmp_path / "m.safetensors")
    sum_path(tmp_path / "m.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("content", [b"runs_dir: runs\nseed: 42\n", b"hello world", b"\x89PNG\r\n"])
def test_a_file_of_another_kind_is_no_checkpoint(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="config.yaml") as caught:
        load(file)
    assert "weights_only" not in str(caught.value)  # torch's advice on how to run what it refused


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
def test_a_flipped_bit_is_refused_where_only_the_sum_can_tell(tmp_path, name):
    model, path = _model(), tmp_path / name
    if path.suffix == ".ckpt":
        with summed_file(path) as part:
            _checkpoint(part, model)
    else:
        save_safetensors(model, path)
    weight = next(value for key, value in model.state_dict().items() if key.endswith("stem.0.weight"))
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    load(path)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name}: damaged.*Copy the file again.*another checkpoint"):
        load(path)
    sum_path(path).unlink()
    load(path)


def _changed(**changes):
    record = model_record(_model())
    config = {**record["model"], **changes}
    return {**record, "model": {key: value for key, value in config.items() if value != "absent"}}


_MALFORMED = {
    "a string": (lambda: "fcn", "it is a str, not a mapping"),
    "a list": (lambda: [1], "it is a list, not a mapping"),
    "no model": (lambda: {"format": 1, "version": "0"}, "no mapping 'model'"),
    "model is a list": (lambda: {"format": 1, "model": []}, "no mapping 'model'"),
    "no backbone": (lambda: _changed(backbone="absent"), "no mapping 'backbone'"),
    "no normalizer": (lambda: _changed(normalizer="absent"), "no mapping 'normalizer'"),
    "neck is a string": (lambda: _changed(neck="fpn"), "no mapping 'neck'"),
    "head is empty": (lambda: _changed(head={}), "no mapping 'head' with a '_target_'"),
    "target is a number": (lambda: _changed(head={"_target_": 3}), "no mapping 'head' with a '_target_'"),
    "names are a number": (lambda: _changed(class_names=3), "'class_names' is not a list"),
    "names are numbers": (lambda: _changed(class_names=[1, 2]), "'class_names' is not a list"),
    "too many names": (lambda: _changed(class_names=["a"] * 7), "builds no model"),
    "inference is a list": (lambda: _changed(inference=[1]), "'inference' is not a mapping"),
    "another part": (lambda: _changed(backbone=_changed()["model"]["normalizer"]), "builds no model"),
    "unknown argument": (
        lambda: _changed(normalizer={**_changed()["model"]["normalizer"], "colour": 1}), "builds no model"
    ),
    "unknown target": (
        lambda: _changed(head={"_target_": "pixvox.heads.nothing.Nothing"}), "pixvox.heads has no 'nothing'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize(("make", "said"), _MALFORMED.values(), ids=_MALFORMED.keys())
def test_malformed_records_are_named(tmp_path, kind, make, said):
    from safetensors.torch import save_file

    model, path = _model(), tmp_path / f"odd.{kind}"
    if kind == "ckpt":
        _checkpoint(path, model, **{RECORD_KEY: make()})
    else:
        save_file(model.state_dict(), path, metadata={RECORD_KEY: json.dumps(make())})
    with pytest.raises(WeightsError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_metadata_that_is_no_json_is_named(tmp_path, text):
    from safetensors.torch import save_file

    save_file(_model().state_dict(), tmp_path / "odd.safetensors", metadata={RECORD_KEY: text})
    with pytest.raises(WeightsError, match=r"odd.safetensors: the record of its model is not JSON"):
        load(tmp_path / "odd.safetensors")


def test_state_dicts_of_other_kinds_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"odd.ckpt: its state_dict is a list"):
        load(_checkpoint(tmp_path / "odd.ckpt", _model(), state_dict=[torch.zeros(1)]))
    with pytest.raises(WeightsError, match=r"odd.ckpt: the weights do not fit the model: .* missing"):
        load(_checkpoint(tmp_path / "odd.ckpt", _model(), state_dict={1: torch.zeros(1)}))


@pytest.mark.parametrize("url", ["https://example.org/a/best.ckpt", "s3://bucket/run", "hf://owner/model"])
def test_a_url_is_to_be_downloaded_first(tmp_path, url):
    from pathlib import Path

    from pixvox.evaluation import evaluate
    from pixvox.training.train import train

    for function in (load, find_checkpoint, evaluate, lambda path: train([], resume=path)):
        for path in (url, Path(url)):
            with pytest.raises(WeightsError, match=r"^\w+://?.* is a URL; download it first"):
                function(path)


def test_a_folder_whose_name_has_a_colon_is_no_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = _checkpoint(tmp_path / "day:" / "best.ckpt", _model())
    assert find_checkpoint("day:/best.ckpt").samefile(path)


def test_foreign_and_newer_files_say_what_they_are(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match="holds no record of its model.*Mask2Former, Mask DINO"):
        load(tmp_path / "foreign.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        load(tmp_path / "list.pth")
    newer = {**model_record(_model()), "format": 99}
    with pytest.raises(WeightsError, match="format 99, this version reads 1"):
        load(_checkpoint(tmp_path / "newer.ckpt", _model(), **{RECORD_KEY: newer}))


def test_weights_that_do_not_fit_are_listed_and_the_rest_can_be_loaded(tmp_path):
    state = _model().state_dict()
    state["head.classifiers.0.2.weight"] = torch.zeros(5, 2, 1, 1)
    state["extra"] = torch.zeros(1)
    del state["head.classifiers.1.2.bias"]
    other = create_model(
        "fcn", "simple", 2, in_channels=1, backbone__channels=[4, 8], backbone__strides=[2, 4]
    )
    with pytest.raises(WeightsError, match=r"1 missing .* 1 unexpected .* 1 of another shape"):
        load_state(other, state, tmp_path)
    left = load_state(other, state, tmp_path, strict=False)
    assert left == ["extra", "head.classifiers.0.2.weight", "head.classifiers.1.2.bias"]
    assert torch.equal(other.backbone.stem[0].weight, state["backbone.stem.0.weight"])


def test_models_composed_of_objects_say_that_they_cannot_be_recorded():
    model = _model()
    model.config = {}
    with pytest.raises(pixvox.ConfigError, match="composed of objects"):
        model_record(model)


def test_torchvisions_state_dict_loads_by_the_public_function(tmp_path):
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    reference = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(reference.state_dict(), tmp_path / "maskrcnn.pth")
    model = pixvox.load(tmp_path / "maskrcnn.pth")
    assert model.num_classes == 90
    assert model.class_names[0] == "person"
    own = model.state_dict()["head.box_branch.classes.bias"]
    assert own[-1] == reference.roi_heads.box_predictor.cls_score.bias[0]


def test_a_number_that_is_spread_over_a_huge_shape_is_refused_before_it_is_filled(tmp_path):
    state = {"sem_seg_head.predictor.label_enc.weight": torch.zeros(1).expand(10**9, 256)}
    torch.save({"model": state}, tmp_path / "few_bytes.pth")
    with pytest.raises(
        WeightsError, match=r"label_enc\.weight of shape \(1000000000, 256\) has more numbers"
    ):
        load(tmp_path / "few_bytes.pth")

import csv
import json
import math

import pytest

from pixvox.benchmark import models
from pixvox.benchmark.models import TTA, Model, ModelTable, Score, check_names, measure, measure_all
from pixvox.cli import run
from pixvox.errors import ConfigError, WeightsError
from pixvox.models import create_model
from pixvox.weights.checkpoint import save_safetensors


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Starting processes takes seconds; tests of the matrix do."""
    monkeypatch.setattr(models, "run_alone", lambda context, function, *arguments: function(*arguments))


def make_run(folder, **best):
    """Write what a finished training leaves: weights and a summary."""
    (folder / "checkpoints").mkdir(parents=True)
    model = create_model("fcn", "simple", 3, in_channels=1)
    save_safetensors(model, folder / "checkpoints" / "model.safetensors")
    save_safetensors(model, folder / "model.safetensors")
    (folder / "summary.json").write_text(json.dumps({"monitor": "val/mIoU", "best": best}))
    return folder


def test_names_that_are_no_model_are_refused_before_any_is_measured():
    check_names(["fcn_resnet18", "decoupled_solo_simple", "lraspp_mobilenet_v3_large", "enet"])
    with pytest.raises(ConfigError, match="no backbone 'resnet81'; did you mean resnet18"):
        check_names(["fcn_resnet18", "fcn_resnet81"])
    with pytest.raises(ConfigError, match="neither a run folder or checkpoint nor HEAD or HEAD_BACKBONE"):
        check_names(["resnet18"])


def test_costs_are_those_of_the_model():
    row = measure("fcn_simple", (32, 40), repeats=1, num_classes=5)
    model = create_model("fcn", "simple", 5)
    assert row.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert row.image_size == (32, 40) and row.milliseconds > 0 and row.gmacs > 0
    assert math.isnan(row.score) and row.memory_mib >= 0


def test_kept_scores_are_taken_and_new_ones_where_they_are_asked_for(tmp_path, monkeypatch):
    folder = str(make_run(tmp_path / "run", mIoU=0.5))
    asked = []

    def evaluate(name, data, split, overrides):
        asked.append((split, tuple(overrides)))
        return {"acc": 0.9, "mIoU": 0.75 if set(TTA) <= set(overrides) else 0.25}

    monkeypatch.setattr("pixvox.evaluation.evaluate", evaluate)
    monkeypatch.setattr(models, "measure", lambda name, *_: Model(name, parameters=1))
    (row,) = measure_all([folder], 32, 1)
    assert (row.score_name, row.score, asked) == ("mIoU", 0.5, [])
    (row,) = measure_all([folder], 32, 1, scoring=Score(tta=True))
    assert (row.score, row.score_tta, asked) == (0.5, 0.75, [("val", TTA)])
    (row,) = measure_all([folder], 32, 1, scoring=Score(split="test", overrides=("data=shapes",)))
    assert row.score == 0.25 and asked[-1] == ("test", ("data=shapes",))


def test_one_failure_leaves_the_other_rows(tmp_path):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"")
    rows = list(measure_all([str(broken), "fcn_simple"], 32, 1))
    assert "broken.ckpt" in rows[0].error and not rows[1].error


def test_a_model_that_cannot_be_scored_keeps_its_costs(tmp_path, monkeypatch):
    def fail(*_):
        raise WeightsError("no data")

    monkeypatch.setattr(models, "_evaluate", fail)
    monkeypatch.setattr(models, "measure", lambda name, *_: Model(name, parameters=1))
    (row,) = measure_all([str(make_run(tmp_path / "run"))], 32, 1)
    assert row.error == "not scored: no data" and row.parameters == 1


def test_table_leaves_out_columns_that_nobody_has(tmp_path):
    rows = [
        Model("a", "mIoU", 0.5, math.nan, 2_500_000, 1.25, 70.2, 3.14, (64, 96), "cpu"),
        Model("b", error="x"),
    ]
    header, lines = ModelTable(rows).table()
    assert header == ["model", "mIoU", "million parameters", "GMACs", "peak MiB", "ms"]
    assert lines[0] == ["a", "0.5000", "2.50", "1.25", "70", "3.1"]
    paths = ModelTable(rows).save(tmp_path / "new")
    with paths[0].open() as file:
        first = next(csv.DictReader(file))
    assert (first["image_size"], first["score"], first["score_tta"]) == ("64x96", "0.5", "")
    text = paths[1].read_text()
    assert "| a | 0.5000 |" in text and "- b: x" in text
    mixed = ModelTable([*rows, Model("c", "AP", 0.25)]).table()
    assert mixed[0][1] == "score" and mixed[1][2][1] == "0.2500 (AP)"


def test_command_prints_the_table_and_tells_failures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(make_run(tmp_path / "run", mIoU=0.5))
    options = ["--image-size", "32,40", "--repeats", "1", "--out", "table"]
    assert run(["benchmark", "models", folder, "fcn_simple", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["score"] for row in found["models"]] == [0.5, None]
    assert (tmp_path / "table" / "models.md").is_file()
    assert run(["benchmark", "models", "fcn_simpel"]) == 2
    assert "no backbone 'simpel'" in capsys.readouterr().err
    (tmp_path / "empty.ckpt").write_bytes(b"")
    assert run(["benchmark", "models", "empty.ckpt", *options]) == 1

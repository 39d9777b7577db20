import csv
import json

import pytest
import torch

from pixvox.benchmark import grid
from pixvox.benchmark.grid import draw_examples, grid_cells, measure_speed
from pixvox.cli import run
from pixvox.errors import ConfigError
from pixvox.structures import Segmentation
from pixvox.training import sweep
from pixvox.training.comparison import Comparison, Row, compare

TINY = [
    "data=shapes", "data.train.num_images=2", "data.val.num_images=2", "data.train.radius=[4,8]",
    "data.train.task=semantic", "data.train.image_size=[32,40]", "image_size=[32,40]", "batch_size=1",
    "num_workers=0", "logger=none", "trainer.accelerator=cpu", "max_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def grid_folder(tmp_path_factory):
    """Train simple and resnet18 under fcn, and let the other head fail."""
    place = tmp_path_factory.mktemp("grid")
    patch = pytest.MonkeyPatch()

    def start(arguments):
        if "head=solov2" in arguments:
            return 1
        return run(list(arguments))

    patch.setattr(sweep, "_in_a_process", start)
    patch.chdir(place)
    code = run(["benchmark", "grid", "--backbones", "simple,resnet18", "--heads", "fcn,solov2", "--examples", "1",
                "--name", "small", *TINY])  # fmt: skip
    yield place / "runs" / "sweeps" / "small", code
    patch.undo()


def test_every_pair_is_trained_with_every_seed():
    cells = grid_cells(["simple", "resnet18"], ["fcn", "maskrcnn"], 2, ["epochs=1", "learning_rate=1,2"])
    assert len(cells) == 16
    assert {"epochs=1", "learning_rate=2", "backbone=resnet18", "head=maskrcnn", "seed=1"} in [
        set(cell.overrides) for cell in cells
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], ["fcn"]), "at least one backbone; give --backbones"),
        (
            (["simple"], ["fcn"], 1, ["head=maskrcnn"]),
            "head=maskrcnn: the heads of a grid are given by --heads",
        ),
        ((["simple"], ["fcn"], 1, ["seed=3"]), "given by --seeds"),
    ],
)
def test_grid_without_an_axis_or_with_one_given_twice_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        grid_cells(*arguments)


def test_unknown_backbone_is_refused_before_any_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["benchmark", "grid", "--backbones", "simple,resnet81", "--heads", "fcn", *TINY]) == 2
    assert "resnet18" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_grid_leaves_statistics_bars_heat_maps_and_examples_and_names_what_failed(grid_folder):
    folder, code = grid_folder
    assert code == 1
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    assert {row["backbone"] for row in rows} == {"simple", "resnet18"}
    assert all(float(row["images_per_second"]) > 0 and float(row["seconds"]) > 0 for row in rows)
    assert "images/s" in (folder / "comparison.md").read_text()
    assert (folder / "example_1.png").stat().st_size > 10_000
    assert (folder / "comparison.png").exists()
    assert not (folder / "example_2.png").exists()


def test_speed_is_measured_once_on_each_device(grid_folder):
    measured = grid_folder[0] / "backbone=simple,head=fcn,seed=0"
    times = json.loads((measured / "speed.json").read_text())
    assert times["image_size"] == [32, 64] and times["images_per_second"] > 0
    (measured / "speed.json").write_text(json.dumps({**times, "images_per_second": 7.0}))
    measure_speed(measured)
    (row,) = [row for row in compare([grid_folder[0]]).rows if row.settings["backbone"] == "simple"]
    assert row.speed == 7.0
    (measured / "speed.json").write_text(json.dumps({**times, "images_per_second": 7.0, "device": "another"}))
    measure_speed(measured, repeats=1)
    assert json.loads((measured / "speed.json").read_text())["device"] == times["device"]


def test_examples_are_the_same_images_for_all(grid_folder, tmp_path, monkeypatch, caplog):
    drawn = []
    monkeypatch.setattr(
        "pixvox.visualization.model_grid.draw_model_grid",
        lambda predictions, truth, path: drawn.append((dict(predictions), truth, path)) or path,
    )
    comparison = compare([grid_folder[0]])
    assert draw_examples(comparison, tmp_path, 2) == [tmp_path / "example_1.png", tmp_path / "example_2.png"]
    assert list(drawn[0][0]) == [("resnet18", "fcn"), ("simple", "fcn")]
    assert drawn[0][1].size == (32, 40)
    first, second = (truth.class_map for _, truth, _ in drawn)
    assert not first.equal(second)
    assert draw_examples(comparison, tmp_path, 0) == []

    drawn.clear()
    predictions = grid._first_predictions
    others = Segmentation(class_map=torch.zeros(16, 16, dtype=torch.int64))

    def of_other_images(run, count):
        found = predictions(run, count)
        return [(others, others) for _ in found] if "simple" in run.name else found

    monkeypatch.setattr(grid, "_first_predictions", of_other_images)
    draw_examples(comparison, tmp_path, 1)
    assert list(drawn[0][0]) == [("resnet18", "fcn")]
    assert "backbone=simple,head=fcn,seed=0 is in no example: it was validated on other images" in caplog.text


def test_examples_take_trainings_of_one_seed(tmp_path):
    rows = []
    for backbone, seeds in (("simple", (1, 0)), ("resnet18", (1, 0))):
        for seed in seeds:
            run = tmp_path / f"{backbone}_{seed}"
            run.mkdir()
            (run / "config.yaml").write_text(f"seed: {seed}\nchoices: {{backbone: {backbone}, head: fcn}}\n")
        runs = tuple(tmp_path / f"{backbone}_{seed}" for seed in seeds)
        rows.append(Row({}, 0.5, 0.0, 2, 1.0, 1.0, 1, (0.5, 0.5), runs))
    shown = grid._shown_runs(Comparison(rows, [], "AP"))
    assert {pair: run.name for pair, run in shown.items()} == {
        ("simple", "fcn"): "simple_0", ("resnet18", "fcn"): "resnet18_0",
    }  # fmt: skip


def test_a_model_that_cannot_be_timed_or_drawn_costs_no_table(grid_folder, tmp_path, monkeypatch, caplog):
    folder = grid_folder[0]
    outcome = sweep.Outcome(
        folder, finished=["backbone=simple,head=fcn,seed=0", "backbone=resnet18,head=fcn,seed=0"]
    )

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(grid, "prepare", broken)
    for name in outcome.finished:
        (folder / name / "speed.json").unlink()
    comparison, files = grid.report(outcome)
    assert len(comparison.rows) == 2 and folder / "comparison.csv" in files
    assert caplog.text.count("was not measured: RuntimeError: out of memory") == 2
    assert "is in no example: RuntimeError" in caplog.text

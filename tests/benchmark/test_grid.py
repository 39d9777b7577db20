import csv
import json

import pytest

from pixvox.benchmark.grid import draw_examples, grid_cells, measure_speed
from pixvox.cli import run
from pixvox.errors import ConfigError
from pixvox.training import sweep
from pixvox.training.comparison import compare

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


def test_speed_is_measured_once(grid_folder):
    measured = grid_folder[0] / "backbone=simple,head=fcn,seed=0"
    times = json.loads((measured / "speed.json").read_text())
    assert times["image_size"] == [32, 64] and times["images_per_second"] > 0
    (measured / "speed.json").write_text(json.dumps({**times, "images_per_second": 7.0}))
    measure_speed(measured)
    (row,) = [row for row in compare([grid_folder[0]]).rows if row.settings["backbone"] == "simple"]
    assert row.speed == 7.0


def test_examples_show_the_best_training_of_each_pair(grid_folder, tmp_path, monkeypatch):
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

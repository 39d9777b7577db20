import csv
import json
import math
import shutil

import pytest

from pixvox.configuration import compose, resolved
from pixvox.errors import ConfigError
from pixvox.training.comparison import compare, find_runs
from pixvox.training.run_folder import RunFolder


def leave(folder, overrides, score, status="finished", monitor="val/mIoU", **summary):
    """Leave a run folder as a training does."""
    from omegaconf import OmegaConf

    run = RunFolder(folder)
    run.make()
    run.config.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved(compose("train", overrides)))))
    run.write_json(run.environment, {"overrides": overrides})
    best = {"mIoU": score, "loss": 1.0 - score} if score is not None else {}
    content = {"status": status, "monitor": monitor, "mode": "max", "best": best, "seconds": 10.0,
               "peak_memory_mib": {"host": 300.0}, "parameters": 1000}  # fmt: skip
    run.write_json(run.summary, {**content, **summary})
    return folder


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    base = ["head=fcn", "data=shapes", "data.train.task=semantic"]
    for backbone, rate, seed, score in [
        ("simple", "1e-3", 0, 0.5), ("simple", "1e-3", 1, 0.7), ("simple", "1e-2", 0, 0.4), ("simple", "1e-2", 1, 0.4),
        ("resnet18", "1e-3", 0, 0.8), ("resnet18", "1e-3", 1, 0.9),
    ]:  # fmt: skip
        overrides = [*base, f"backbone={backbone}", f"learning_rate={rate}", f"seed={seed}"]
        leave(folder / f"{backbone},{rate},{seed}", [*overrides, "run_dir=somewhere"], score)
    return folder


@pytest.fixture
def runs(left, tmp_path):
    return shutil.copytree(left, tmp_path, dirs_exist_ok=True)


def test_runs_that_differ_by_seed_share_a_row_with_mean_and_spread(runs):
    comparison = compare([runs])
    assert comparison.columns == ["backbone", "learning_rate"]
    assert [row.settings["backbone"] for row in comparison.rows] == ["resnet18", "simple", "simple"]
    best = comparison.rows[0]
    assert (best.count, best.score) == (2, pytest.approx(0.85))
    assert best.spread == pytest.approx(math.sqrt(2 * 0.05**2))  # of a sample of two
    assert comparison.rows[1].spread == pytest.approx(math.sqrt(2 * 0.1**2))
    assert comparison.rows[2].spread == 0.0


def test_value_that_a_run_did_not_set_is_its_default(runs):
    leave(runs / "default", ["head=fcn", "data=shapes", "data.train.task=semantic", "backbone=simple"], 0.1)
    rates = {row.settings["learning_rate"] for row in compare([runs]).rows}
    assert rates == {1e-2, 1e-3, 1e-4}


def test_lower_is_better_for_a_loss(runs):
    comparison = compare([runs], score="val_loss")
    assert comparison.mode == "min"
    assert comparison.rows[0].settings["backbone"] == "resnet18"
    assert comparison.rows[0].score == pytest.approx(0.15)


def test_unfinished_runs_are_told_and_not_averaged(runs):
    leave(runs / "stopped", ["head=fcn", "backbone=simple"], 0.99, status="interrupted: KeyboardInterrupt")
    comparison = compare([runs])
    assert [path.name for path in comparison.unfinished] == ["stopped"]
    assert comparison.rows[0].score < 0.99


def test_run_without_a_score_comes_last(runs):
    leave(runs / "none", ["head=fcn", "backbone=resnet34"], None)
    last = compare([runs]).rows[-1]
    assert last.settings["backbone"] == "resnet34"
    assert math.isnan(last.score)


def test_tables_hold_the_same_numbers_for_people_and_programs(runs, tmp_path):
    folder = tmp_path / "out"
    paths = compare([runs]).save(folder)
    assert {path.name for path in paths} == {
        "comparison.csv", "comparison.md", "comparison.png", "heat_map_backbone_learning_rate.png",
    }  # fmt: skip
    assert all(path.stat().st_size > 0 for path in paths)
    with (folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["backbone"] == "resnet18"
    assert float(rows[0]["mean"]) == pytest.approx(0.85)
    assert len(rows[0]["values"].split()) == 2
    text = (folder / "comparison.md").read_text()
    assert "| resnet18 | 0.001 | 0.8500 ± 0.0707 | 2 | 10.0 | 300 | 0.00 |" in text


def test_last_and_failed_attempts_are_not_runs_of_their_own(runs):
    RunFolder(runs / "simple,1e-3,0").point_last()
    leave(runs / "failed" / "x-1", ["head=fcn"], 0.0)
    assert len(find_runs([runs, runs / "simple,1e-3,0"])) == 6


def test_different_scores_need_a_choice(runs):
    leave(runs / "other", ["head=fcn"], 0.2, monitor="val/AP")
    with pytest.raises(ConfigError, match=r"different scores \(AP, mIoU\).*--score: loss, mIoU"):
        compare([runs])
    assert compare([runs], score="mIoU").score == "mIoU"


def test_mistakes_are_named(runs, tmp_path):
    with pytest.raises(ConfigError, match="nothing at"):
        compare([tmp_path / "nowhere"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="there is no run in"):
        compare([empty])
    with pytest.raises(ConfigError, match="did you mean mIoU"):
        compare([runs], score="mIoUU")


def test_damaged_folder_is_unfinished(runs):
    (runs / "simple,1e-3,0" / "summary.json").write_text("{")
    comparison = compare([runs])
    assert len(comparison.unfinished) == 1
    assert json.dumps([row.count for row in comparison.rows]).count("1") == 1


def test_speed_stands_in_the_tables_where_it_was_measured(runs, tmp_path):
    assert "images/s" not in compare([runs]).table()[0]
    for seed, speed in ((0, 10.0), (1, 20.0)):
        RunFolder(runs / f"simple,1e-3,{seed}").write_json(
            runs / f"simple,1e-3,{seed}" / "speed.json", {"images_per_second": speed}
        )
    comparison = compare([runs])
    header, lines = comparison.table()
    assert [line[header.index("images/s")] for line in lines] == ["", "15.0", ""]
    names = {path.name for path in comparison.save(tmp_path / "out")}
    assert "speed_map_backbone_learning_rate.png" in names

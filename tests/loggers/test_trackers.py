import importlib.util
import json
import logging

import pytest

from pixvox.configuration import compose, instantiate
from pixvox.errors import ConfigError
from pixvox.loggers.tracker import MOST_FAILURES, Tracker


class Notebook:
    """Stands for a Lightning logger; fails as often as it is told."""

    def __init__(self, failures=0):
        self.failures = failures
        self.lines = []
        self.experiment = "the run"

    def log_metrics(self, metrics, step):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is gone")
        self.lines.append((step, metrics))

    def log_hyperparams(self, params):
        self.lines.append(params)

    def save(self):
        pass

    def finalize(self, status):
        self.lines.append(status)


def tracker(folder, notebook, opened=None, **options):
    def begin(found):
        if opened is not None:
            opened.append(found)
        if isinstance(notebook, Exception):
            raise notebook
        return notebook, found or "abc123"

    def picture(logger, name, path, step):
        logger.lines.append((name, path, step))

    return Tracker("notes", folder, begin, picture, **options)


def test_everything_is_handed_on(tmp_path):
    notebook = Notebook()
    ours = tracker(tmp_path, notebook)
    ours.log_hyperparams({"epochs": 3})
    ours.log_metrics({"loss": 0.5}, 7)
    ours.log_picture("curves", tmp_path / "curves.png", 7)
    ours.finalize("success")
    assert notebook.lines == [
        {"epochs": 3}, (7, {"loss": 0.5}), ("curves", tmp_path / "curves.png", 7), "success",
    ]  # fmt: skip
    assert (ours.name, ours.version, ours.experiment) == ("notes", "abc123", "the run")


def test_id_is_kept_and_a_resumed_run_goes_on_in_it(tmp_path):
    opened = []
    for _ in range(2):
        tracker(tmp_path, Notebook(), opened).log_metrics({}, 0)
    assert opened == [None, "abc123"]
    (tmp_path / "trackers.json").write_text(json.dumps({"notes": "mine", "other": "kept"}))
    tracker(tmp_path, Notebook(), opened).log_metrics({}, 0)
    assert opened[-1] == "mine"
    assert json.loads((tmp_path / "trackers.json").read_text())["other"] == "kept"


def test_nothing_is_opened_or_written_before_there_is_something_to_log(tmp_path):
    opened = []
    ours = tracker(tmp_path / "run", Notebook(), opened)
    ours.save()
    ours.finalize("success")
    assert not opened
    assert not (tmp_path / "run").exists()


def test_tracker_that_cannot_be_reached_is_told_once_and_left_alone(tmp_path, caplog):
    opened = []
    ours = tracker(tmp_path, ConnectionError("no route to host"), opened)
    with caplog.at_level(logging.WARNING, "pixvox"):
        for step in range(5):
            ours.log_metrics({"loss": 1.0}, step)
    assert len(opened) == 1  # each attempt could wait for minutes
    assert len(caplog.records) == 1
    assert "no route to host" in caplog.text and "The run goes on" in caplog.text
    assert ours.experiment is None


def test_tracker_that_recovers_is_used_again(tmp_path):
    notebook = Notebook(failures=MOST_FAILURES - 1)
    ours = tracker(tmp_path, notebook)
    for step in range(4):
        ours.log_metrics({}, step)
    assert [line[0] for line in notebook.lines] == [2, 3]


def test_tracker_that_goes_down_is_given_up(tmp_path, caplog):
    notebook = Notebook(failures=100)
    ours = tracker(tmp_path, notebook)
    for step in range(10):
        ours.log_metrics({}, step)
    assert notebook.failures == 100 - MOST_FAILURES
    assert len(caplog.records) == 2  # the first failure, and the last


def test_closed_run_is_not_opened_again(tmp_path):
    notebook, closed = Notebook(), []
    ours = tracker(tmp_path, notebook, end=closed.append)
    ours.log_metrics({}, 1)
    ours.finalize("success")
    ours.log_metrics({}, 2)
    assert closed == [notebook]
    assert [line for line in notebook.lines if line == (2, {})] == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_named_with_its_extra_before_training(name, monkeypatch, tmp_path):
    config = compose("train", [f"logger={name}", f"run_dir={tmp_path}"])
    monkeypatch.setattr("pixvox.loggers.tracker.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"pip install 'pixvox\[{name}\]'"):
        instantiate(config.logger, "logger")


def test_several_loggers_are_chosen_at_once(tmp_path):
    config = compose("train", ["logger=[tensorboard,wandb,mlflow]", f"run_dir={tmp_path}"])
    assert list(config.logger) == ["tensorboard", "wandb", "mlflow"]


needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")


@needs_mlflow
def test_mlflow_keeps_numbers_settings_and_pictures_in_one_run(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient
    from PIL import Image

    from pixvox.loggers.mlflow import mlflow

    monkeypatch.chdir(tmp_path)
    place = (tmp_path / "my runs").as_uri()
    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    for step in (1, 2):  # the second goes on where the first ended
        ours = mlflow(str(tmp_path / "run"), tracking_uri=place)
        if step == 1:
            ours.log_hyperparams({"head": {"dropout": 0.1}})
        ours.log_metrics({"val/AP": 0.1 * step}, step)
        ours.log_picture("curves", tmp_path / "curves.png", step)
        ours.finalize("success")
    client = MlflowClient(place)
    experiment = client.get_experiment_by_name("pixvox")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"head/dropout": "0.1"}
    assert [point.value for point in client.get_metric_history(run.info.run_id, "val/AP")] == [0.1, 0.2]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["curves.png"]
    assert run.info.run_name == "run"


@needs_wandb
@pytest.mark.slow
def test_wandb_offline_goes_on_in_one_run_and_two_runs_stay_apart(tmp_path):
    from pixvox.loggers.wandb import wandb

    ids = []
    for folder in ("a", "a", "b"):
        run = tmp_path / folder
        run.mkdir(exist_ok=True)
        ours = wandb(str(run), offline=True)
        ours.log_hyperparams({"epochs": 1})
        ours.log_metrics({"val/AP": 0.5}, 1)
        assert ours.experiment.offline
        ids.append(ours.experiment.id)
        ours.finalize("success")
    assert ids[0] == ids[1] != ids[2]
    names = [path.name for path in (tmp_path / "a" / "wandb").glob("offline-run-*")]
    assert len(names) == 2 or len({name.rpartition("-")[2] for name in names}) == 1
    assert all(name.endswith(ids[0]) for name in names)

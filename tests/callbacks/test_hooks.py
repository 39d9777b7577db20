import logging

import pytest

from pixvox.callbacks.hooks import Hooks
from pixvox.training.train import train

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=6", "data.val.num_images=2", "data.train.radius=[4,8]",
    "data.train.image_size=[32,40]", "image_size=[32,40]", "transforms=none", "batch_size=2", "num_workers=0",
    "trainer.accelerator=cpu", "epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    mine = ["+callbacks.mine._target_=toys.Diary", f"+callbacks.mine.path='{folder / 'diary.txt'}'"]
    broken = ["+callbacks.broken._target_=toys.BrokenHooks"]
    overrides = [*TINY, *mine, *broken, "logger=tensorboard", "profile=1", "val_every_n_epoch=1"]
    return train([*overrides, "trainer.log_every_n_steps=2"], runs_dir=str(folder))


def diary(run):
    return (run.dir.parent / "diary.txt").read_text().splitlines()


def test_epochs_and_their_scores_are_told(run):
    lines = [line for line in diary(run) if line.startswith("epoch")]
    assert [line.split()[1:3] for line in lines] == [
        ["val", "0"],
        ["train", "0"],
        ["val", "1"],
        ["train", "1"],
    ]
    assert "mIoU" in lines[0] and "loss" in lines[0]
    assert "learning_rate" in lines[1] and "mIoU" not in lines[1]


def test_running_numbers_are_told_as_often_as_they_are_logged(run):
    lines = [line for line in diary(run) if line.startswith("running")]
    assert [line.split()[1] for line in lines] == ["2", "4", "6"]
    assert all("loss" in line for line in lines)


def test_checkpoints_are_whole_when_they_are_told(run):
    lines = [line.split() for line in diary(run) if line.startswith("checkpoint")]
    assert {"last.ckpt", "best.ckpt"} <= {line[1] for line in lines}
    assert lines[-1][2] == "6"
    assert all(line[3] == "True" for line in lines)


def test_pictures_are_told_once_when_they_are_there(run):
    names = [name for line in diary(run) if line.startswith("pictures") for name in line.split()[1:]]
    assert {"curves.png", "val_predictions.png", "confusion_matrix.png"} <= set(names)


def test_hook_that_fails_is_said_and_does_not_end_the_run(run):
    text = (run.dir / "run.log").read_text()
    assert (
        "BrokenHooks.on_job_epoch_ended failed: RuntimeError: the mail server is down. The run goes on"
        in text
    )
    assert run.summary["status"] == "finished"


def test_hooks_that_nobody_overrides_do_nothing(caplog):
    hooks = Hooks()
    with caplog.at_level(logging.WARNING):
        hooks.on_running_metrics_updated(1, 0, {})
        hooks.on_snapshots_created([])
    assert not caplog.records


def test_tensorboard_holds_settings_scores_and_pictures(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.dir / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"curves", "val_predictions", "confusion_matrix"} <= set(tags["images"])
    assert {"train/loss", "val/mIoU", "best/mIoU"} <= set(tags["scalars"])
    assert "learning_rate" in (run.dir / "tensorboard" / "hparams.yaml").read_text()


def test_summary_tells_shares_of_a_step_and_operations(run):
    step = run.summary["step"]
    assert step["seconds"] > 0
    assert sum(step["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert set(step["shares"]) == {"data", "forward", "backward", "optimizer"}
    assert run.summary["flops"]["total"] == run.summary["flops"]["backbone"] + run.summary["flops"]["head"]
    text = (run.dir / "run.log").read_text()
    assert "s per step: waiting for data" in text and "billions of operations" in text


def test_profile_leaves_a_trace_and_a_table_of_operators(run):
    import json

    events = json.loads((run.dir / "profile" / "trace.json").read_text())["traceEvents"]
    assert any("convolution" in str(event.get("name")) for event in events)
    assert "convolution" in (run.dir / "profile" / "operators.txt").read_text()

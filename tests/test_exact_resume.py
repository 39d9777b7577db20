import csv

import pytest
import torch

from pixvox.callbacks.checkpoints import LastCheckpoint
from pixvox.callbacks.pictures import Pictures
from pixvox.methods.supervised import Supervised
from pixvox.run_folder import RunFolder
from pixvox.training import train
from pixvox.weights.comparison import INCIDENTAL, differences

TINY = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=7", "data.val.num_images=2", "data.train.radius=[4,8]",
    "data.train.image_size=[32,40]", "image_size=[24,32]", "transforms=crops", "batch_size=2", "num_workers=0",
    "trainer.accelerator=cpu", "logger=none", "head.dropout=0.3", "trainer.log_every_n_steps=1", "epochs=3",
]  # fmt: skip
CLOCK = ("images_per_second",)


class Killed(KeyboardInterrupt):
    """Like ``kill -9``: nothing is saved after it."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(Pictures, "draw", lambda self: None)


def kill(monkeypatch, owner, method, call):
    """Let the ``call``-th call of a method end the run."""
    original, calls = getattr(owner, method), []

    def counted(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(owner, method, counted)


def train_broken(monkeypatch, options, folder, kills):
    """Train, be killed at each place in turn, and resume each time."""
    for number, (owner, method, call) in enumerate(kills):
        with monkeypatch.context() as patch:
            kill(patch, owner, method, call)
            with pytest.raises(KeyboardInterrupt):
                train(options, run_dir=str(folder)) if number == 0 else train(resume=folder)
    return train(resume=folder)


def rows(run):
    with run.metrics.open() as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def assert_equal_runs(first, second):
    first, second = RunFolder(first), RunFolder(second)
    for name in ("last", "best"):
        contents = [torch.load(getattr(run, name), weights_only=True) for run in (first, second)]
        # beartype, which checks types in these tests, draws from Python's generator.
        assert differences(*contents, ignored=[*INCIDENTAL, "python"]) == [], name
    assert rows(first) == rows(second)


# With three steps in an epoch, two batches in a validation, counted from each resume on.
MID_EPOCH = (Supervised, "training_step", 3)
EPOCH_BORDER = (Supervised, "training_step", 4)
IN_VALIDATION = (Supervised, "validation_step", 2)
IN_WRITING = (LastCheckpoint, "save", 2)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["checkpoint_every_n_steps=1"], id="every-step"),
        pytest.param([], id="epochs-only"),
        pytest.param(["ema_decay=0.9", "precision=bf16-mixed", "checkpoint_every_n_steps=2"], id="ema-bf16"),
        pytest.param(["accumulate_grad_batches=2", "checkpoint_every_n_steps=1"], id="accumulated"),
        pytest.param(["max_steps=8", "checkpoint_every_n_steps=1"], id="max-steps"),
        pytest.param(["num_workers=2", "checkpoint_every_n_steps=1"], id="two-workers"),
    ],
)
def test_killed_and_resumed_run_equals_an_unbroken_one_bit_by_bit(tmp_path, monkeypatch, options):
    options = [*TINY, *options]
    train(options, run_dir=str(tmp_path / "whole"))
    kills = [MID_EPOCH, IN_VALIDATION, EPOCH_BORDER, IN_WRITING]
    train_broken(monkeypatch, options, tmp_path / "broken", kills)
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")

import csv
import os
import signal

import pytest
import torch

from pixvox.callbacks.checkpoints import LastCheckpoint
from pixvox.callbacks.pictures import Pictures
from pixvox.files import check_sum
from pixvox.methods.supervised import Supervised
from pixvox.training.out_of_memory import OutOfMemory
from pixvox.training.run_folder import RunFolder
from pixvox.training.train import train
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


def die():
    raise Killed


def send(number):
    return lambda: os.kill(os.getpid(), number)


def break_off(monkeypatch, owner, method, call, action=die):
    """Let the ``call``-th call of a method end the run."""
    original, calls = getattr(owner, method), []

    def counted(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            action()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, method, counted)


def train_broken(monkeypatch, options, folder, breaks, error=KeyboardInterrupt):
    """Train, be broken off at each place in turn, and resume each time."""
    for number, place in enumerate(breaks):
        with monkeypatch.context() as patch:
            break_off(patch, *place)
            with pytest.raises(error) as caught:
                train(options, run_dir=str(folder)) if number == 0 else train(resume=folder)
            if caught.type is SystemExit:
                assert caught.value.code == 143
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
        pytest.param(
            [
                "ema_decay=0.9",
                "precision=bf16-mixed",
                "accumulate_grad_batches=2",
                "checkpoint_every_n_steps=1",
            ],
            id="ema-bf16-accumulated",
        ),
        pytest.param(["checkpoint_every_n_steps=1"], id="every-step", marks=pytest.mark.slow),
        pytest.param([], id="epochs-only", marks=pytest.mark.slow),
        pytest.param(["max_steps=8", "checkpoint_every_n_steps=1"], id="max-steps", marks=pytest.mark.slow),
        pytest.param(
            ["num_workers=2", "checkpoint_every_n_steps=1"], id="two-workers", marks=pytest.mark.slow
        ),
        pytest.param(
            ["trainer.val_check_interval=2", "checkpoint_every_n_steps=1"],
            id="validations-in-the-epoch",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_and_resumed_run_equals_an_unbroken_one_bit_by_bit(tmp_path, monkeypatch, options):
    options = [*TINY, *options]
    train(options, run_dir=str(tmp_path / "whole"))
    kills = [MID_EPOCH, IN_VALIDATION, EPOCH_BORDER, IN_WRITING]
    train_broken(monkeypatch, options, tmp_path / "broken", kills)
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["ema_decay=0.9", "accumulate_grad_batches=2"], id="ema-accumulated"),
        pytest.param(["num_workers=2"], id="two-workers", marks=pytest.mark.slow),
        pytest.param(["max_steps=8"], id="max-steps", marks=pytest.mark.slow),
    ],
)
def test_run_stopped_by_signals_goes_on_exactly_from_where_it_stopped(tmp_path, monkeypatch, options):
    options = [*TINY, *options]
    train(options, run_dir=str(tmp_path / "whole"))
    stops = [
        (Supervised, "training_step", 1, send(signal.SIGTERM)),
        (Supervised, "validation_step", 1, send(signal.SIGINT)),
        (Supervised, "training_step", 2, send(signal.SIGINT)),
    ]
    train_broken(monkeypatch, options, tmp_path / "broken", stops, (SystemExit, KeyboardInterrupt))
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")
    assert "step 0" not in (tmp_path / "broken" / "run.log").read_text().split("stopped")[2]


def test_second_ctrl_c_ends_at_once_and_leaves_the_saved_state_whole(tmp_path, monkeypatch):
    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    break_off(monkeypatch, Supervised, "training_step", 5, twice)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        train(TINY, run_dir=str(tmp_path / "run"))
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_signal_before_training_ends_at_once(tmp_path, monkeypatch, number, error):
    monkeypatch.setattr(
        "pixvox.training.train.build_segmenter", lambda *arguments: os.kill(os.getpid(), number)
    )
    with pytest.raises(error):
        train(TINY, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_averaged_weights_and_numbered_checkpoints_are_kept(tmp_path):
    options = ["ema_decay=0.9", "learning_rate=0.05", "keep_checkpoints_every=2"]
    run = train([*TINY, *options], run_dir=str(tmp_path / "run"))
    content = torch.load(run.dir / "checkpoints" / "best.ckpt", weights_only=True)
    averaged, newest = content["state_dict"], content["current_model_state"]
    assert any(not torch.equal(averaged[name], newest[name]) for name in averaged)
    for name, value in run.model().state_dict().items():
        assert torch.equal(value, averaged[f"segmenter.{name}"]), name
    kept = sorted(path.name for path in (run.dir / "checkpoints").glob("epoch_*"))
    assert kept == ["epoch_0002.ckpt", "epoch_0002.ckpt.sha256"]
    check_sum(run.dir / "checkpoints" / "epoch_0002.ckpt")
    assert torch.load(run.dir / "checkpoints" / "epoch_0002.ckpt", weights_only=True)["global_step"] == 6


def test_batch_is_halved_once_when_memory_runs_out_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def exhaust():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    options = [*TINY, "checkpoint_every_n_steps=1"]
    with monkeypatch.context() as patch:
        break_off(patch, Supervised, "training_step", 3, exhaust)
        with pytest.raises(OutOfMemory, match="batch_size=2.*on_out_of_memory=halve_batch"):
            train(options, run_dir=str(tmp_path / "stopped"))
    break_off(monkeypatch, Supervised, "training_step", 3, exhaust)
    run = train([*options, "on_out_of_memory=halve_batch"], run_dir=str(tmp_path / "halved"))
    assert "going on once with batch_size=1 accumulate_grad_batches=2" in caplog.text
    assert run.summary["epochs"] == 3
    content = torch.load(run.dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batch_size"] == 1
    assert [int(row["step"]) for row in rows(RunFolder(run.dir))] == list(range(run.summary["steps"]))

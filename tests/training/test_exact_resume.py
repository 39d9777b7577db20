import csv
import errno
import os
import signal

import pytest
import torch

from pixvox.callbacks.checkpoints import LastCheckpoint, SaveError
from pixvox.files import check_sum
from pixvox.methods.mean_teacher import MeanTeacher
from pixvox.methods.supervised import Supervised
from pixvox.training.out_of_memory import OutOfMemory
from pixvox.training.run_folder import RunFolder
from pixvox.training.train import train
from pixvox.weights.comparison import INCIDENTAL, differences

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=7", "data.val.num_images=2", "data.train.radius=[4,8]",
    "data.train.image_size=[32,40]", "image_size=[24,32]", "transforms=crops", "batch_size=2", "num_workers=0",
    "trainer.accelerator=cpu", "logger=none", "head.dropout=0.3", "trainer.log_every_n_steps=1", "epochs=3",
]  # fmt: skip
CLOCK = ("images_per_second",)


class Killed(KeyboardInterrupt):
    """Like ``kill -9``: nothing is saved after it."""


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


def test_a_teacher_and_its_student_go_on_from_where_they_were_killed(tmp_path, monkeypatch):
    options = [
        *TINY, "method=mean_teacher", "num_labeled_images=3", "warmup_steps=1", "unsup_rampup_steps=3",
        "method.threshold_quantile=0.5", "accumulate_grad_batches=2", "checkpoint_every_n_steps=1",
    ]  # fmt: skip
    train(options, run_dir=str(tmp_path / "whole"))
    kills = [(MeanTeacher, "training_step", 2), IN_VALIDATION, (MeanTeacher, "training_step", 3), IN_WRITING]
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


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["scheduler=one_cycle", "ema_decay=0.9"], id="one-cycle"),
        pytest.param(
            [
                "scheduler=torch",
                "scheduler.name=SequentialLR",
                "scheduler.interval=step",
                "+scheduler.milestones=[2]",
                "+scheduler.schedulers=[{name:LinearLR},{name:CosineAnnealingLR}]",
            ],
            id="sequence-of-torch",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                "scheduler=torch",
                "scheduler.name=ReduceLROnPlateau",
                "scheduler.monitor=val_loss",
                "+scheduler.patience=0",
                "skip_nan_steps=2",
                "ema_decay=0.9",
            ],
            id="plateau-ema",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_schedule_goes_on_in_its_middle(tmp_path, monkeypatch, options):
    options = [*TINY, *options, "checkpoint_every_n_steps=1"]
    train(options, run_dir=str(tmp_path / "whole"))
    train_broken(monkeypatch, options, tmp_path / "broken", [(Supervised, "training_step", 5)])
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


def test_steps_are_left_out_alike_when_the_accumulation_was_broken_off(tmp_path, monkeypatch):
    step = Supervised.training_step

    def spoiled(self, batch, index):
        loss = step(self, batch, index)
        return loss * float("nan") if (self.trainer.current_epoch, index) == (1, 1) else loss

    monkeypatch.setattr(Supervised, "training_step", spoiled)
    options = [*TINY, "skip_nan_steps=2", "accumulate_grad_batches=2", "ema_decay=0.9"]
    whole = train(options, run_dir=str(tmp_path / "whole"))
    assert (whole.summary["skipped_steps"], whole.summary["status"]) == (1, "finished")
    between = (Supervised, "training_step", 4, send(signal.SIGTERM))  # the next batch gives NaN
    broken = train_broken(monkeypatch, options, tmp_path / "broken", [between], SystemExit)
    assert broken.summary["skipped_steps"] == 1
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


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


@pytest.mark.parametrize("on_error", ["raise", pytest.param("warn", marks=pytest.mark.slow)])
def test_full_disk_in_a_training_leaves_a_run_that_resumes_exactly(tmp_path, monkeypatch, caplog, on_error):
    original, written = torch.save, []

    def full(content, file, *arguments, **options):
        original(content, file, *arguments, **options)
        written.append(file)
        if len(written) == 3:  # the newest state of the second epoch
            raise OSError(errno.ENOSPC, "No space left on device")

    options = [*TINY, f"on_save_error={on_error}"]
    whole = train(options, run_dir=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        if on_error == "raise":
            with pytest.raises(SaveError, match=r"No space left on device.*the one before it is whole"):
                train(options, run_dir=str(tmp_path / "full"))
        else:
            train(options, run_dir=str(tmp_path / "full"))
    assert len(written) >= 3
    assert "was not written" in caplog.text or on_error == "raise"
    for path in (tmp_path / "full" / "checkpoints").glob("*.ckpt"):
        check_sum(path)
        torch.load(path, weights_only=True)
    again = train(resume=tmp_path / "full")
    assert again.summary["steps"] == whole.summary["steps"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "full")


def test_a_state_is_written_once_a_step_and_what_a_kill_left_is_removed(tmp_path, monkeypatch):
    saved = []
    save = LastCheckpoint.save
    monkeypatch.setattr(
        LastCheckpoint, "save", lambda self, trainer: saved.append(trainer.global_step) or save(self, trainer)
    )
    options = [*TINY, "accumulate_grad_batches=3", "batch_size=1", "checkpoint_every_n_steps=1", "epochs=1"]
    run = train(options, run_dir=str(tmp_path / "run"))
    assert saved == [1, 2, 3]
    left = run.dir / "checkpoints" / ".123.last.ckpt"
    left.write_bytes(b"half")
    train(resume=run.dir)
    assert not left.exists()


def test_signal_that_comes_as_memory_runs_out_is_not_lost(tmp_path, monkeypatch):
    def exhaust():
        os.kill(os.getpid(), signal.SIGTERM)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    break_off(monkeypatch, Supervised, "training_step", 2, exhaust)
    with pytest.raises(SystemExit) as caught:
        train([*TINY, "on_out_of_memory=halve_batch"], run_dir=str(tmp_path / "run"))
    assert caught.value.code == 143


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

import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch

from pixvox.cli import run as run_cli
from pixvox.data.make import make_dataset
from pixvox.training.interruption import Interruption

SMALL = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "transforms=none",
    "batch_size=2", "num_workers=2", "trainer.accelerator=cpu", "logger=none",
]  # fmt: skip
SHAPES = [
    "data=shapes", "data.train.task=semantic", "data.train.num_images=8", "data.val.num_images=2",
    "data.train.radius=[4,8]", "data.train.image_size=[32,40]", "image_size=[32,40]",
]  # fmt: skip


def children(pid):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line) for line in found.stdout.split()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_signal_to_a_running_training_saves_and_leaves_no_workers(tmp_path, number, code):
    folder = tmp_path / "run"
    options = [*SMALL, *SHAPES, "epochs=2000", f"run_dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pixvox", "train", *options],
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert wait_for(lambda: (folder / "checkpoints" / "last.ckpt").exists() or process.poll(), 120)
    assert process.poll() is None
    wait_for(lambda: children(process.pid), 20)
    workers = children(process.pid)
    # A terminal sends Ctrl-C to every process of the group, a scheduler its signal to the first.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"continue with: pixvox train --resume {folder}" in said
    assert "Traceback" not in said
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > 0
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("interrupted")
    assert wait_for(lambda: not any(map(alive, workers)), 10)


def _ctrl_c_before_the_first_batch():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as torch's loading processes do first of all
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_process_just_forked_is_left_to_the_main_process():
    with Interruption() as interruption:
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        interruption.on_train_start(trainer, pl.LightningModule())
        child = mp.get_context("fork").Process(target=_ctrl_c_before_the_first_batch)
        child.start()
        child.join(60)
    assert child.exitcode == 0


@pytest.mark.slow
def test_damaged_image_in_a_worker_is_one_line(tmp_path, capfd):
    data = make_dataset("shapes", tmp_path / "data", 6, 2, image_size=(32, 40), radius=(4, 8))
    damaged = sorted((data / "images" / "train").glob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:60])
    options = [text for text in SMALL if not text.startswith("head=")]
    code = run_cli(["train", "--data", str(data), *options, "head=maskrcnn", "epochs=1", "image_size=32",
                    f"run_dir={tmp_path / 'run'}"])  # fmt: skip
    said = capfd.readouterr().err
    assert code == 2, said
    (error,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert damaged.name in error and "image " in error
    assert "Traceback" not in said

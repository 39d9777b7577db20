"""Several processes by the real command line, on the CPU."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pixvox
from pixvox.cli import run
from pixvox.overrides import override

MODEL = [
    "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "backbone.norm=group", "image_size=48",
    "neck.out_channels=8", "neck.extra_level=false", "head.box_features=16", "head.mask_channels=8",
    "head.mask_convs=1", "head.num_proposals=[20,10]", "head.box_samples=8", "head.rpn_samples=16",
    "head.detections_per_image=5", "optimizer=sgd", "scheduler=constant", "scheduler.warmup=0", "learning_rate=0.02",
    "num_workers=0", "trainer.accelerator=cpu", "logger=none",
]  # fmt: skip
ONE = ["batch_size=4"]
TWO = ["batch_size=2", "trainer.devices=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    sizes = ["num_train=8", "num_val=7", "image_size=[48,64]", "radius=[5,9]"]
    assert run(["data", "make", "shapes", "--out", str(folder), *sizes]) == 0
    return folder


def arguments(data, folder, *overrides):
    return ["train", "--data", str(data), *MODEL, override("run_dir", str(folder)), *overrides]


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_equal(one, two):
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5, msg=name)


def last_scores(folder):
    scores = json.loads((folder / "summary.json").read_text())["last"]
    return {name: float("nan") if value is None else value for name, value in scores.items()}


def test_two_processes_by_the_command_line_equal_one(data, tmp_path, capfd):
    """Seven validation images on two processes: each counts once, or losses and scores would differ."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(arguments(data, one, *ONE, "max_steps=3")) == 0
    capfd.readouterr()
    assert run([*arguments(data, two, *TWO, "trainer=ddp", "max_steps=3"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert_equal(one, two)
    assert last_scores(two) == pytest.approx(last_scores(one), rel=1e-5, nan_ok=True)
    assert Path(json.loads(out.strip().splitlines()[-1])["run"]) == two
    assert err.count("run folder") == 2, "processes beside the first speak"
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "last"}
    with (two / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert len(steps) == len(set(steps)), "processes beside the first write tables"
    assert pixvox.load(two).predict(torch.zeros(3, 48, 64)).instances is not None


@pytest.mark.slow
def test_sharded_models_equal_one_process_and_resume_anywhere(data, tmp_path):
    one, two, third = (tmp_path / name for name in ("one", "two", "third"))
    assert run(arguments(data, one, *ONE, "epochs=3")) == 0
    assert run(arguments(data, two, *TWO, "trainer=fsdp2", "epochs=1")) == 0
    subprocess.run(["cp", "-r", str(two), str(third)], check=True)
    assert run(["train", "--resume", str(two), "epochs=3"]) == 0
    assert_equal(one, two)
    assert last_scores(two) == pytest.approx(last_scores(one), rel=1e-5, nan_ok=True)
    alone = ["trainer=default", "trainer.devices=1", "batch_size=4"]
    assert run(["train", "--resume", str(third), "epochs=3", *alone]) == 0
    assert_equal(one, third)


TEACHER = [
    "method=mean_teacher", "num_labeled_images=4", "warmup_steps=1", "unsup_rampup_steps=0", "method.decay=0.9",
    "method.threshold=0.3", "max_steps=3", "epochs=-1", "trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_mean_teacher_on_two_processes_equals_one(data, tmp_path, strategy):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(arguments(data, one, *ONE, *TEACHER)) == 0
    assert run(arguments(data, two, *TWO, *TEACHER, f"trainer={strategy}")) == 0
    with (one / "metrics.csv").open() as file:
        kept = [row["train/pseudo_instances"] for row in csv.DictReader(file)]
    assert any(count and float(count) > 0 for count in kept), "without pseudo-labels nothing is compared"
    assert_equal(one, two)


@pytest.mark.slow
def test_sharded_models_train_with_mixed_precision(data, tmp_path):
    folder = tmp_path / "run"
    assert run(arguments(data, folder, *TWO, "trainer=fsdp2", "max_steps=2", "precision=bf16-mixed")) == 0
    assert all(
        value.dtype == torch.float32 for value in weights(folder).values() if value.is_floating_point()
    )


@pytest.mark.slow
def test_what_two_processes_began_one_ends_and_two_go_on(data, tmp_path):
    one, two, third = (tmp_path / name for name in ("one", "two", "third"))
    assert run(arguments(data, one, *ONE, "epochs=3")) == 0
    assert run(arguments(data, two, *TWO, "trainer=ddp", "epochs=1")) == 0
    subprocess.run(["cp", "-r", str(two), str(third)], check=True)
    assert run(["train", "--resume", str(two), "epochs=3"]) == 0
    alone = ["trainer=default", "trainer.devices=1", "batch_size=4"]
    assert run(["train", "--resume", str(third), "epochs=3", *alone]) == 0
    assert_equal(one, two)
    assert_equal(one, third)


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_one_message_and_exit_code_2(data, tmp_path, capfd):
    folder = tmp_path / "data"
    subprocess.run(["cp", "-r", str(data), str(folder)], check=True)
    sorted((folder / "images" / "train").iterdir())[0].write_bytes(b"no image")
    started = time.monotonic()
    code = run(arguments(folder, tmp_path / "run", *TWO, "trainer=ddp", "epochs=2"))
    err = capfd.readouterr().err
    assert code == 2, err
    assert err.count("error:") == 1, err
    assert "Traceback" not in err
    assert time.monotonic() - started < 120


def start(data, folder, *overrides):
    command = [sys.executable, "-m", "pixvox", *arguments(data, folder, *TWO, "trainer=ddp", *overrides)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.1)


def workers_of(pid):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            if parent == pid and "pixvox.distributed.worker" in command:
                found.append(int(folder.name))
    return sorted(found)


def ended(pids, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_others_end(data, tmp_path, victim):
    folder = tmp_path / "run"
    process = start(data, folder, "epochs=1000")
    try:
        wait_for(folder / "checkpoints" / "last.ckpt")
        workers = workers_of(process.pid)
        assert len(workers) == 2
        os.kill(workers[victim], signal.SIGKILL)
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 2
    assert f"process {victim} of 2 was ended by SIGKILL" in err
    assert ended(workers)
    assert run(["train", "--resume", str(folder), "epochs=-1", "max_steps=1"]) == 0, "nothing more to do"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_at_one_step_and_the_run_resumes(data, tmp_path, number, code):
    folder, unbroken = tmp_path / "run", tmp_path / "unbroken"
    process = start(data, folder, "epochs=1000")
    try:
        wait_for(folder / "checkpoints" / "last.ckpt")
        time.sleep(0.3)
        workers = workers_of(process.pid)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code, err
    assert ended(workers), "orphans"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    step = int(state["global_step"])
    assert f"at step {step}" in err, err
    assert run(arguments(data, unbroken, *ONE, f"max_steps={step + 2}")) == 0
    assert run(["train", "--resume", str(folder), "epochs=-1", f"max_steps={step + 2}"]) == 0
    assert_equal(unbroken, folder)


@pytest.mark.slow
def test_processes_started_by_torchrun_agree_on_the_folder(data, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "pixvox",
    ]
    given = ["train", "--data", str(data), *MODEL, *TWO, "trainer=ddp", "max_steps=3"]
    runs, one = tmp_path / "runs", tmp_path / "one"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, *given, override("runs_dir", str(runs))], check=True, env=environment, timeout=300
    )
    assert run(arguments(data, one, *ONE, "max_steps=3")) == 0
    (folder,) = (path for path in runs.iterdir() if path.name != "last")
    assert_equal(one, folder)


@pytest.mark.slow
def test_python_starts_processes_too(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = pixvox.train([*MODEL, *TWO, "max_steps=2"], data=data, trainer="ddp", head="maskrcnn")
    assert done.summary["steps"] == 2
    assert done.metrics.keys() >= {"AP50", "loss"}
    assert done.dir.is_dir()
    assert not torch.distributed.is_initialized()

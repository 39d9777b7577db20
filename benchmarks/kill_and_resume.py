"""Kill a training at random moments with ``kill -9``, resume it each time, and compare it with an unbroken one.

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0] [--workers 0]

The moments are drawn evenly over the seconds that training takes, the writing of checkpoints included: a checkpoint
is written after every second step. After each kill the rows of metrics.csv that are left are compared with those of
the unbroken run; in the end both final checkpoints are compared bit by bit. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pixvox.weights.comparison import differences

OPTIONS = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=40", "data.val.num_images=4", "data.train.radius=[4,8]",
    "data.train.image_size=[32,40]", "image_size=[24,32]", "transforms=crops", "batch_size=2",
    "trainer.accelerator=cpu", "logger=none", "head.dropout=0.3", "trainer.log_every_n_steps=1",
    "ema_decay=0.99", "checkpoint_every_n_steps=2",
]  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pixvox", "train", *arguments]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*arguments), env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {
                name: value
                for name, value in row.items()
                if value and not name.startswith(("images_per", "time/"))
            }
            for row in csv.DictReader(file)
        ]


def losses_differ(whole: list[dict[str, str]], broken: list[dict[str, str]]) -> list[str]:
    """Return the steps whose loss is not that of the unbroken run."""
    known = {row["step"]: row.get("train/loss") for row in whole}
    return [row["step"] for row in broken if row.get("train/loss") != known.get(row["step"])]


def resumed_step(folder: Path) -> int:
    """Return the step that a resume would continue from, 0 for the beginning."""
    from pixvox.training.run_folder import find_run, readable_checkpoint

    if not (folder / "checkpoints").is_dir():
        return 0
    path = readable_checkpoint(find_run(folder))
    return 0 if path is None else int(torch.load(path, weights_only=True)["global_step"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=25)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    folder = Path(tempfile.mkdtemp(prefix="pixvox_kills_"))
    options = [*OPTIONS, f"num_workers={chosen.workers}", f"epochs={chosen.epochs}"]
    whole, broken = folder / "whole", folder / "broken"

    begun = time.perf_counter()
    if start(*options, f"run_dir={whole}").wait() != 0:
        print("the unbroken run failed")
        return 1
    seconds = time.perf_counter() - begun
    stamps = [
        re.match(r"\S+ (\d+):(\d+):(\d+)", line) for line in (whole / "run.log").read_text().splitlines()
    ]
    clock = [int(m[1]) * 3600 + int(m[2]) * 60 + int(m[3]) for m in stamps if m]
    training = max(2.0, clock[-1] - clock[0])
    known = rows(whole)
    steps = int(known[-1]["step"]) + 1
    print(f"unbroken: {steps} steps, {seconds:.1f} s, of these about {training:.0f} s of training")
    print("| kill | seconds after training began | step reached | resumed from | losses equal |")
    print("|---|---|---|---|---|")

    failed = False
    for number in range(1, chosen.kills + 1):
        process = start("--resume", str(broken)) if (broken / "environment.json").exists() else start(
            *options, f"run_dir={broken}"
        )  # fmt: skip
        # Importing takes longer than training here: the moments are counted from the log's first line on.
        log, size = (
            broken / "run.log",
            (broken / "run.log").stat().st_size if (broken / "run.log").exists() else 0,
        )
        while process.poll() is None and (not log.exists() or log.stat().st_size == size):
            time.sleep(0.01)
        moment = draw.uniform(0.0, 1.5 * training / chosen.kills)
        time.sleep(moment)
        if process.poll() is not None:
            print(f"| {number} | the run was over before it was killed |")
            failed = True
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left = rows(broken)
        reached = max((int(row["step"]) + 1 for row in left), default=0)
        different = losses_differ(known, left)
        failed |= bool(different)
        equal = "yes" if not different else f"no: {different[:3]}"
        print(f"| {number} | {moment:.2f} | {reached} | {resumed_step(broken)} | {equal} |", flush=True)

    if start("--resume", str(broken)).wait() != 0:
        print("the resumed run failed")
        return 1
    for name in ("last", "best"):
        contents = [
            torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (whole, broken)
        ]
        found = differences(*contents)
        failed |= bool(found)
        print(f"{name}.ckpt: {'equal to the last bit' if not found else f'differs in {found[:5]}'}")
    same = rows(whole) == rows(broken)
    failed |= not same
    print(f"metrics.csv: {len(known)} rows, {'equal' if same else 'different'}")
    shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What benchmarks of trainings share: a process for each run, results that are kept, tables in Markdown."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def parser(description: str, out: str) -> argparse.ArgumentParser:
    """Return a parser of what all these benchmarks take."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, in each run")
    made.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options; words like KEY=VALUE are ``overrides``, wherever they stand between options."""
    options, rest = made.parse_known_args()
    unknown = [word for word in rest if "=" not in word]
    if unknown:
        made.error(f"unknown arguments: {' '.join(unknown)}")
    options.overrides = rest
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def main(work: Callable[[Job], Job], rest: Callable[[], None]) -> None:
    """Do one job where this process was started for it, else the whole benchmark."""
    if sys.argv[1:2] == ["--job"]:
        file = Path(sys.argv[2])
        job = json.loads(sys.argv[3])
        file.write_text(json.dumps({"job": job, "result": work(job)}, indent=2) + "\n")
    else:
        rest()


def result_of(job: Job, file: Path, options: argparse.Namespace) -> Job | None:
    """Return the result of a job, done in a process of its own unless ``file`` has it; None where it failed.

    Its peak memory and CPU seconds are then its own, and what is finished is not repeated.
    """
    if file.exists():
        earlier = json.loads(file.read_text())
        if earlier["job"] == job:
            return dict(earlier["result"])
        sys.exit(f"{file} was made with {earlier['job']}, not {job}; give another --out")
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    if options.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, sys.argv[0], "--job", str(file), json.dumps(job)]
    if subprocess.run(command, env=environment).returncode != 0:
        return None
    return dict(json.loads(file.read_text())["result"])


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the workers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def finish(lines: Sequence[Sequence[str]], file: Path, left: int = 1) -> None:
    """Write and print a table.

    Args:
        lines: Titles, then rows.
        file: For the table.
        left: Columns of words; others are numbers.
    """
    if len(lines) < 2:
        sys.exit("no run has finished")
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    text = "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    file.write_text(text + "\n")
    print(f"\n{text}")

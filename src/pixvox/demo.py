"""Train, evaluate, predict and draw on data made on the spot, in 2-D and in 3-D: what ``make demo`` runs."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from pixvox.configuration import compose
from pixvox.errors import PixvoxError
from pixvox.overrides import override

EXPERIMENTS = {"2-D shapes": "demo_shapes", "3-D nuclei": "demo_nuclei3d"}
"""What the demo runs: names for people, and files of ``configs/experiment``."""

log = logging.getLogger("pixvox")


@dataclass(frozen=True)
class Row:
    """One line of the demo's table.

    Args:
        task: What was learned.
        ap: Mean average precision over IoU 0.5 to 0.95 on the held-out split.
        ap50: Average precision at IoU 0.5.
        matched_ap50: TP / (TP + FP + FN) at IoU 0.5.
        seconds: For everything: data, training, evaluation, prediction, pictures.
        pictures: Run folder.
    """

    task: str
    ap: float
    ap50: float
    matched_ap50: float
    seconds: float
    pictures: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pixvox.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for data, runs and results")
    parser.add_argument("--only", choices=sorted(EXPERIMENTS.values()), help="run one part")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides, such as epochs=1")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _use_all_cores()
    try:
        rows = [
            run_part(task, experiment, options.out, options.overrides)
            for task, experiment in EXPERIMENTS.items()
            if options.only in (None, experiment)
        ]
    except PixvoxError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    _print(rows)
    (options.out / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def run_part(task: str, experiment: str, out: Path, overrides: Sequence[str] = ()) -> Row:
    """Make the data of an experiment, train, evaluate, predict, and return the scores.

    Args:
        task: Name for the table.
        experiment: A file of ``configs/experiment`` with a node ``demo`` that tells the data.
        out: Folder for data, runs and results; the data of an earlier demo are replaced.
        overrides: Overrides of the training.
    """
    from pixvox.data.make import make_dataset
    from pixvox.evaluation import evaluate
    from pixvox.prediction import predict_files
    from pixvox.training.train import train

    started = time.perf_counter()
    recipe = OmegaConf.to_container(compose("train", [f"experiment={experiment}"]).demo, resolve=True)
    assert isinstance(recipe, dict)
    data = out / "data" / experiment
    if (data / ".pixvox_demo").exists():  # ours; a folder that is not ours is left to make_dataset to refuse
        shutil.rmtree(data)
    make_dataset(
        recipe["kind"], data, recipe["num_train"], recipe["num_val"], recipe["seed"], **recipe["options"]
    )
    (data / ".pixvox_demo").touch()
    run = train(
        [f"experiment={experiment}", override("runs_dir", str(out / "runs")), *overrides],
        data=data,
    )
    scores = evaluate(run.dir, data=data)
    image = next(
        path for path in sorted((data / "images" / "val").iterdir()) if not path.name.startswith(".")
    )
    predict_files(run.dir, [image], out / "results" / experiment)
    return Row(
        task,
        scores["AP"],
        scores["AP50"],
        scores["matched_AP50"],
        round(time.perf_counter() - started, 1),
        str(run.dir),
    )


def _use_all_cores() -> None:
    """Let torch use every core this process may run on, unless the user said otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def _print(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="pixvox demo, held-out split", title_justify="left")
    for column in ("task", "AP", "AP50", "matched AP50", "seconds", "pictures"):
        table.add_column(
            column, justify="left" if column in ("task", "pictures") else "right", overflow="fold"
        )
    for row in rows:
        scores = (f"{value:.3f}" for value in (row.ap, row.ap50, row.matched_ap50))
        table.add_row(row.task, *scores, f"{row.seconds:.0f}", row.pictures)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

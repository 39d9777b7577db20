"""What unlabelled images add: supervised training on few labels against the same with a mean teacher.

    python benchmarks/semi_supervised.py --experiment shapes_solov2 --labels 0.02 0.1 --out runs/semi [KEY=VALUE ...]
    python benchmarks/semi_supervised.py --experiment nuclei --data nuclei_dsb2018/ --labels 0.1 --seeds 0

Both arms of a seed take the same labelled images, first weights and number of steps; the scores are
those of the last weights (of the teacher, where there is one) on the held-out split. Arms and seeds take turns. Runs
that are finished in FOLDER are not repeated.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ARMS = {
    "supervised": ["method=supervised"],
    "mean teacher": ["method=mean_teacher"],
}


def run_one(overrides: list[str], data: str | None, folder: Path, scores: list[str]) -> None:
    """Train one arm in this process; write ``result.json`` into ``folder``."""
    from pixvox.training.train import train

    shutil.rmtree(folder, ignore_errors=True)
    before = os.times()
    run = train([*overrides, f"run_dir={folder}"], data=data)
    after = os.times()
    # The last epoch is the only one that is validated, so the best scores are the last.
    result = {
        "overrides": overrides,
        "scores": {name: run.metrics[name] for name in scores},
        "cpu_seconds": round(after.user + after.system - before.user - before.system),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def arm_overrides(options: argparse.Namespace, arm: str, labels: float, seed: int) -> list[str]:
    """Return the overrides of one run."""
    return [
        f"experiment={options.experiment}", *ARMS[arm], f"num_labeled_images={labels:g}", f"seed={seed}",
        f"max_steps={options.steps}", "epochs=-1", f"val_every_n_epoch={10**6}",
        *(options.teacher if arm == "mean teacher" else ()), *options.overrides,
    ]  # fmt: skip


def launch(options: argparse.Namespace, arm: str, labels: float, seed: int) -> dict[str, Any] | None:
    """Return the result of a run, trained first unless it is there; None where it failed."""
    name = f"{options.experiment}_{labels:g}_{arm.replace(' ', '_')}_{seed}"
    folder = (options.out / name).resolve()
    overrides = arm_overrides(options, arm, labels, seed)
    file = folder / "result.json"
    if file.exists():
        earlier: dict[str, Any] = json.loads(file.read_text())
        if earlier["overrides"] == overrides:
            return earlier
        sys.exit(f"{file} was made with {earlier['overrides']}; give another --out")
    job = {"overrides": overrides, "data": options.data, "folder": str(folder), "scores": options.scores}
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(job)], env=environment)
    return json.loads(file.read_text()) if done.returncode == 0 else None


def table(results: dict[tuple[float, str], list[dict[str, Any]]], scores: list[str]) -> str:
    """Return mean and standard deviation of each arm as a table in Markdown."""
    lines = [
        ["labels", "method", *scores, "runs", "CPU seconds"],
        ["---:", "---", *["---:"] * (len(scores) + 2)],
    ]
    for (labels, arm), runs in results.items():
        cells = []
        for name in scores:
            values = [run["scores"][name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            cells.append(
                f"{statistics.mean(values):.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")
            )
        seconds = round(statistics.mean(run["cpu_seconds"] for run in runs))
        lines.append([f"{labels:g}", arm, *cells, str(len(runs)), str(seconds)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="shapes_solov2")
    parser.add_argument("--data", help="path of a dataset, for experiments on one")
    parser.add_argument("--labels", type=float, nargs="+", default=[0.02, 0.1], help="shares of the labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scores", nargs="+", default=["AP", "AP50"])
    parser.add_argument("--teacher", nargs="*", default=[], help="overrides for the mean teacher alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, in each run")
    parser.add_argument("--out", type=Path, default=Path("runs/semi_supervised"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.one is not None:
        job = json.loads(options.one)
        run_one(job["overrides"], job["data"], Path(job["folder"]), job["scores"])
        return
    unknown = [word for word in rest if "=" not in word]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    options.overrides = rest
    results: dict[tuple[float, str], list[dict[str, Any]]] = {
        (labels, arm): [] for labels in options.labels for arm in ARMS
    }
    for seed in options.seeds:
        for labels, arm in results:
            result = launch(options, arm, labels, seed)
            if result is not None:
                results[labels, arm].append(result)
    text = table({key: runs for key, runs in results.items() if runs}, options.scores)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.experiment}.md").write_text(text + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    main()

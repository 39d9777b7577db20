"""Train every head from scratch on generated data and print what each reaches and costs.

    python benchmarks/heads.py --data-dims 2 [--heads mask2former lw_detr] [--out FOLDER] [KEY=VALUE ...]

Images (2) are `experiment=shapes_HEAD`, volumes (3) `experiment=nuclei3d_HEAD`; a head without such a file, as
maskrcnn, trains with `experiment=shapes head=HEAD`. Each run is a process of its own, so that its peak memory is its
own, and is scored on the held-out split from its best checkpoint. Runs that are finished in FOLDER are not repeated.
Scores of images are COCO's; those of volumes are ranked AP and matched AP (TP / (TP + FP + FN)) of masks. CPU seconds
are those of training, its validations included; images per second are those of predicting one image at a time.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEADS = ("deformable_detr", "lw_detr", "mask2former", "maskdino", "hybrid")
BASES = {2: "shapes", 3: "nuclei3d"}
SCORES = {
    2: {"mask AP": "mask_AP", "mask AP50": "mask_AP50", "box AP": "box_AP"},
    3: {"AP": "AP", "AP50": "AP50", "matched AP50": "matched_AP50"},
}
COSTS = (
    "cpu_seconds",
    "wall_seconds",
    "parameters_millions",
    "images_per_second",
    "peak_mib",
    "peak_cuda_mib",
)


def overrides_of(head: str, dims: int) -> list[str]:
    """Return the overrides that choose the experiment of a head."""
    from pixvox.configuration import CONFIG_FOLDER

    base = BASES[dims]
    if (CONFIG_FOLDER / "experiment" / f"{base}_{head}.yaml").exists():
        return [f"experiment={base}_{head}"]
    return [f"experiment={base}", f"head={head}"]


def run_one(head: str, dims: int, folder: Path, extra: list[str]) -> None:
    """Train and score one head in this process; write ``result.json`` into ``folder``."""
    from pixvox.evaluation import evaluate
    from pixvox.training.train import train

    shutil.rmtree(folder, ignore_errors=True)
    started, cpu = time.perf_counter(), cpu_seconds()
    run = train([*overrides_of(head, dims), f"run_dir={folder}", *extra])
    wall, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    peak = run.summary["peak_memory_mib"]  # of training; what evaluation needs is less
    scores = evaluate(run.dir)
    result = {
        "head": head,
        "dims": dims,
        "overrides": extra,
        "steps": run.summary["steps"],
        "scores": {name: value if math.isfinite(value) else None for name, value in scores.items()},
        "cpu_seconds": round(cpu),
        "wall_seconds": round(wall),
        "parameters_millions": round(run.summary["parameters"] / 1e6, 2),
        "images_per_second": round(1 / scores["seconds_per_image"], 1),
        "peak_mib": round(peak["host"]) if "host" in peak else None,
        "peak_cuda_mib": round(peak["cuda"]) if "cuda" in peak else None,
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the workers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def launch(head: str, dims: int, folder: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the result of a run, trained first unless it is there; None where it failed."""
    file = folder / "result.json"
    if file.exists():
        earlier: dict[str, Any] = json.loads(file.read_text())
        if earlier["overrides"] == options.overrides:
            return earlier
        sys.exit(f"{file} was made with {earlier['overrides']}, not {options.overrides}; give another --out")
    command = [sys.executable, __file__, "--data-dims", str(dims), "--heads", head, "--one", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    if options.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([*command, *options.overrides], env=environment)
    return json.loads(file.read_text()) if done.returncode == 0 else None


def table(results: list[dict[str, Any]], dims: int) -> str:
    """Return the results as a table in Markdown."""
    costs = [name for name in COSTS if any(result[name] is not None for result in results)]
    titles = ["head", *SCORES[dims], *(name.replace("_", " ") for name in costs)]
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for result in results:
        scores = [
            "-" if result["scores"][name] is None else f"{result['scores'][name]:.3f}"
            for name in SCORES[dims].values()
        ]
        lines.append([result["head"], *scores, *(str(result[name]) for name in costs)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dims", type=int, choices=sorted(BASES), default=2)
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, in each run")
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    # Words with "=" are overrides wherever they stand: also behind the names of heads.
    words = [*options.heads, *rest]
    options.overrides = [word for word in words if "=" in word]
    heads = [word for word in options.heads if "=" not in word]
    unknown = [word for word in rest if "=" not in word]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if options.one is not None:
        run_one(heads[0], options.data_dims, options.one, options.overrides)
        return
    results = []
    for head in heads:
        result = launch(head, options.data_dims, options.out / f"{BASES[options.data_dims]}_{head}", options)
        if result is not None:
            results.append(result)
    if not results:
        sys.exit("no run has finished")
    text = table(results, options.data_dims)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{BASES[options.data_dims]}.md").write_text(text + "\n")
    print(f"\n{text}")
    if len(results) < len(heads):
        sys.exit(f"{len(heads) - len(results)} of {len(heads)} runs failed; start again to go on with them")


if __name__ == "__main__":
    main()

"""Train every head from scratch on generated data and print what each reaches and costs.

    python benchmarks/heads.py --data-dims 2 [--heads mask2former lw_detr] [--out FOLDER] [KEY=VALUE ...]

Images (2) are `experiment=shapes_HEAD`, volumes (3) `experiment=nuclei3d_HEAD`; a head without such a file, as
maskrcnn, trains with `experiment=shapes head=HEAD`. Each run is a process of its own, so that its peak memory is its
own, and is scored on the held-out split from its best checkpoint. Runs that are finished in FOLDER are not repeated.
Scores of images are COCO's; those of volumes are ranked AP and matched AP (TP / (TP + FP + FN)) of masks. CPU seconds
are those of training, its validations included; images per second are those of predicting one image at a time.
"""

import argparse
import math
import shutil
import sys
import time

from runs import Job, cpu_seconds, finish, main, parse, parser, result_of

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


def train_and_score(job: Job) -> Job:
    """Train and score one head."""
    from pixvox.evaluation import evaluate
    from pixvox.training.train import train

    shutil.rmtree(job["run_dir"], ignore_errors=True)
    started, cpu = time.perf_counter(), cpu_seconds()
    run = train([*job["overrides"], f"run_dir={job['run_dir']}"])
    wall, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    peak = run.summary["peak_memory_mib"]  # of training; what evaluation needs is less
    scores = evaluate(run.dir)
    return {
        "steps": run.summary["steps"],
        "scores": {name: value if math.isfinite(value) else None for name, value in scores.items()},
        "cpu_seconds": round(cpu),
        "wall_seconds": round(wall),
        "parameters_millions": round(run.summary["parameters"] / 1e6, 2),
        "images_per_second": round(1 / scores["seconds_per_image"], 1),
        "peak_mib": round(peak["host"]) if "host" in peak else None,
        "peak_cuda_mib": round(peak["cuda"]) if "cuda" in peak else None,
    }


def result(head: str, options: argparse.Namespace) -> Job | None:
    """Return the result of one head."""
    name = f"{BASES[options.data_dims]}_{head}"
    job = {
        "overrides": [*overrides_of(head, options.data_dims), *options.overrides],
        "run_dir": str(options.out / name),
    }
    return result_of(job, options.out / f"{name}.json", options)


def row(head: str, result: Job, dims: int, costs: list[str]) -> list[str]:
    """Return scores and costs of one head."""
    scores = [result["scores"][name] for name in SCORES[dims].values()]
    return [
        head,
        *("-" if score is None else f"{score:.3f}" for score in scores),
        *(str(result[c]) for c in costs),
    ]


def benchmark() -> None:
    """Train what is missing and print the table."""
    made = parser(__doc__, "runs/heads")
    made.add_argument("--data-dims", type=int, choices=sorted(BASES), default=2)
    made.add_argument("--heads", nargs="+", default=list(HEADS))
    options = parse(made)
    options.overrides += [word for word in options.heads if "=" in word]
    heads = [word for word in options.heads if "=" not in word]
    found = {head: result(head, options) for head in heads}
    done = {head: each for head, each in found.items() if each is not None}
    costs = [name for name in COSTS if any(each[name] is not None for each in done.values())]
    titles = ["head", *SCORES[options.data_dims], *(name.replace("_", " ") for name in costs)]
    rows = [row(head, each, options.data_dims, costs) for head, each in done.items()]
    finish([titles, *rows], options.out / f"{BASES[options.data_dims]}.md")
    if len(done) < len(heads):
        sys.exit(f"{len(heads) - len(done)} of {len(heads)} runs failed; start again to go on with them")


if __name__ == "__main__":
    main(train_and_score, benchmark)

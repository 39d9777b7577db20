"""What unlabelled images add: supervised training on few labels against the same with a method that uses the others.

    python benchmarks/semi_supervised.py --experiment shapes_solov2 --labels 0.02 0.1 --out runs/semi [KEY=VALUE ...]
    python benchmarks/semi_supervised.py --experiment nuclei --data nuclei_dsb2018/ --labels 0.1 --seeds 0
    python benchmarks/semi_supervised.py --experiment camvid --data camvid/ --labels 0.125 --scores mIoU \
        --methods supervised mean_teacher unimatch

All arms of a seed take the same labelled images, first weights and number of steps; the scores are
those of the last weights (of the teacher, where there is one) on the held-out split. Arms and seeds take turns. Runs
that are finished in FOLDER are not repeated.
"""

import argparse
import shutil
import statistics

from runs import Job, cpu_seconds, finish, main, parse, parser, result_of


def train_one(job: Job) -> Job:
    """Train one arm."""
    from pixvox.training.train import train

    shutil.rmtree(job["run_dir"], ignore_errors=True)
    before = cpu_seconds()
    run = train([*job["overrides"], f"run_dir={job['run_dir']}"], data=job["data"])
    # The last epoch is the only one that is validated, so the best scores are the last.
    return {"scores": dict(run.metrics), "cpu_seconds": round(cpu_seconds() - before)}


def result(options: argparse.Namespace, method: str, labels: float, seed: int) -> Job | None:
    """Return the result of one run."""
    name = f"{options.experiment}_{labels:g}_{method}_{seed}"
    overrides = [
        f"experiment={options.experiment}", f"method={method}", f"num_labeled_images={labels:g}", f"seed={seed}",
        f"max_steps={options.steps}", "epochs=-1", f"val_every_n_epoch={10**6}",
        *(options.teacher if method != "supervised" else ()), *options.overrides,
    ]  # fmt: skip
    job = {"overrides": overrides, "data": options.data, "run_dir": str(options.out / name)}
    return result_of(job, options.out / f"{name}.json", options)


def row(labels: float, method: str, runs: list[Job], scores: list[str]) -> list[str]:
    """Return mean and standard deviation of the seeds of a method."""
    cells = []
    for name in scores:
        values = [run["scores"][name] for run in runs]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    seconds = round(statistics.mean(run["cpu_seconds"] for run in runs))
    return [f"{labels:g}", method.replace("_", " "), *cells, str(len(runs)), str(seconds)]


def benchmark() -> None:
    """Train what is missing and print the table."""
    made = parser(__doc__, "runs/semi_supervised")
    made.add_argument("--experiment", default="shapes_solov2")
    made.add_argument("--data", help="path of a dataset, for experiments on one")
    made.add_argument("--labels", type=float, nargs="+", default=[0.02, 0.1], help="shares of the labels")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=1000)
    made.add_argument("--methods", nargs="+", default=["supervised", "mean_teacher"])
    made.add_argument("--scores", nargs="+", default=["AP", "AP50"])
    made.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for methods with a teacher alone; may be repeated",
    )
    options = parse(made)
    results: dict[tuple[float, str], list[Job]] = {
        (labels, method): [] for labels in options.labels for method in options.methods
    }
    for seed in options.seeds:
        for labels, method in results:
            found = result(options, method, labels, seed)
            if found is not None:
                results[labels, method].append(found)
    rows = [row(labels, method, runs, options.scores) for (labels, method), runs in results.items() if runs]
    titles = ["labels", "method", *options.scores, "runs", "CPU seconds"]
    finish([titles, *rows], options.out / f"{options.experiment}.md", left=2)


if __name__ == "__main__":
    main(train_one, benchmark)

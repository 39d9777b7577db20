"""What helps with images that are unlike those of a textbook: each case trained plainly and with the remedy.

    python benchmarks/edge_cases.py [--cases small_objects lighting] [--steps 1200] [--out FOLDER] [KEY=VALUE ...]

Each case has a probe set of generated shapes. The plain model and the one with the remedy take the same number of steps
(`experiment=shapes_solov2`) and both are scored on the probe set. Cases that begin from the same plain model share it,
and runs that are finished in FOLDER are not repeated. `docs/how-to/edge-cases.md` explains the cases.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One kind of difficult images.

    Args:
        probe: Overrides of the data the two models are scored on, beside those of their training.
        remedy: Overrides of the training that is to help.
        plain: Overrides of both trainings; none is training on the standard images.
        scores: What tells, as ``evaluate`` names it, or ``images_per_second``.
    """

    probe: tuple[str, ...]
    remedy: tuple[str, ...]
    plain: tuple[str, ...] = ()
    scores: tuple[str, ...] = ("AP", "AP50")


SHIFT = {"texture": "50", "noise": "25", "contrast": "25"}
FINER_GRIDS = ("head.num_grids=[32,24,16,8]",)

CASES = {
    "small_objects": Case(
        probe=(),
        remedy=(*FINER_GRIDS, "head.scale_ranges=[[0,10],[8,16],[14,32],[28,128]]"),
        plain=("data.train.radius=[3,8]", "data.train.count=[4,12]", "data.train.min_area=8"),
    ),
    "overlapping_objects": Case(
        probe=(), remedy=FINER_GRIDS, plain=("data.train.overlap=0.7", "data.train.count=[8,14]")
    ),
    "elongated_objects": Case(
        probe=("data.val.aspect=[0.12,0.25]",),
        remedy=("transforms=crops", "transforms.train.steps.affine.aspect=3.0"),
    ),
    "lighting": Case(
        probe=("data.val.light=[0.25,1.0]",),
        remedy=("normalizer=percentile",),
    ),
    "complex_background": Case(
        probe=("data.val.distractors=[3,6]",), remedy=("data.train.distractors=[0,6]", "data.val.distractors=[0,0]")
    ),
    "rare_classes": Case(
        probe=("data.val.class_shares=null",),
        remedy=("data.balance=repeat_factor",),
        plain=("data.train.class_shares=[0.9,0.07,0.03]", "data.train.count=[1,3]"),
        scores=("AP", "mask_AP/rectangle", "mask_AP/triangle"),
    ),
    "real_time": Case(
        probe=(),
        remedy=("backbone.channels=[16,32,64,64]", "head.num_convs=1"),
        scores=("AP", "AP50", "images_per_second"),
    ),
    "domain_shift": Case(
        probe=tuple(f"data.val.{key}={value}" for key, value in SHIFT.items()),
        remedy=(
            "method=mean_teacher", "warmup_steps=500", "unsup_rampup_steps=300", "method.decay=0.99",
            "+transforms/views@transforms.strong=strong",
            "++data.unlabelled._target_=pixvox.data.synthetic.shapes.Shapes", "++data.unlabelled.seed=2",
            "++data.unlabelled.num_images=2048",
            *(f"++data.unlabelled.{key}={value}" for key, value in SHIFT.items()),
        ),
    ),
}  # fmt: skip


def run_one(overrides: list[str], probe: list[str], run_dir: Path, result_file: Path) -> None:
    """Train a model in this process unless it is there, and score it on a probe set."""
    from pixvox.evaluation import evaluate
    from pixvox.training.train import train

    if not (run_dir / "summary.json").exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        train([*overrides, f"run_dir={run_dir}"])
    scores = evaluate(run_dir, overrides=["metrics.per_class=true", "data.val.num_images=256", *probe])
    scores["images_per_second"] = 1 / scores.pop("seconds_per_image")
    result_file.write_text(
        json.dumps({"overrides": overrides, "probe": probe, "scores": scores}, indent=2) + "\n"
    )


def launch(case: str, arm: str, options: argparse.Namespace) -> dict[str, float] | None:
    """Return the scores of one model on the probe set of a case; None where its process failed."""
    chosen = CASES[case]
    overrides = [
        "experiment=shapes_solov2", f"max_steps={options.steps}", "epochs=-1", f"val_every_n_epoch={10**6}",
        *chosen.plain, *(chosen.remedy if arm == "remedy" else ()), *options.overrides,
    ]  # fmt: skip
    name = "standard" if arm == "plain" and not chosen.plain else f"{case}_{arm}"
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{case}_{arm}.json"
    job = {
        "overrides": overrides,
        "probe": list(chosen.probe),
        "run_dir": str(folder / name),
        "file": str(file),
    }
    if file.exists():
        earlier = json.loads(file.read_text())
        if [earlier["overrides"], earlier["probe"]] == [job["overrides"], job["probe"]]:
            return dict(earlier["scores"])
        sys.exit(f"{file} was made with {earlier['overrides']}; give another --out")
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(job)], env=environment)
    return dict(json.loads(file.read_text())["scores"]) if done.returncode == 0 else None


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return what each case scores plainly and with the remedy, as a table in Markdown."""
    lines = [["case", "score", "plain", "with the remedy"], ["---", "---", "---:", "---:"]]
    for case, arms in results.items():
        for score in CASES[case].scores:
            digits = 1 if score == "images_per_second" else 3
            values = [f"{arms[arm][score]:.{digits}f}" for arm in ("plain", "remedy")]
            lines.append([case.replace("_", " "), score.replace("_", " "), *values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, in each run")
    parser.add_argument("--out", type=Path, default=Path("runs/edge_cases"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.one is not None:
        job = json.loads(options.one)
        run_one(job["overrides"], job["probe"], Path(job["run_dir"]), Path(job["file"]))
        return
    unknown = [word for word in rest if "=" not in word]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    options.overrides = rest
    results = {}
    for case in options.cases:
        arms = {arm: launch(case, arm, options) for arm in ("plain", "remedy")}
        if None not in arms.values():
            results[case] = arms
    if not results:
        sys.exit("no run has finished")
    text = table(results)
    (options.out / "edge_cases.md").write_text(text + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    main()

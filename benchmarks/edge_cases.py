"""What helps with images that are unlike those of a textbook: each case trained plainly and with the remedy.

    python benchmarks/edge_cases.py [--cases small_objects lighting] [--steps 1200] [--out FOLDER] [KEY=VALUE ...]

Each case has a probe set of generated shapes. The plain model and the one with the remedy take the same number of steps
(`experiment=shapes_solov2`) and both are scored on the probe set. Cases that begin from the same plain model share it,
and runs that are finished in FOLDER are not repeated. `docs/how-to/edge-cases.md` explains the cases.
"""

import argparse
import shutil
from dataclasses import dataclass

from runs import Job, finish, main, parse, parser, result_of
from timing import compare


@dataclass(frozen=True)
class Case:
    """One kind of difficult images.

    Args:
        probe: Overrides of the data the two models are scored on, beside those of their training.
        remedy: Overrides of the training that is to help.
        plain: Overrides of both trainings; none is training on the standard images.
        scores: What tells, as ``evaluate`` names it, or ``speed``: of predicting an image, against the plain model.
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
        remedy=(
            "backbone.strides=[2,4,8,16]", *FINER_GRIDS, "head.scale_ranges=[[0,10],[8,16],[14,32],[28,128]]"
        ),
        plain=("data.train.radius=[3,8]", "data.train.count=[4,12]", "data.train.min_area=8"),
    ),
    "overlapping_objects": Case(
        probe=(), remedy=FINER_GRIDS, plain=("data.train.overlap=0.7", "data.train.count=[8,14]")
    ),
    "elongated_objects": Case(
        probe=("data.val.aspect=[0.12,0.25]",),
        remedy=(
            "transforms=crops", "transforms.train.steps.affine.aspect=3.0",
            *(f"transforms.train.steps.{step}=null" for step in ("brightness_contrast", "gamma", "noise", "blur")),
        ),
        plain=("data.train.classes=[rectangle]",),
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
        scores=("AP", "AP50", "speed"),
    ),
    "domain_shift": Case(
        probe=tuple(f"data.val.{key}={value}" for key, value in SHIFT.items()),
        remedy=(
            "method=mean_teacher", "warmup_steps=400", "unsup_rampup_steps=200", "method.decay=0.99",
            "method.ignore_above=0.1",
            "+transforms/views@transforms.strong=strong",
            "++data.unlabelled._target_=pixvox.data.synthetic.shapes.Shapes", "++data.unlabelled.seed=2",
            "++data.unlabelled.num_images=2048",
            *(f"++data.unlabelled.{key}={value}" for key, value in SHIFT.items()),
        ),
    ),
}  # fmt: skip


def train_model(job: Job) -> Job:
    """Train a model."""
    from pixvox.training.train import train

    shutil.rmtree(job["run_dir"], ignore_errors=True)
    return {"steps": train([*job["overrides"], f"run_dir={job['run_dir']}"]).summary["steps"]}


def score(job: Job) -> Job:
    """Score a model on a probe set."""
    from pixvox.evaluation import evaluate

    return dict(
        evaluate(job["run"], overrides=["metrics.per_class=true", "data.val.num_images=256", *job["probe"]])
    )


def speed(job: Job) -> Job:
    """Time two models in turns, each predicting the same generated images one at a time."""
    import pixvox
    from pixvox.data.synthetic.shapes import Shapes

    shapes = Shapes(8, seed=3)
    images = [shapes[i].image for i in range(len(shapes))]
    models = [pixvox.load(run) for run in job["runs"]]
    work = {
        arm: lambda model=model: [model.predict(image) for image in images]
        for arm, model in zip(("plain", "remedy"), models, strict=True)
    }
    times = compare("eight images, one at a time", work)
    return {arm: times[arm]["ratio"] for arm in times}


def work(job: Job) -> Job:
    """Do one of the three."""
    return {"train": train_model, "score": score, "speed": speed}[job["do"]](job)


def trained(case: str, arm: str, options: argparse.Namespace) -> str | None:
    """Return the run folder of one model; cases that begin from the same plain model share it."""
    chosen = CASES[case]
    overrides = [
        "experiment=shapes_solov2", f"max_steps={options.steps}", "epochs=-1", f"val_every_n_epoch={10**6}",
        *chosen.plain, *(chosen.remedy if arm == "remedy" else ()), *options.overrides,
    ]  # fmt: skip
    run = options.out / ("standard" if arm == "plain" and not chosen.plain else f"{case}_{arm}")
    job = {"do": "train", "overrides": overrides, "run_dir": str(run)}
    return None if result_of(job, run.with_suffix(".json"), options) is None else str(run)


def compared(case: str, options: argparse.Namespace) -> dict[str, Job] | None:
    """Return the scores of both models of a case; None where a process failed."""
    runs = {arm: trained(case, arm, options) for arm in ("plain", "remedy")}
    if None in runs.values():
        return None
    found: dict[str, Job] = {}
    for arm, run in runs.items():
        job = {"do": "score", "run": run, "probe": list(CASES[case].probe)}
        scores = result_of(job, options.out / f"{case}_{arm}_scores.json", options)
        if scores is None:
            return None
        found[arm] = scores
    if "speed" in CASES[case].scores:
        ratios = result_of(
            {"do": "speed", "runs": list(runs.values())}, options.out / f"{case}_speed.json", options
        )
        if ratios is None:
            return None
        for arm, scores in found.items():
            scores["speed"] = ratios[arm]
    return found


def benchmark() -> None:
    """Train what is missing and print the table."""
    made = parser(__doc__, "runs/edge_cases")
    made.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    made.add_argument("--steps", type=int, default=1000)
    options = parse(made)
    lines = [["case", "score", "plain", "with the remedy"]]
    for case in options.cases:
        found = compared(case, options)
        if found is not None:
            for name in CASES[case].scores:
                values = [f"{found[arm][name]:.3f}" for arm in ("plain", "remedy")]
                lines.append([case.replace("_", " "), name.replace("_", " "), *values])
    finish(lines, options.out / "edge_cases.md", left=2)


if __name__ == "__main__":
    main(work, benchmark)

"""What pretraining adds: ResNet-18 from shapes to digits, from images of nuclei to volumes of them; equal steps.

    python benchmarks/transfer.py --target digits --out runs/transfer
    python benchmarks/transfer.py --target nuclei3d --images FOLDER/nuclei_dsb2018 --out runs/transfer

One training on the source is the start of all seeds. ``pretrained=`` takes its backbone alone, ``weights=`` whatever
fits; from images to volumes both are lifted. Scores are those of the last weights on the held-out split. Starts and
seeds take turns; runs that are finished in FOLDER are not repeated.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from runs import Job, cpu_seconds, finish, main, parse, parser, result_of

COMMON = [
    "head=slim_maskrcnn", "backbone=resnet18", "logger=none", "precision=bf16-mixed", "num_workers=0",
    "trainer.gradient_clip_val=0.5", "learning_rate=5e-4", "epochs=-1", f"val_every_n_epoch={10**6}",
]  # fmt: skip
NUCLEI = [
    "backbone.out_levels=[2,3,4]", "neck.extra_level=false", "head.anchor_sizes=[[8],[14],[20]]",
    "head.aspect_ratios=[1.0]", "head.mask_convs=2",
]  # fmt: skip
SOURCES = {
    "digits": [
        "data=shapes", "transforms=none", "normalizer=imagenet", "image_size=64", "data.train.image_size=64",
        "data.train.radius=[8,16]", "data.train.count=[1,4]", "data.train.num_images=4096", "batch_size=4", "seed=0",
        "max_steps=1500",
    ],
    "nuclei3d": [
        "experiment=nuclei", "image_size=128", "batch_size=8", *NUCLEI, "seed=0", "max_steps=600",
    ],
}  # fmt: skip
"""What the first training sees, by the data of the second."""

TARGETS = {
    "digits": ["data=digits", "normalizer=imagenet", "batch_size=4", "data.val.num_images=128"],
    "nuclei3d": [
        "experiment=nuclei3d", "batch_size=2", *NUCLEI, "backbone.depth_strides=[1,1,2,2]", "head.anisotropy=0.5",
        "head.rpn_iou=[0.5,0.2]", "head.num_proposals=[100,60]", "head.box_samples=32",
    ],
}  # fmt: skip
STARTS = {"nothing": [], "backbone": ["pretrained={}"], "all_that_fits": ["weights={}"]}


def train_one(job: Job) -> Job:
    """Train one model."""
    from pixvox.training.train import train

    shutil.rmtree(job["run_dir"], ignore_errors=True)
    before = cpu_seconds()
    overrides = [*job["overrides"], f"run_dir={job['run_dir']}"]
    run = train(overrides, data=job.get("images"), config_dir=Path(__file__).parent / "configs")
    return {"scores": dict(run.metrics), "cpu_seconds": round(cpu_seconds() - before)}


def result(
    options: argparse.Namespace, name: str, overrides: list[str], images: Path | None = None
) -> Job | None:
    """Return the result of one run."""
    job = {"overrides": [*COMMON, *overrides], "run_dir": str(options.out / name)}
    if images is not None:
        job["images"] = str(images.resolve())
    return result_of(job, options.out / f"{name}.json", options)


def benchmark() -> None:
    """Train what is missing and print the table."""
    made = parser(__doc__, "runs/transfer")
    made.add_argument("--target", choices=list(TARGETS), default="digits")
    made.add_argument(
        "--images", type=Path, help="a folder with images of nuclei, which --target nuclei3d starts from"
    )
    made.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=400)
    options = parse(made)
    if (options.target == "nuclei3d") != (options.images is not None):
        made.error("--images belongs to --target nuclei3d")
    source = f"{options.target}_source"
    if result(options, source, SOURCES[options.target], options.images) is None:
        sys.exit("the first training failed")
    found: dict[str, list[Job]] = {start: [] for start in options.starts}
    for seed in options.seeds:
        for start, runs in found.items():
            own = [line.format(options.out / source) for line in STARTS[start]]
            overrides = [*TARGETS[options.target], *own, *options.overrides, f"seed={seed}"]
            name = f"{options.target}_{start}_{seed}"
            one = result(options, name, [*overrides, f"max_steps={options.steps}"])
            if one is not None:
                runs.append(one)
    scores = ["AP", "AP50", "matched_AP50"]
    lines = [["start from", *scores, "seeds", "CPU seconds"]]
    for start, runs in found.items():
        if not runs:
            continue
        cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}"
                 for v in ([run["scores"][score] for run in runs] for score in scores)]  # fmt: skip
        seconds = round(statistics.mean(run["cpu_seconds"] for run in runs))
        lines.append([start, *cells, str(len(runs)), str(seconds)])
    finish(lines, options.out / f"{options.target}.md")


if __name__ == "__main__":
    main(train_one, benchmark)

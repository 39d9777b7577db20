"""Mask R-CNN on generated shapes in one process and in two, with the same batch of images in every step.

    python benchmarks/distributed_training.py [--seeds 0 1 2] [--epochs 8] [--work FOLDER] [--json PATH]

Each run is the command line's: `pixvox train trainer=ddp trainer.devices=2 batch_size=2` against `batch_size=4`. Both
arms of a seed start from the same weights and see the same images in the same steps. The backbone has group norm: batch
norm would look at two images in one arm and at four in the other. Scores are those of the last epoch on a held-out
split of 40 images. Runs that are in FOLDER already are not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ARMS = {
    "1 process x 4 images": ["batch_size=4"],
    "2 processes x 2 images": ["batch_size=2", "trainer=ddp", "trainer.devices=2"],
}
SCORES = ("mask_AP", "mask_AP50", "box_AP50")


def train(data: Path, run: Path, seed: int, epochs: int, arm: list[str]) -> dict[str, Any]:
    """Train one run, unless it is there, and return its summary."""
    summary = run / "summary.json"
    if not summary.exists():
        command = [
            sys.executable, "-m", "pixvox", "train", "--data", str(data), "experiment=demo_shapes", *arm,
            f"seed={seed}", f"epochs={epochs}", f"val_every_n_epoch={epochs}", f"run_dir={run}",
            "backbone.norm=group", "trainer.accelerator=cpu", "num_workers=0",
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    content: dict[str, Any] = json.loads(summary.read_text())
    return content


def main() -> None:
    """Train all runs and print the scores of each arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="pixvox_distributed_"))

    from omegaconf import OmegaConf

    from pixvox.configuration import compose
    from pixvox.data.make import make_dataset

    demo: Any = OmegaConf.to_container(compose("train", ["experiment=demo_shapes"]).demo)
    data = work / "data"
    if not data.exists():
        counts = {name: demo[name] for name in ("num_train", "num_val", "seed")}
        make_dataset(demo["kind"], data, **counts, **demo["options"])
    rows = []
    for seed in options.seeds:
        for arm, overrides in ARMS.items():
            run = work / f"seed{seed}_{overrides[0].replace('=', '')}"
            summary = train(data, run, seed, options.epochs, overrides)
            scores = {name: summary["last"][name] for name in SCORES}
            rows.append({"arm": arm, "seed": seed, "seconds": summary["seconds"], **scores})
            print(json.dumps(rows[-1]), flush=True)
    print(f"\n{'':24}" + "".join(f"{name:>18}" for name in SCORES) + f"{'seconds':>10}")
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        cells = ""
        for name in SCORES:
            values = [row[name] for row in mine]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells += f"{statistics.mean(values):>9.3f} +- {spread:.3f}"
        print(f"{arm:24}{cells}{statistics.mean(row['seconds'] for row in mine):>10.0f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Train the hand-made experiments and auto=true with equal backbones, widths and steps; print mean and spread.

    python benchmarks/auto_configuration.py --data ../shared/data --out auto_runs --steps 120

Finished runs are kept in OUT/results.jsonl and skipped when the command is given again. The widths of the head's
branches are the hand-made ones for both (they set the price of a step, no fact of the data does); everything else is
left to auto=true.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path

SETS = {
    "nuclei": {
        "folder": "nuclei_dsb2018",
        "same": [
            "backbone=simple", "backbone.channels=[32,64,128,256]", "backbone.blocks=2", "neck.out_channels=64",
            "head.box_features=256", "head.mask_channels=64",
        ],
    },
    "embryos": {
        "folder": "embryo3d_bbbc050",
        "same": [
            "backbone=simple", "backbone.channels=[24,48,96]", "neck.out_channels=48",
            "head.box_features=256", "head.box_size=5", "head.mask_size=10", "head.mask_channels=32",
            "head.mask_convs=2",
        ],
    },
}  # fmt: skip
COMMON = [
    "precision=bf16-mixed", "num_workers=0", "logger=none", "method.channels_last=true", "optimizer.weight_decay=0.01",
    "val_every_n_epoch=1000",
]  # fmt: skip
SCORES = ("matched_AP50", "AP50", "AP")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with nuclei_dsb2018 and embryo3d_bbbc050"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=SETS, help="one of the two data sets")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = [arguments.only] if arguments.only else list(SETS)
    for seed in range(arguments.seeds):
        for name in names:
            for kind in ("hand-made", "auto"):
                run(arguments, name, kind, seed)
    show(arguments.out, arguments.steps)


def run(arguments, name: str, kind: str, seed: int) -> None:
    key = {"data": name, "kind": kind, "seed": seed, "steps": arguments.steps}
    if any(all(row[field] == value for field, value in key.items()) for row in finished(arguments.out)):
        return
    overrides = [*COMMON, f"max_steps={arguments.steps}", f"seed={seed}", f"runs_dir={arguments.out}"]
    overrides += [f"experiment={name}"] if kind == "hand-made" else ["auto=true", *SETS[name]["same"]]
    print("begins", key, flush=True)
    context = multiprocessing.get_context(
        "spawn"
    )  # each run in a process of its own: time and memory are its own
    worker = context.Process(
        target=train, args=(arguments.data / SETS[name]["folder"], overrides, key, arguments.out)
    )
    worker.start()
    worker.join()
    if worker.exitcode:
        raise SystemExit(f"{key} failed with exit code {worker.exitcode}")


def train(data: Path, overrides: list[str], key: dict, out: Path) -> None:
    import pixvox

    begun = time.process_time()
    result = pixvox.train(overrides, data=data)
    scores = {score: result.metrics.get(score) for score in SCORES}
    row = {**key, **scores, "cpu_seconds": round(time.process_time() - begun), "run": str(result.dir)}
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def finished(out: Path) -> list[dict]:
    file = out / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def show(out: Path, steps: int) -> None:
    rows = [row for row in finished(out) if row["steps"] == steps]
    print(f"\n| data, {steps} steps | configuration | {' | '.join(SCORES)} | CPU seconds | seeds |")
    print("|---|---|" + "---|" * (len(SCORES) + 2))
    for name in SETS:
        for kind in ("hand-made", "auto"):
            chosen = [row for row in rows if row["data"] == name and row["kind"] == kind]
            if chosen:
                cells = [spread([row[score] or 0.0 for row in chosen]) for score in SCORES]
                cells.append(f"{statistics.mean(row['cpu_seconds'] for row in chosen):.0f}")
                print(f"| {name} | {kind} | {' | '.join(cells)} | {len(chosen)} |")


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {deviation:.3f}"


if __name__ == "__main__":
    main()

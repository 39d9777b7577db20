"""Scores of class maps against torchmetrics, side by side in one interleaved run, as a Markdown table.

    python benchmarks/semantic_metrics.py [--threads 1] [--rounds 9] [--json semantic_metrics.json]

What is timed is the update with a batch of class maps; every candidate's mIoU is compared with the first one's before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import compare, machine, write_json
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from pixvox.metrics.boundary_iou import BoundaryIoU
from pixvox.metrics.semantic import SemanticScores
from pixvox.structures import Segmentation

CASES = {
    "8 x 512 x 512, 21 classes": ((8, 512, 512), 21),
    "2 x 1024 x 2048, 19 classes": ((2, 1024, 2048), 19),
}
REFERENCE = "torchmetrics MulticlassJaccardIndex"


def class_maps(size: tuple[int, ...], num_classes: int) -> tuple[Tensor, Tensor]:
    """Return predictions that are right in four fifths of the pixels, and truths with a twentieth ignored."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, num_classes, size, generator=generator)
    other = torch.randint(0, num_classes, size, generator=generator)
    predicted = torch.where(torch.rand(size, generator=generator) < 0.8, true, other)
    true[torch.rand(size, generator=generator) < 0.05] = 255
    return predicted, true


def candidates(predicted: Tensor, true: Tensor, num_classes: int) -> dict[str, Callable[[], object]]:
    checked = MulticlassJaccardIndex(num_classes, ignore_index=255)
    unchecked = MulticlassJaccardIndex(num_classes, ignore_index=255, validate_args=False)
    ours, boundary = SemanticScores(num_classes), BoundaryIoU(num_classes)
    found = [Segmentation(class_map=labels) for labels in predicted]
    truths = [Segmentation(class_map=labels) for labels in true]
    for metric in (checked, unchecked):
        metric.update(predicted, true)
    ours.update(found, truths)
    expected = float(checked.compute())
    for name, value in {"unchecked": unchecked.compute(), "SemanticScores": ours.compute()["mIoU"]}.items():
        if abs(float(value) - expected) > 1e-5:
            raise SystemExit(f"{name} gives mIoU {float(value)}, torchmetrics {expected}")
    return {
        REFERENCE: lambda: checked.update(predicted, true),
        "the same, validate_args=False": lambda: unchecked.update(predicted, true),
        "pixvox SemanticScores": lambda: ours.update(found, truths),
        "pixvox BoundaryIoU": lambda: boundary.update(found, truths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, object] = {}
    lines = ["| maps | update | ms | times as fast as torchmetrics | as torchmetrics unchecked |"]
    lines += ["|---|---|---:|---:|---:|"]
    for title, (size, num_classes) in CASES.items():
        times = compare(title, candidates(*class_maps(size, num_classes), num_classes), options.rounds)
        results[title] = times
        unchecked = times["the same, validate_args=False"]["seconds"]
        lines += [
            f"| {title} | {name} | {1000 * each['seconds']:.1f} | {each['ratio']:.1f} "
            f"| {unchecked / each['seconds']:.1f} |"
            for name, each in times.items()
        ]
    facts = machine()
    print("\n" + "\n".join(lines))
    print(f"\n{facts['processor']}, {facts['threads']} thread(s), {facts['clock']}, torch {facts['torch']}")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

"""Time and memory of scores of label maps, beside scikit-image in one interleaved run, as a Markdown table.

    python benchmarks/volume_scores.py [--size 64,512,512] [--objects 2000] [--radius 8] [--rounds 5] [--json FILE]

scikit-image gives ARAND and VOI of arrays in memory; pixvox gives all its scores, block by block. That their ARAND is
equal is checked before. Memory is the peak of what Python allocates beyond the two label maps.
"""

from __future__ import annotations

import argparse
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
from skimage.metrics import adapted_rand_error, variation_of_information
from timing import compare, machine, write_json

from pixvox.metrics.volume_comparison import compare_volumes


def balls(size: tuple[int, ...], count: int, radius: int, jitter: int) -> np.ndarray:
    """Return a label map of balls at random places, moved by up to ``jitter`` voxels along each axis."""
    places, moves = np.random.default_rng(0), np.random.default_rng(1)
    side = 2 * radius + 1
    axes = np.meshgrid(*[np.arange(-radius, radius + 1)] * len(size), indexing="ij")
    ball = sum(axis**2 for axis in axes) <= radius**2
    labels = np.zeros(size, dtype=np.uint32)
    corners = places.integers(jitter, np.array(size) - side - jitter, (count, len(size)))
    corners += moves.integers(-jitter, jitter + 1, corners.shape)
    for number, corner in enumerate(corners, 1):
        labels[tuple(slice(start, start + side) for start in corner)][ball] = number
    return labels


def peak_mib(work: Callable[[], object]) -> float:
    """Return the most memory that Python held at once for a piece of work."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="64,512,512")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--radius", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = tuple(int(length) for length in options.size.split(","))
    true = balls(size, options.objects, options.radius, 0)
    predicted = balls(size, options.objects, options.radius, 2)
    candidates: dict[str, Callable[[], object]] = {
        "scikit-image ARAND and VOI": lambda: (
            adapted_rand_error(true, predicted),
            variation_of_information(true, predicted),
        ),
        "pixvox, all scores": lambda: compare_volumes(predicted, true, distance=3.0),
        "pixvox, blocks of 128": lambda: compare_volumes(predicted, true, distance=3.0, block=128),
    }
    ours, theirs = compare_volumes(predicted, true)["ARAND"], adapted_rand_error(true, predicted)[0]
    if abs(ours - theirs) > 1e-9:
        raise SystemExit(f"pixvox gives ARAND {ours}, scikit-image {theirs}")
    share = (true > 0).mean()
    title = f"{' x '.join(map(str, size))}, {options.objects} objects, {share:.0%} foreground"
    results: dict[str, object] = dict(compare(title, candidates, options.rounds))
    lines = ["| scores | ms | Mvoxel/s | MiB |", "|---|---:|---:|---:|"]
    for name, times in results.items():
        seconds = times["seconds"]  # type: ignore[index]
        times["mib"] = peak_mib(candidates[name])  # type: ignore[index]
        speed = math.prod(size) / seconds / 1e6
        lines.append(f"| {name} | {1000 * seconds:.0f} | {speed:.0f} | {times['mib']:.0f} |")  # type: ignore[index]
    facts = machine()
    print(f"\n{title}\n\n" + "\n".join(lines))
    print(f"\n{facts['processor']}, {facts['threads']} thread, {facts['clock']}, numpy {np.__version__}")
    if options.json:
        write_json(options.json, {title: results})


if __name__ == "__main__":
    main()

"""Objects of blocks joined to a volume: speed, memory, and that each object keeps its id.

    python benchmarks/stitching.py [--size 512,1024,1024] [--objects 25000] [--tile 256] [--json FILE]

A volume of balls is rendered; its true labels stand for what a network finds in each window. Joining and
painting are timed with and without numba, beside ``scipy.ndimage.label`` of the same volume in memory, in turn.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from timing import compare, write_json

from pixvox.inference.blocks import Blocks
from pixvox.inference.stitched_objects import StitchedObjects, in_order
from pixvox.inference.tile_objects import TileObjects
from pixvox.inference.tile_store import TileStore
from pixvox.ops import label_maps


def balls(size: tuple[int, ...], count: int, seed: int = 0) -> np.ndarray:
    """Return labels of up to ``count`` balls that do not overlap, of 4 to 8 voxels radius."""
    random = np.random.default_rng(seed)
    labels, number = np.zeros(size, dtype=np.int32), 0
    for _ in range(count):
        radius = int(random.integers(4, 9))
        centre = [int(random.integers(radius, length - radius)) for length in size]
        place = labels[tuple(slice(at - radius, at + radius + 1) for at in centre)]
        grid = np.ogrid[tuple(slice(-radius, radius + 1) for _ in size)]
        ball = sum(axis * axis for axis in grid) <= radius**2
        if not place[ball].any():
            number += 1
            place[ball] = number
    return labels


def fill(store: TileStore, blocks: Blocks, truth: np.ndarray) -> None:
    """Keep the truth of each window as what was found there."""
    classes, scores = np.zeros(truth.max(), dtype=np.int64), np.ones(truth.max(), dtype=np.float32)
    for block in blocks:
        found = TileObjects.from_labels(truth[block.kept], classes, scores, block, blocks)
        store.save(block, found.label_map, **found.columns())


def stitch(store: TileStore, blocks: Blocks, out: np.ndarray, numba: bool, threads: int) -> int:
    """Join the objects and paint all blocks; return how many there are."""
    label_maps.has_numba = lambda: numba  # type: ignore[assignment]
    found = StitchedObjects.of(blocks, store, threads=threads)

    def write(block: object) -> None:
        places, present = found.labels(block)  # type: ignore[arg-type]
        label_maps.relabel(places, np.concatenate([[0], present]), out[block.core])  # type: ignore[attr-defined]

    for _ in in_order(threads, write, blocks):
        pass
    return len(found)


def main() -> None:
    """Render, join, check and time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="512,1024,1024")
    parser.add_argument("--objects", type=int, default=25_000)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = tuple(map(int, given.size.split(",")))
    truth = balls(size, given.objects)
    objects = int(truth.max())
    blocks = Blocks(size, (given.tile,) * len(size), given.overlap)
    with tempfile.TemporaryDirectory() as folder:
        store = TileStore(Path(folder) / "tiles", {})
        fill(store, blocks, truth)
        kept = sum(path.stat().st_size for path in Path(folder, "tiles").iterdir())
        out = np.zeros(size, dtype=np.uint32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        count = stitch(store, blocks, out, numba=True, threads=given.threads)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        pairs = {(a, b) for block in blocks for a, b in _pairs(truth[block.core], out[block.core])}
        equal = len(pairs) == objects == count and len({b for _, b in pairs}) == objects
        print(f"{size}, {len(blocks)} blocks of {blocks.length}, margins {blocks.margin}, {objects} objects")
        print(
            f"one to one with the truth: {equal}; {kept / 2**20:.1f} MiB on disk; memory grew by {grown:.0f} MiB"
        )
        times = compare(
            "joined and painted",
            {
                "scipy.ndimage.label, in memory": lambda: ndimage.label(truth > 0),
                "with numba": lambda: stitch(store, blocks, out, True, given.threads),
                "without": lambda: stitch(store, blocks, out, False, given.threads),
            },
            rounds=given.rounds,
        )
    for name, row in times.items():
        print(f"  {name:<42s} {truth.size / 1e6 / row['seconds']:7.0f} Mvoxel/s")
    if given.json:
        write_json(
            given.json, {"size": size, "objects": objects, "equal": equal, "grown_mib": grown, "times": times}
        )


def _pairs(truth: np.ndarray, found: np.ndarray) -> set[tuple[int, int]]:
    keys = np.unique(truth.astype(np.int64) << 32 | found)
    return {(int(key >> 32), int(key & 0xFFFFFFFF)) for key in keys if key}


if __name__ == "__main__":
    main()

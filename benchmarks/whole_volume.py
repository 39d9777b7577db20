"""A light-sheet volume of half a gigavoxel from end to end: written, catalogued, segmented by tiles, stitched.

    python benchmarks/whole_volume.py [--size 512,1024,1024] [--nuclei 25000] [--json FILE] [--folder FOLDER]

The network is the truth itself: what a window shows of the true labels is what is found there. So the result must be
the truth of the whole volume, one to one, whatever the tiles, in one process, in two, as Ray tasks (where Ray is
installed), and after ``kill -9`` in the middle: by other engines and after the kill the same bytes. Every prediction
runs in a process of its own, which gives its CPU seconds and peak memory; what the "network" holds of a window, and
compiled code that is loaded, are in that peak.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

TILES = {
    "192": (192, 192, 192, 0.25),
    "128,256,256": (128, 256, 256, 0.2),
    "176,208,240": (176, 208, 240, 0.3),
}
"""Windows and overlaps."""


class Nuclei:
    """Ellipsoids of 4 to 9 voxels radius at jittered places of a grid; many press against a neighbour.

    Args:
        size: Of the volume in voxels.
        count: About so many nuclei.
        seed: Of everything.
    """

    pitch = 16

    def __init__(self, size: tuple[int, ...], count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        sites = np.stack(
            np.meshgrid(*[np.arange(self.pitch // 2, n, self.pitch) for n in size], indexing="ij"), -1
        )
        chosen = random.permutation(sites.reshape(-1, 3))[:count]
        chosen = chosen[np.lexsort(chosen.T[::-1])]  # from the first plane on
        self.size = size
        self.centres = chosen + random.uniform(-4, 4, chosen.shape)
        self.radii = random.uniform(4, 9, len(chosen))[:, None] * random.uniform(0.85, 1.15, chosen.shape)
        self.brightness = random.uniform(0.5, 1.0, len(chosen) + 1)

    def labels(self, first: int, last: int) -> np.ndarray:
        """Return the planes from ``first`` to ``last``; a voxel belongs to the nucleus it is deepest in."""
        shape = (last - first, *self.size[1:])
        labels, depth = np.zeros(shape, np.uint32), np.ones(shape, np.float32)
        reach = self.radii[:, 0] + 1
        near = (self.centres[:, 0] + reach >= first) & (self.centres[:, 0] - reach < last)
        for i in np.flatnonzero(near):
            low = np.maximum(np.floor(self.centres[i] - self.radii[i]), (first, 0, 0)).astype(int)
            high = np.minimum(np.ceil(self.centres[i] + self.radii[i]) + 1, (last, *self.size[1:])).astype(
                int
            )
            axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            away = sum(
                ((x - c) / r) ** 2 for x, c, r in zip(axes, self.centres[i], self.radii[i], strict=True)
            )
            place = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, (first, 0, 0), strict=True))
            deeper = away < depth[place]
            depth[place][deeper] = away[deeper]
            labels[place][deeper] = i + 1
        return labels

    def image(self, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return what a camera sees of labels: blur, photons, offset."""
        from scipy.ndimage import gaussian_filter

        light = gaussian_filter(np.where(labels > 0, self.brightness[labels], 0.03).astype(np.float32), 1.0)
        return (100 + random.poisson(60 * light)).astype(np.uint16)


def write(folder: Path, size: tuple[int, ...], count: int) -> int:
    """Write image and labels as OME-Zarr, plane by plane of blocks; return how many nuclei have a voxel."""
    from pixvox.data.volumes.ome_zarr import create_ome_zarr

    nuclei, random, step = Nuclei(size, count), np.random.default_rng(1), 64
    chunks, seen = (64, 128, 128), np.zeros(count + 1, bool)
    arrays = {}
    for name, kind in (("images", np.uint16), ("labels", np.uint32)):
        (folder / name).mkdir(parents=True)
        path = folder / name / "v.ome.zarr"
        arrays[name] = create_ome_zarr(path, size, kind, chunks, spacing=(0.5, 0.5, 0.5))
    for first in range(0, size[0], step):
        labels = nuclei.labels(first, min(first + step, size[0]))
        seen[labels.ravel()] = True
        arrays["labels"][first : first + step] = labels
        arrays["images"][first : first + step] = nuclei.image(labels, random)
    return int(seen[1:].sum())


class TruthModel:
    """What whole-volume prediction asks of a model."""

    task, in_channels, class_names, config = "instance", 1, ("nucleus",), {}
    spatial_dims, size_divisor = 3, (1, 1, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return no weights."""
        return {}


class TruthPredictor:
    """Finds the objects whose ids its images show."""

    resize, score_threshold, precision = "none", None, "fp32"
    resample, image_spacing = None, None
    procedure = SimpleNamespace(clean_up=None, options={})

    def __init__(self) -> None:
        self.model = TruthModel()

    def predict_samples(self, samples: list[Any]) -> list[Any]:
        """Return the objects of windows."""
        import torch

        from pixvox.structures import Instances, Segmentation

        results = []
        for sample in samples:
            labels = sample.image[0].int().numpy()
            there = np.flatnonzero(np.bincount(labels.ravel()))
            there = there[there > 0]
            numbers = np.zeros(labels.max() + 1, np.int32)
            numbers[there] = np.arange(1, len(there) + 1)
            masks = torch.from_numpy(numbers[labels])
            if len(there) == 0:
                results.append(Segmentation(Instances.empty(masks.shape, scores=True)))
            else:
                scores = torch.linspace(0.5, 1.0, len(there))
                results.append(Segmentation(Instances(masks=masks, scores=scores)))
        return results


def predict(options: dict[str, Any]) -> None:
    """Predict in this process, and print what it took."""
    import torch

    from pixvox.data.volumes.open import open_volume
    from pixvox.inference.engines import engine
    from pixvox.inference.volume_prediction import BlockOptions, predict_volume

    torch.set_num_threads(1)
    *tile, overlap = TILES[options["tile"]]
    volume = open_volume(options["volume"])
    before = _peak_mib()
    start, used = time.perf_counter(), _cpu()
    chosen = BlockOptions(
        tuple(tile), overlap, engine=engine(options["engine"], 2), threads=options["threads"], page=False
    )
    result = predict_volume(TruthPredictor(), volume, Path(options["out"]), "v", chosen)
    row = {
        "objects": result.count,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": _cpu() - used,
        "mib_before": before,
        "peak_mib": _peak_mib(),
    }
    print(json.dumps(row))


def _peak_mib() -> float:
    """Return the most memory that this program had; ``ru_maxrss`` would count the program that started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _cpu() -> float:
    own, below = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime


def run(volume: Path, out: Path, tile: str, engine: str, kill_after: int | None = None) -> dict[str, Any]:
    """Predict in a process of its own; kill it, if wanted, when so many blocks are done, and begin once more."""
    options = {"volume": str(volume), "out": str(out), "tile": tile, "engine": engine, "threads": 1}
    command = [sys.executable, __file__, "--predict", json.dumps(options)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    killed_at = 0
    if kill_after is not None:
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
            while len(list(out.glob(".v.tiles/*.tile"))) < kill_after:
                if child.poll() is not None:
                    raise RuntimeError("the prediction ended before it could be killed")
                time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
        killed_at = len(list(out.glob(".v.tiles/*.tile")))
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "killed_at": killed_at}


def digest(folder: Path) -> str:
    """Return the sum of all files of a folder and their names."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def one_to_one(truth: Path, found: Path, count: int) -> bool:
    """Tell whether each object of one label volume is just one of the other, voxel by voxel; ids are 1 to ``count``."""
    from pixvox.data.volumes.open import open_volume

    volumes, keys = (open_volume(truth), open_volume(found)), np.zeros(0, np.int64)
    rest = tuple(slice(0, length) for length in volumes[0].size[1:])
    for first in range(0, volumes[0].size[0], 64):
        region = (slice(first, min(first + 64, volumes[0].size[0])), *rest)
        a, b = (volume.read(region)[0].ravel().astype(np.int64) for volume in volumes)
        both = a << 32 | b
        keys = np.union1d(keys, both[np.flatnonzero(np.diff(both, prepend=-1))])
    keys = keys[keys > 0]
    first_ids, second_ids = keys >> 32, keys & 0xFFFFFFFF
    return (
        len(keys) == count
        and len(np.unique(first_ids)) == count
        and np.array_equal(np.unique(second_ids), np.arange(1, count + 1))
    )


def catalogue(folder: Path, file: Path) -> dict[str, Any]:
    """Catalogue the volume; return its crops and seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pixvox", "data", "index", str(folder), "--out", str(file), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.perf_counter() - start}


def main() -> None:
    """Write, catalogue, predict in every way, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512,1024,1024")
    parser.add_argument("--nuclei", type=int, default=25_000)
    parser.add_argument("--folder", type=Path, help="where files go; some 5 GB, removed at the end")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--predict", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.predict:
        predict(json.loads(given.predict))
        return
    from timing import write_json

    size = tuple(map(int, given.size.split(",")))
    base = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        results = measure(base, size, given.nuclei)
    finally:
        shutil.rmtree(base)
    if given.json:
        write_json(given.json, results)


def measure(base: Path, size: tuple[int, ...], nuclei: int) -> dict[str, Any]:
    """Return everything that is measured, and print it as it comes."""
    start = time.perf_counter()
    count = write(base / "data", size, nuclei)
    print(f"{size}, {count} nuclei, written in {time.perf_counter() - start:.0f} s", flush=True)
    listed = catalogue(base / "data", base / "v.sqlite")
    print(f"catalogued: {json.dumps(listed)}\n", flush=True)
    truth = base / "data" / "labels" / "v.ome.zarr"
    ways = [(tile, "serial", False) for tile in TILES]
    first = next(iter(TILES))
    ways += [(first, "processes", False), (first, "serial", True)]
    if importlib.util.find_spec("ray"):
        ways.append((first, "ray", False))
    rows, sums = [], {}
    print(
        "| windows | engine | one to one | same bytes | s | CPU s | peak MiB more than at first | of a block |"
    )
    print("|---|---|---|---|---:|---:|---:|---:|", flush=True)
    for i, (tile, engine, kill) in enumerate(ways):
        out = base / f"out{i}"
        row = run(truth, out, tile, engine, kill_after=len(_blocks(size, tile)) // 2 if kill else None)
        sums.setdefault(tile, digest(out))
        row |= {"tile": tile, "engine": engine, "same": digest(out) == sums[tile]}
        row["one_to_one"] = one_to_one(truth, out / "v_labels.ome.zarr", count) and row["objects"] == count
        rows.append(row)
        name = f"{engine}, killed after {row['killed_at']} blocks" if kill else engine
        print(
            f"| {tile} | {name} | {'yes' if row['one_to_one'] else 'NO'} | {'yes' if row['same'] else 'NO'} | "
            f"{row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['peak_mib'] - row['mib_before']:.0f} | "
            f"{_block_mib(size, tile):.0f} |",
            flush=True,
        )
        shutil.rmtree(out)
    return {"size": size, "nuclei": count, "catalogue": listed, "predictions": rows}


def _block_mib(size: tuple[int, ...], tile: str) -> float:
    """Return what docs/how-to/whole-volumes.md says of the memory of a block that is painted and measured."""
    blocks = _blocks(size, tile)
    kept = [length + 2 * margin for length, margin in zip(blocks.length, blocks.margin, strict=True)]
    return math.prod(kept) * 21 / 2**20


def _blocks(size: tuple[int, ...], tile: str) -> Any:
    from pixvox.inference.blocks import Blocks

    *lengths, overlap = TILES[tile]
    return Blocks(size, tuple(lengths), overlap)


if __name__ == "__main__":
    main()

"""A catalogue of a million crops: time to make and renew it, its size, and look-ups, as Markdown.

    python benchmarks/catalogue.py [--volumes 5] [--size 64,512,512] [--crop 16] [--overlap 0.75] [--json FILE]

Times are CPU seconds of one process. Look-ups are of random crops, and of crops that follow each other.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from timing import machine, write_json

from pixvox.data.volumes.catalogue import Catalogue
from pixvox.data.volumes.index import Indexed, build_catalogue

Result = TypeVar("Result")


def write_volume(
    folder: Path, number: int, size: tuple[int, ...], objects: int = 2000, radius: int = 8
) -> None:
    """Write balls at random places, and their label map."""
    random, side = np.random.default_rng(number), 2 * radius + 1
    axes = np.meshgrid(*[np.arange(-radius, radius + 1)] * 3, indexing="ij")
    ball = sum(axis**2 for axis in axes) <= radius**2
    labels = np.zeros(size, dtype=np.uint16)
    for i, corner in enumerate(random.integers(0, np.array(size) - side, (objects, 3)), 1):
        labels[tuple(slice(start, start + side) for start in corner)][ball] = i
    for name, values in (("labels", labels), ("images", (labels > 0) * np.uint8(200))):
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / f"v{number}.npy", values)


def seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the CPU time of a piece of work, and what it returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def look_ups(catalogue: Catalogue, count: int, follow: bool) -> dict[str, float]:
    """Return rows per second of crops, and of objects."""
    random, most = np.random.default_rng(0), len(catalogue)
    batches = []
    for _ in range(max(1, 20_000 // count)):
        first = int(random.integers(1, most - count))
        batches.append(np.arange(first, first + count) if follow else random.integers(1, most + 1, count))
    crops = min(seconds(lambda: [catalogue.crops(ids) for ids in batches])[0] for _ in range(5))
    objects, found = min(
        (seconds(lambda: sum(len(catalogue.objects(ids).ids) for ids in batches)) for _ in range(5)),
        key=lambda result: result[0],
    )
    return {"crops": len(batches) * count / crops, "objects": found / objects}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=5)
    parser.add_argument("--size", default="64,512,512")
    parser.add_argument("--crop", type=int, default=16)
    parser.add_argument("--overlap", type=float, default=0.75)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = tuple(int(length) for length in options.size.split(","))
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name), Path(name) / "c.sqlite"
        for number in range(options.volumes):
            write_volume(folder, number, size)

        def build() -> Indexed:
            return build_catalogue(folder, file, (options.crop,) * 3, options.overlap)

        made, first = seconds(build)
        again, _ = seconds(build)
        write_volume(folder, 0, size, objects=1900)
        one, _ = seconds(build)
        opened, catalogue = seconds(lambda: Catalogue(file))
        select, ids = seconds(lambda: catalogue.select("objects >= 2"))
        voxels = options.volumes * math.prod(size)
        results = {
            "volumes": options.volumes, "voxels": voxels, "crops": first.crops, "objects": first.objects,
            "mib": file.stat().st_size / 2**20, "build_s": made, "up_to_date_s": again, "one_changed_s": one,
            "open_s": opened, "select_s": select, "selected": len(ids),
        }  # fmt: skip
        print(
            f"\n{first.crops} crops and {first.objects} objects of {options.volumes} volumes of {options.size}"
        )
        print(f"made in {made:.1f} s ({1e6 * made / first.crops:.0f} us a crop), {results['mib']:.0f} MiB")
        print(
            f"up to date in {again:.2f} s, one volume changed {one:.1f} s, opened in {1000 * opened:.1f} ms"
        )
        print(f"{results['selected']} crops chosen by SQL in {select:.2f} s\n")
        print("| look-ups | crops/s | objects/s |\n|---|---:|---:|")
        for count in (1, 64, 1024):
            for follow in (False, True) if count > 1 else (False,):
                rates = look_ups(catalogue, count, follow)
                results[f"{count}{' in a row' if follow else ''}"] = rates
                title = f"{count} {'in a row' if follow else 'at random'}"
                print(f"| {title} | {rates['crops']:,.0f} | {rates['objects']:,.0f} |")
    facts = machine()
    print(f"\n{facts['processor']}, {facts['threads']} thread")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

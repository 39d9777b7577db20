"""Embryos from files to scores: tiled prediction of a trained model beside a tuned classical method.

    pixvox data index embryo3d_bbbc050/ --out embryos.sqlite --size 64,144,144 --cover --spacing 1.75,0.8,0.8
    pixvox train data=catalogue data.train.catalogue=embryos.sqlite experiment=embryos
    python benchmarks/embryos.py --data embryo3d_bbbc050/ --model runs/last [--json FILE]

The classical method: a difference of Gaussians above a threshold, cut by a watershed of the distance to the background
from its peaks. Its five parameters, and the model's least score of an object, are tuned on volumes of the training
split; figures are of the validation split.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from scipy import ndimage

import pixvox
from pixvox.metrics.volume_comparison import compare_volumes

SPACING = (1.75, 0.8, 0.8)
"""Micrometres, (z, y, x)."""

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Least scores of objects that are tried."""

SHOWN = ("precision_50", "recall_50", "PQ", "SEG", "AJI", "ARAND", "VOI", "recall_small", "centroid_F1")


def enhanced(image: np.ndarray, fine: float, coarse: float) -> np.ndarray:
    """Return the difference of two Gaussians (standard deviations in micrometres) of an image scaled by percentiles."""
    low, high = np.percentile(image, (1.0, 99.8))
    values = (image.astype(np.float32) - low) / max(high - low, 1.0)
    fine_one, coarse_one = (
        ndimage.gaussian_filter(values, [sigma / step for step in SPACING]) for sigma in (fine, coarse)
    )
    return np.asarray(fine_one - coarse_one)


def separated(values: np.ndarray, threshold: float, distance: float, least: int) -> np.ndarray:
    """Return objects above a threshold, cut between peaks that lie a distance (micrometres) apart."""
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    inside = ndimage.binary_fill_holes(values > threshold)
    depth = ndimage.distance_transform_edt(inside, sampling=SPACING)
    depth = ndimage.gaussian_filter(depth, [1.0 / step for step in SPACING])
    # The axes of the peaks' neighbourhood are those of voxels: as many of each as the distance has.
    window = np.ones([2 * math.ceil(distance / step) + 1 for step in SPACING], dtype=bool)
    peaks = peak_local_max(depth, footprint=window, labels=inside.astype(np.int32), exclude_border=False)
    seeds = np.zeros(values.shape, dtype=np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-depth, seeds, mask=inside)
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] >= least, labels, 0)


def pairs(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Return images and label maps of a split."""
    images = sorted((folder / "images" / split).glob("*.tif"))
    return [(image, folder / "labels" / split / image.name) for image in images]


def tuned(files: list[tuple[Path, Path]]) -> dict[str, float]:
    """Return the parameters with the best matched AP50 over all objects."""
    loaded = [(tifffile.imread(image), tifffile.imread(labels)) for image, labels in files]
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for fine, coarse in product((1.0, 1.6), (6.0, 10.0)):
        maps = [enhanced(image, fine, coarse) for image, _ in loaded]
        for threshold, distance, least in product((0.03, 0.06, 0.1, 0.15), (3.0, 4.5), (30, 80)):
            found = [separated(values, threshold, distance, least) for values in maps]
            rows = [_scores(mine, labels) for mine, (_, labels) in zip(found, loaded, strict=True)]
            score = pooled(rows)
            if score > best[0]:
                names = {"fine": fine, "coarse": coarse, "threshold": threshold, "distance": distance}
                best = (score, {**names, "least": least})
    return best[1]


def _scores(predicted: Any, true: Any) -> dict[str, Any]:
    return dict(compare_volumes(predicted, true, spacing=SPACING, distance=4.0))


def pooled(rows: Iterable[dict[str, Any]]) -> float:
    """Return matched AP50 of the objects of all volumes together."""
    found = predicted = true = 0.0
    for row in rows:
        found += round(row["recall_50"] * row["true_objects"]) if row["true_objects"] else 0
        predicted, true = predicted + row["predicted_objects"], true + row["true_objects"]
    return found / (predicted + true - found)


def predict(model: Any, folder: Path, tile: tuple[int, ...], image: Path, threshold: float) -> Any:
    """Segment a volume in windows, as ``pixvox predict`` does."""
    return model.predict_volume(image, folder, score_threshold=threshold, tile_size=tile, page=False)


def tuned_threshold(predict: Callable[[Path, float], Any], files: list[tuple[Path, Path]]) -> float:
    """Return the least score of an object with the best matched AP50 over all objects of some volumes."""
    rows: dict[float, list[dict[str, Any]]] = {threshold: [] for threshold in THRESHOLDS}
    for image, truth in files:
        result = predict(image, min(THRESHOLDS))
        labels = pixvox.open_volume(result.labels)
        ids = labels.read(tuple(slice(0, length) for length in labels.size))[0]
        with result.table.open() as file:
            scores = np.array([0.0, *(float(row["score"]) for row in csv.DictReader(file))])
        for threshold, found in rows.items():
            found.append(_scores(np.where(scores[ids] >= threshold, ids, 0), tifffile.imread(truth)))
    return max(rows, key=lambda threshold: pooled(rows[threshold]))


def measure(name: str, work: Callable[[Path], Any], files: list[tuple[Path, Path]]) -> dict[str, Any]:
    """Return the scores of a method, and print them as a row."""
    start, rows = time.process_time(), []
    for image, labels in files:
        rows.append(_scores(work(image), labels))
    seconds = (time.process_time() - start) / len(files)
    means = {key: float(np.nanmean([row[key] for row in rows])) for key in ("matched_AP50", *SHOWN)}
    shown = " | ".join(f"{means[key]:.3f}" for key in SHOWN)
    print(
        f"| {name} | {means['matched_AP50']:.3f} | {pooled(rows):.3f} | {shown} | {seconds:.1f} |", flush=True
    )
    return {"per_volume": rows, "mean": means, "pooled_AP50": pooled(rows), "cpu_seconds": seconds}


def main() -> None:
    """Tune the classical method, predict with both, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True, help="a run, checkpoint or folder")
    parser.add_argument("--tile", default="48,96,96", help="window of the tiled prediction")
    parser.add_argument("--tune", type=int, default=3, help="every so many-th training volume tunes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = pairs(given.data, "val")
    known = pairs(given.data, "train")[:: given.tune]
    model = pixvox.load(given.model)
    windows = {f"windows of {given.tile.replace(',', ' x ')}": tuple(map(int, given.tile.split(",")))}
    windows["whole volumes"] = (1024,) * 3
    chosen = tuned(known)
    print(f"difference of Gaussians: {json.dumps(chosen)}", flush=True)
    results: dict[str, Any] = {"parameters": chosen, "thresholds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, tile in windows.items():
            network = partial(predict, model, Path(folder), tile)
            results["thresholds"][name] = tuned_threshold(network, known)
    print(f"least scores of objects: {json.dumps(results['thresholds'])}\n")
    print(f"| {len(files)} volumes | matched AP50, mean | pooled | {' | '.join(SHOWN)} | CPU s a volume |")
    print("|---|" + "---:|" * (len(SHOWN) + 3))

    def classical(image: Path) -> np.ndarray:
        values = enhanced(tifffile.imread(image), chosen["fine"], chosen["coarse"])
        return separated(values, chosen["threshold"], chosen["distance"], int(chosen["least"]))

    results["classical"] = measure("DoG and watershed, tuned", classical, files)
    with tempfile.TemporaryDirectory() as folder:
        for name, tile in windows.items():
            network = partial(predict, model, Path(folder), tile)
            least = results["thresholds"][name]
            results[name] = measure(f"pixvox, {name}", lambda image: network(image, least).labels, files)  # noqa: B023
    if given.json:
        from timing import write_json

        write_json(given.json, results)


if __name__ == "__main__":
    main()

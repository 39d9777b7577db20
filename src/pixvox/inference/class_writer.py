"""Class maps of volumes, written block by block from blended scores, and counted."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from pixvox.files import whole_file
from pixvox.inference.blended_scores import blended
from pixvox.inference.blocks import Block, Blocks
from pixvox.inference.stitched_objects import in_order
from pixvox.inference.tile_store import TileStore
from pixvox.progress import progress


def write_classes(
    blocks: Blocks, store: TileStore, class_map: Any, probabilities: Any = None, threads: int = 1
) -> Int[np.ndarray, " classes"]:
    """Write the class of each voxel and return how many voxels each class has.

    Args:
        blocks: Of the volume.
        store: As ``pixvox.inference.blended_scores.FindScores`` fills it.
        class_map: Array ``(*spatial)`` that takes ``class_map[region] = classes``, in whose chunks blocks begin and
            end.
        probabilities: Array ``(classes, *spatial)`` that takes the probability of each class; None leaves them out.
        threads: Blocks at a time.
    """

    def write(block: Block) -> np.ndarray:
        scores = blended(blocks, store, block)
        best = scores.argmax(axis=0)
        class_map[block.core] = best.astype(class_map.dtype)
        if probabilities is not None:
            shares = np.exp(scores - scores.max(axis=0))
            probabilities[(slice(None), *block.core)] = (shares / shares.sum(axis=0)).astype(
                probabilities.dtype
            )
        return np.bincount(best.ravel(), minlength=len(scores))

    counts = progress(in_order(threads, write, blocks), len(blocks), "writing")
    return np.asarray(sum(counts))


def save_class_table(
    counts: Int[np.ndarray, " classes"],
    class_names: Sequence[str],
    path: Path,
    spacing: Sequence[float] | None = None,
    unit: str = "um",
) -> Path:
    """Write a CSV file with a row per class; its columns are those of ``pixvox.inference.results.table``."""
    total = max(1, int(counts.sum()))
    header = [
        "id",
        "class",
        "size",
        "share",
        *([f"size_{unit}{len(spacing)}"] if spacing is not None else []),
    ]
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for label, count in enumerate(counts.tolist()):
            name = class_names[label] if label < len(class_names) else str(label)
            row = [label, name, count, round(count / total, 6)]
            writer.writerow(
                row if spacing is None else [*row, float(f"{count * float(np.prod(spacing)):.6g}")]
            )
    return path

"""Class maps of volumes, written block by block from blended scores, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

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


def class_table(
    counts: Int[np.ndarray, " classes"],
    class_names: Sequence[str],
    spacing: Sequence[float] | None = None,
    unit: str = "um",
) -> dict[str, Any]:
    """Return the columns of a table with a row per class; they are those of ``pixvox.inference.results.table``.

    Args:
        counts: Voxels of each class.
        class_names: Names by class index.
        spacing: Of a voxel in array order, or None.
        unit: Of the spacing.

    Example:
        >>> class_table(np.array([3, 1]), ["background", "cell"])["share"].tolist()
        [0.75, 0.25]
    """
    columns: dict[str, Any] = {
        "id": np.arange(len(counts)),
        "class": [class_names[i] if i < len(class_names) else str(i) for i in range(len(counts))],
        "size": counts,
        "share": (counts / max(1, int(counts.sum()))).round(6),
    }
    if spacing is not None:
        voxel = float(np.prod(spacing))
        columns[f"size_{unit}{len(spacing)}"] = np.array([float(f"{n * voxel:.6g}") for n in counts.tolist()])
    return columns

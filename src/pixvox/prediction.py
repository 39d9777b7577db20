"""Segment files with a trained model and write the results: what ``pixvox predict`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pixvox.errors import DataError
from pixvox.evaluation import confident, default_device
from pixvox.structures import Segmentation


def predict_files(
    run: str | Path, inputs: Sequence[str | Path], out: str | Path, threshold: float | None = None
) -> list[dict[str, Any]]:
    """Segment images, volumes and folders; write label map, COCO file or table, and overlay of each.

    Args:
        run: A run folder or checkpoint.
        inputs: Files and folders.
        out: Folder for the results.
        threshold: Objects with a lower score are left out, in [0, 1].

    Returns:
        For each image its source, what was found, and the files written.

    Raises:
        DataError: If an input does not exist or cannot be read.
    """
    from pixvox.weights import load

    for path in inputs:
        if not Path(path).exists():
            raise DataError(f"{path}: there is no such file or folder")
    model = load(run).to(default_device())
    rows: list[dict[str, Any]] = []
    for path in inputs:
        found = model.predict(str(path))
        for result in found if isinstance(found, list) else [found]:
            result = result if threshold is None else confident(result, threshold)
            files = result.save(out)
            source = result.source or str(path)
            rows.append({"source": source, "found": _found(result), "files": [str(file) for file in files]})
    return rows


def _found(result: Segmentation) -> str:
    if result.instances is not None:
        return f"{len(result.instances)} objects"
    classes = torch.unique(result.class_map).tolist() if result.class_map is not None else []
    names = [result.class_names[i] if i < len(result.class_names) else str(i) for i in classes]
    return ", ".join(names) or "nothing"

"""Factors of classes in a loss, from how many pixels or voxels each class has in the training images."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pixvox.data.cache import cache_folder, file_state
from pixvox.data.dataset import Dataset
from pixvox.data.identity import identity
from pixvox.data.loader import leave_interrupts_to_parent, without_traceback
from pixvox.data.views import read_sample
from pixvox.errors import DataError, PixvoxError
from pixvox.files import whole_file
from pixvox.signatures import nearest

logger = logging.getLogger(__name__)

ClassWeighting = Literal["inverse", "sqrt", "log", "effective"]
"""Words that a training turns into class weights; see ``class_weights``."""

WEIGHTINGS: tuple[str, ...] = typing.get_args(ClassWeighting)

_TELL_EVERY = 10.0  # seconds


def class_weights(pixels: Sequence[int], weighting: ClassWeighting, absent: Literal[0, 1] = 1) -> list[float]:
    """Return a factor for each class that is 1 for a class of median size and larger for rarer ones.

    With n the pixels of a class and m their median over the classes that are present:

    - ``"inverse"``: m / n, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale
      Convolutional Architecture" (Eigen & Fergus, 2015, https://arxiv.org/abs/1411.4734);
    - ``"sqrt"``: its square root, which is milder;
    - ``"log"``: log m / log n, milder still; one pixel counts as two, whose logarithm is not 0;
    - ``"effective"``: the first for E = (1 - beta^n) / (1 - beta) instead of n, with beta = 1 - 1 / m:
      "Class-Balanced Loss Based on Effective Number of Samples" (Cui et al., 2019,
      https://arxiv.org/abs/1901.05555). Classes above the median count nearly alike.

    Args:
        pixels: Of each class, as ``count_pixels`` returns them.
        weighting: One of the four.
        absent: Weight of classes without a pixel.

    Raises:
        ValueError: If there is no such weighting, or no class has a pixel.

    Example:
        >>> class_weights([400, 100, 25, 0], "sqrt")
        [0.5, 1.0, 2.0, 1.0]
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(
            f"class_weights={weighting!r}: there is no such weighting; {nearest(str(weighting), WEIGHTINGS)}"
        )
    counts = np.asarray(pixels, dtype=np.float64)
    present = counts > 0
    if not present.any():
        raise ValueError("class weights need pixels of one class at least, and there are none")
    sizes = counts[present]
    median = np.median(sizes, keepdims=True)
    if weighting == "effective":
        sizes = _effective_numbers(sizes, float(median[0]))
        median = np.median(sizes, keepdims=True)
    elif weighting == "sqrt":
        sizes, median = np.sqrt(sizes), np.sqrt(median)
    elif weighting == "log":
        sizes, median = np.log(np.maximum(sizes, 2)), np.log(np.maximum(median, 2))
    weights = np.full(len(counts), float(absent))
    weights[present] = median / sizes
    return [float(weight) for weight in weights]


def _effective_numbers(sizes: np.ndarray, median: float) -> np.ndarray:
    """Return E of each class up to a factor of all; in this form small differences of large classes are kept."""
    if median <= 1:  # beta is 0: a class is one sample, however many pixels it has
        return np.ones_like(sizes)
    return np.asarray(-np.expm1(sizes * np.log1p(-1 / median)))


def count_pixels(
    dataset: Dataset, num_workers: int = 0, skip_bad: bool = False, folder: str | Path | None = None
) -> list[int]:
    """Return how many pixels or voxels each class has in a dataset; ignored ones and unlabelled images do not count.

    Every image is read once, as it is without augmentation. The counts are kept in a file that belongs to one state
    of the dataset: other options, images or source files (size or time of change) have counts of their own.

    Args:
        dataset: With class maps.
        num_workers: Processes that read.
        skip_bad: Leave images out that cannot be read instead of raising.
        folder: Where the counts are kept; the user's cache folder when None.

    Raises:
        DataError: If an image cannot be read, or has no class map, or none is labelled.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> shapes = Shapes(2, seed=0, image_size=32, radius=(4, 8), task="semantic")
        >>> sum(count_pixels(shapes, folder=mkdtemp())) == 2 * 32 * 32
        True
    """
    key = hashlib.sha256(json.dumps(identity(dataset), sort_keys=True).encode()).hexdigest()
    stamp: dict[str, Any] = {
        "dataset": key,
        "files": file_state(dataset),
        "class_names": list(dataset.metadata.class_names),
    }
    file = Path(folder or cache_folder()) / f"class_pixels-{key[:16]}.json"
    counts = _read(file, stamp)
    if counts is None:
        counts = _count(dataset, num_workers, skip_bad)
        _write(file, {**stamp, "pixels": counts})
    return counts


class _PixelCounts(TorchDataset[Tensor]):
    """Pixels of each class in the images of a dataset.

    Args:
        dataset: With class maps.
        indices: Of its labelled images.
        skip_bad: Count nothing where an image cannot be read.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], skip_bad: bool) -> None:
        self.dataset = dataset
        self.indices = indices
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Tensor:
        classes = self.dataset.metadata.num_classes
        try:
            sample = read_sample(self.dataset, self.indices[place])
        except DataError as error:
            if not self.skip_bad:
                raise
            logger.warning("not counted: %s", error)
            return torch.zeros(classes, dtype=torch.int64)
        if sample.class_map is None:
            raise DataError(f"{sample.source} has no class map, whose pixels class weights are found from")
        known = sample.class_map[sample.class_map != sample.ignore_index]
        return torch.bincount(known.flatten(), minlength=classes)[:classes]


def _count(dataset: Dataset, num_workers: int, skip_bad: bool) -> list[int]:
    """Count, and tell from time to time how far it is."""
    name, missing = dataset.metadata.name or "the dataset", set(dataset.unlabelled_indices())
    labelled = [index for index in range(len(dataset)) if index not in missing]
    loader: DataLoader[Tensor] = DataLoader(
        _PixelCounts(dataset, labelled, skip_bad),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=leave_interrupts_to_parent,
        generator=torch.Generator(),  # its own: counting must not move the global one
    )
    total = torch.zeros(dataset.metadata.num_classes, dtype=torch.int64)
    begun = told = time.monotonic()
    try:
        for done, counts in enumerate(loader, start=1):
            total += counts
            if time.monotonic() - told > _TELL_EVERY:
                told = time.monotonic()
                logger.info("class weights: %d of %d images counted", done, len(labelled))
    except PixvoxError as error:
        raise without_traceback(error) from None
    if not total.any():
        raise DataError(f"{name} has no labelled pixel, from which class weights could be found")
    logger.info("class weights: %d images counted in %.0f s", len(labelled), time.monotonic() - begun)
    return [int(count) for count in total]


def _read(file: Path, stamp: dict[str, Any]) -> list[int] | None:
    """Return the counts of a file that belongs to ``stamp``; None when there is none."""
    try:
        content = json.loads(file.read_text())
        counts = [int(count) for count in content.pop("pixels")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return counts if content == stamp else None


def _write(file: Path, content: dict[str, Any]) -> None:
    """Keep counts for the next training; where that cannot be done they are counted again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            part.write_text(json.dumps(content) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next training counts again", file, error)

"""A 2-D model segments a volume plane by plane: objects of neighbouring planes are joined, class scores averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int

from pixvox.data.sample import Sample
from pixvox.errors import ConfigError, DataError
from pixvox.inference.stitching import Pieces, join, match
from pixvox.inference.windows import volume_range, window_of

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor
    from pixvox.structures import Segmentation

_AXES = "zyx"


def predict_planes(
    predictor: Predictor, volume: Volume, planes: Sequence[str] | None = None, join_iou: float = 0.25
) -> Int[np.ndarray, "depth height width"]:
    """Return the objects of a volume, 1 and up, or its classes, as a 2-D model sees them in planes.

    Objects are joined from plane to plane along one axis; two that a plane tells apart stay so. Classes are those of
    the highest mean probability over planes across all axes that are named. All planes are normalised by the
    intensities of the whole volume. Memory holds the result, 4 bytes a voxel, and for classes their probabilities, 4
    bytes each.

    Args:
        predictor: Of a 2-D model.
        volume: What ``pixvox.open_volume`` returns.
        planes: Axes across which planes are cut: for objects one, ``["z"]`` by default; for classes all three.
        join_iou: Least intersection over union of an object in one plane and in the next, in (0, 1].

    Raises:
        ConfigError: If the axes or ``join_iou`` are none, or objects are asked for along several.
        DataError: If the model is not for images, or the volume is a slide.
    """
    of_classes = predictor.model.task == "semantic"
    axes = list(planes if planes is not None else (_AXES if of_classes else "z"))
    if not axes or len({*axes}) < len(axes) or not {*axes} <= {*_AXES}:
        raise ConfigError(f"planes={axes}: name axes across which planes are cut, as in [z,y,x] or [z]")
    if not of_classes and len(axes) > 1:
        raise ConfigError(
            f"planes={axes}: objects are joined along one axis, as in [z]; only classes are averaged"
        )
    if not 0 < join_iou <= 1:
        raise ConfigError(
            f"join_iou is the overlap from which objects of two planes are one, in (0, 1]; got {join_iou}"
        )
    if predictor.model.spatial_dims != 2 or volume.spatial_dims != 3:
        raise DataError(
            f"planes are what a 2-D model sees of a volume; this model is {predictor.model.spatial_dims}-D, "
            f"{volume.source} {volume.spatial_dims}-D: use predict or predict_volume"
        )
    return _classes(predictor, volume, axes) if of_classes else _objects(predictor, volume, axes[0], join_iou)


def _objects(predictor: Predictor, volume: Volume, letter: str, join_iou: float) -> Int[np.ndarray, "z y x"]:
    labels = np.zeros(volume.size, dtype=np.int32)
    by_plane = np.moveaxis(labels, _AXES.index(letter), 0)
    blocks, sizes, pairs, first = [], [], [], 0
    for number, result in enumerate(_results(predictor, volume, letter)):
        plane = by_plane[number]
        plane[:] = result.label_map().numpy()
        count = int(plane.max())
        sizes.append(np.bincount(plane.reshape(-1), minlength=count + 1)[1:])
        blocks.append(np.full(count, number))
        if number:
            found = match(by_plane[number - 1], plane, join_iou)
            before = first - len(blocks[-2])
            pairs.append(np.stack([found.first - 1 + before, found.second - 1 + first, found.iou]))
        first += count
    pieces = Pieces(np.concatenate(blocks), np.concatenate(sizes), np.zeros((0, 3), dtype=np.int64))
    joined = np.concatenate(pairs, axis=1) if pairs else np.zeros((3, 0))
    ids = join(pieces, joined[0].astype(np.int64), joined[1].astype(np.int64), joined[2]) + 1
    first = 0
    for plane, own in zip(by_plane, blocks, strict=True):
        table = np.concatenate([[0], ids[first : first + len(own)]]).astype(np.int32)
        plane[:] = table[plane]
        first += len(own)
    return labels


def _classes(predictor: Predictor, volume: Volume, letters: Sequence[str]) -> Int[np.ndarray, "z y x"]:
    total: np.ndarray = np.zeros(0)
    head = predictor.model.head
    before, head.gives_probabilities = head.gives_probabilities, True
    try:
        for letter in letters:
            for number, result in enumerate(_results(predictor, volume, letter)):
                if result.probabilities is None:
                    raise ConfigError(
                        "this model gives no probabilities of classes, so planes cannot be averaged"
                    )
                scores = result.probabilities.float().numpy()
                if not total.size:
                    total = np.zeros((len(scores), *volume.size), dtype=np.float32)
                np.moveaxis(total, 1 + _AXES.index(letter), 1)[:, number] += scores
    finally:
        head.gives_probabilities = before
    return np.asarray(total.argmax(axis=0), dtype=np.int32)


def _results(predictor: Predictor, volume: Volume, letter: str) -> Iterator[Segmentation]:
    """Yield the result of each plane; as many as are predicted at once are in memory."""
    samples = _samples(predictor, volume, _AXES.index(letter))
    while batch := list(islice(samples, predictor.batch_size)):
        yield from predictor.predict_samples(batch)


def _samples(predictor: Predictor, volume: Volume, axis: int) -> Iterator[Sample]:
    channels = predictor.model.in_channels
    limits = volume_range(volume, channels)
    spacing = None if volume.spacing is None else (*volume.spacing[:axis], *volume.spacing[axis + 1 :])
    for number in range(volume.size[axis]):
        region = [slice(0, length) for length in volume.size]
        region[axis] = slice(number, number + 1)
        values = window_of(volume, tuple(region), channels).squeeze(1 + axis)
        yield Sample(
            torch.from_numpy(np.ascontiguousarray(values)),
            spacing=spacing,
            unit=volume.unit,
            source=f"{volume.source}[{_AXES[axis]}={number}]",
            index=number,
            intensity_range=limits,
        )

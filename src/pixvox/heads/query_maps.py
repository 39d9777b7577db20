"""From masks of queries to one map: of classes, or of panoptic segments. And from class maps to masks to learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.heads.query_crops import MapFrame
from pixvox.heads.query_predictions import QueryMasks
from pixvox.structures import IGNORE_INDEX, Geometry, Instances, Masks, Segmentation

_CHUNK = 2**22  # elements of the float32 maps that exist at one time: 16 MiB


def masks_of_classes(
    class_map: Int[Tensor, "*spatial"], valid_size: Sequence[int], num_classes: int
) -> Instances:
    """Return one instance per class that is present; what is ignored, and padding, is an ignored one.

    Args:
        class_map: Classes, with ``IGNORE_INDEX`` (255) where they are unknown.
        valid_size: The part that is not padding, in array order.
        num_classes: Classes of the data.

    Raises:
        ValueError: If a label is neither a class nor ``IGNORE_INDEX``.

    Example:
        >>> instances = masks_of_classes(torch.tensor([[0, 0, 2, 255]]), (1, 4), num_classes=3)
        >>> instances.labels.tolist(), instances.masks.areas().tolist(), instances.ignore.tolist()
        ([0, 2, 0], [2, 1, 1], [False, False, True])
    """
    known = class_map.to(torch.int64)
    for axis, length in enumerate(valid_size):
        if length < known.shape[axis]:
            known = known.narrow(axis, 0, length)
    present = torch.unique(known)
    strange = present[((present < 0) | (present >= num_classes)) & (present != IGNORE_INDEX)].tolist()
    if strange:
        raise ValueError(
            f"the class map holds {strange[:5]}, but there are {num_classes} classes: 0 to {num_classes - 1}, and "
            f"{IGNORE_INDEX} for what is not known; set num_classes, or map the labels of the data"
        )
    ids = present + 1  # zero is background to label maps
    parts = Masks.from_label_map(known + 1, ids)
    masks = Masks(parts.data, parts.origins, parts.shapes, tuple(class_map.shape))
    ignore = present == IGNORE_INDEX
    return Instances(masks=masks, labels=present.masked_fill(ignore, 0), ignore=ignore)


def class_map_of(
    masks: QueryMasks, image: int, scores: Float[Tensor, "queries classes"], frame: MapFrame
) -> Int[Tensor, "*spatial"]:
    """Return the class of each original pixel: the one with the largest sum of class times mask probability.

    Args:
        masks: Masks of the queries, of all images.
        image: Which image.
        scores: Class probabilities of its queries.
        frame: From the grid to the original.
    """
    return torch.cat([slab.argmax(dim=0) for slab in _class_slabs(masks, image, scores, frame)])


def class_probabilities_of(
    masks: QueryMasks, image: int, scores: Float[Tensor, "queries classes"], frame: MapFrame
) -> Float[Tensor, "classes *spatial"]:
    """Return those sums as shares of their total where that is above 1; arguments as for ``class_map_of``.

    Where no query is, they stay below 1: the rest is what nothing was said of.
    """
    sums = torch.cat(list(_class_slabs(masks, image, scores, frame)), dim=1)
    return sums / sums.sum(dim=0).clamp(min=1)


def _class_slabs(
    masks: QueryMasks, image: int, scores: Float[Tensor, "queries classes"], frame: MapFrame
) -> Iterator[Float[Tensor, "classes *slab"]]:
    for logits in _slabs(masks, image, torch.arange(len(scores), device=scores.device), frame):
        yield torch.einsum("qc,q...->c...", scores, logits.sigmoid())


def panoptic_of(
    masks: QueryMasks,
    image: int,
    scores: Float[Tensor, "queries classes"],
    frame: MapFrame,
    is_thing: Sequence[bool],
    segment_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
) -> Segmentation:
    """Return segments that do not overlap: each pixel goes to the query of the best score times probability.

    The rule of "Per-Pixel Classification is Not All You Need" (Cheng et al., 2021, https://arxiv.org/abs/2107.06278),
    section 3.4: a query that keeps too little of its own mask goes, and queries of one stuff class are one segment.

    Args:
        masks: Masks of the queries, of all images.
        image: Which image.
        scores: Class probabilities of its queries.
        frame: From the grid to the original.
        is_thing: For each class whether its objects are told apart.
        segment_threshold: Queries of this score or less take no part.
        overlap_threshold: Least share of its own mask that a query must keep.
    """
    best, labels = scores.max(dim=1)
    queries = (best > segment_threshold).nonzero()[:, 0]
    best, labels = best[queries], labels[queries]
    order = best.argsort(descending=True, stable=True)
    queries, best, labels = queries[order], best[order], labels[order]
    winners, kept, own = _contest(masks, image, queries, best, frame)
    # Winners count from 1, 0 is no query's. Without a pixel of their own mask they fall out of the map anyway.
    lasting = (kept > 0) & (kept >= overlap_threshold * own)
    lasting &= winners.flatten().bincount(minlength=len(queries) + 1)[1:] > 0
    segment_of = _numbers(labels.tolist(), lasting.tolist(), is_thing)
    table = torch.tensor([0, *segment_of], device=winners.device)
    return _panoptic(table[winners.long()], segment_of, labels, best, is_thing, frame.geometry)


def _slabs(
    masks: QueryMasks, image: int, queries: Int[Tensor, " chosen"], frame: MapFrame
) -> Iterator[Float[Tensor, "chosen *slab"]]:
    """Return the logits of some queries at the original pixels, a few rows of the first axis at a time."""
    first, *others = frame.matrices(queries.device)
    rows = max(1, _CHUNK // max(1, len(queries) * math.prod(len(matrix) for matrix in others)))
    maps = masks.of_image(image, queries)
    for start in range(0, len(first), rows):
        matrix = first[start : start + rows]
        cells = matrix.any(dim=0).nonzero()[:, 0]
        near = slice(int(cells[0]), int(cells[-1]) + 1)
        slab = torch.tensordot(maps[:, near], matrix[:, near], dims=([1], [1]))
        for matrix in others:
            # The axis in work is the first one after the queries, and leaves as the last one.
            slab = torch.tensordot(slab, matrix, dims=([1], [1]))
        yield slab


def _contest(
    masks: QueryMasks, image: int, queries: Tensor, best: Tensor, frame: MapFrame
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the winner of each pixel, from 1, and how much each query won and had."""
    if len(queries) == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=queries.device)
        size = frame.geometry.original_size
        return torch.zeros(size, dtype=torch.int32, device=queries.device), nothing, nothing
    kept = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    own = torch.zeros_like(kept)
    parts = []
    for logits in _slabs(masks, image, queries, frame):
        inside = logits >= 0
        own += inside.flatten(1).sum(dim=1)
        weight = best.reshape(-1, *(1,) * (logits.ndim - 1))
        winner = (logits.sigmoid() * weight).argmax(dim=0)
        kept += winner.flatten().bincount(minlength=len(queries))
        certain = inside.gather(0, winner[None])[0]
        parts.append(((winner + 1) * certain).int())
    return torch.cat(parts), kept, own


def _numbers(labels: Sequence[int], lasting: Sequence[bool], is_thing: Sequence[bool]) -> list[int]:
    """Return the segment of each query, from 1, best first; 0 for those that do not last."""
    stuff: dict[int, int] = {}
    numbers, count = [], 0
    for label, lasts in zip(labels, lasting, strict=True):
        if not lasts:
            numbers.append(0)
        elif label in stuff:
            numbers.append(stuff[label])
        else:
            count += 1
            numbers.append(count)
            if not is_thing[label]:
                stuff[label] = count
    return numbers


def _panoptic(
    ids: Int[Tensor, "*spatial"],
    segment_of: Sequence[int],
    labels: Tensor,
    scores: Tensor,
    is_thing: Sequence[bool],
    geometry: Geometry,
) -> Segmentation:
    """Return the segments as instances, as a class map, and as a list."""
    count = max(segment_of, default=0)
    first = [segment_of.index(number) for number in range(1, count + 1)]
    labels, scores = labels[first], scores[first]
    instances = Instances(
        masks=Masks.from_label_map(ids, range(1, count + 1)), labels=labels, scores=scores, size=ids.shape
    )
    classes = torch.cat([labels.new_full((1,), IGNORE_INDEX), labels])
    segments: list[dict[str, Any]] = [
        {"id": number, "category_id": label, "isthing": bool(is_thing[label]), "score": score}
        for number, label, score in zip(range(1, count + 1), labels.tolist(), scores.tolist(), strict=True)
    ]
    return Segmentation(instances=instances, class_map=classes[ids], segments=segments, geometry=geometry)

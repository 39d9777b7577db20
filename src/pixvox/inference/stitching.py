"""Objects of blocks become objects of the volume: the same object has one id on both sides of a border.

Neighbours both keep what they found within a margin of their border. What they say of that place is compared: two
objects of which nearly the same voxels were found there are one. Touching objects share a surface, not voxels, so
they stay apart; and whatever chain of neighbours suggests it, two objects that one block told apart are never joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, Integer

from pixvox.ops.label_maps import overlaps

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Pairs of objects of two blocks, by their ids there.

    Args:
        first: Ids in the first block, 1 and up.
        second: Ids in the second block.
        iou: Intersection over union in the place that both keep.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    iou: Float[np.ndarray, " pairs"]


def match(
    first: Integer[np.ndarray, "*shared"], second: Integer[np.ndarray, "*shared"], threshold: float = 0.5
) -> Matches:
    """Return which objects of two blocks are one, by what both say of the place that they share.

    Args:
        first: Labels of that place in the first block, 0 where nothing was found.
        second: Labels in the second block.
        threshold: Least intersection over union there, in (0, 1].

    Example:
        >>> pairs = match(np.array([[1, 1, 0, 2]]), np.array([[3, 3, 4, 4]]))
        >>> pairs.first.tolist(), pairs.second.tolist(), pairs.iou.tolist()
        ([1, 2], [3, 4], [1.0, 0.5])
    """
    found = overlaps(first, second)
    together = found.first_sizes[found.first] + found.second_sizes[found.second] - found.counts
    iou = found.counts / together
    near = iou >= threshold
    return Matches(found.first[near], found.second[near], iou[near])


@dataclass(frozen=True)
class Pieces:
    """What blocks found, one row per object of a block, block by block and there by id.

    Args:
        block: Number of the block.
        core: Voxels in the block itself.
        outside: ``(piece, number of another block, voxels there)`` for what reaches into other blocks.
    """

    block: Int[np.ndarray, " pieces"]
    core: Int[np.ndarray, " pieces"]
    outside: Int[np.ndarray, "reaches 3"]

    def __len__(self) -> int:
        return len(self.block)


def join(
    pieces: Pieces,
    first: Int[np.ndarray, " pairs"],
    second: Int[np.ndarray, " pairs"],
    iou: Float[np.ndarray, " pairs"],
) -> Int[np.ndarray, " pieces"]:
    """Return for each piece the number of its object, counted from 0 in the order of the pieces.

    Where a chain of pairs would join two pieces of one block, its weakest pairs are given up.

    Args:
        pieces: All pieces.
        first: Piece of each pair.
        second: The other piece.
        iou: How much they agree.
    """
    objects = _components(len(pieces), first, second)
    torn = _holding_twice(objects, pieces.block)
    if len(torn):
        doubtful = np.isin(objects[first], torn)
        kept = _without_conflicts(pieces.block, first[doubtful], second[doubtful], iou[doubtful])
        chosen = np.flatnonzero(doubtful)[kept]
        sure = np.flatnonzero(~doubtful)
        links = np.concatenate([sure, chosen])
        objects = _components(len(pieces), first[links], second[links])
    _, where, numbers = np.unique(objects, return_index=True, return_inverse=True)
    rank = np.empty_like(where)
    rank[np.argsort(where, kind="stable")] = np.arange(len(where))
    return rank[numbers]


def number(pieces: Pieces, objects: Int[np.ndarray, " pieces"]) -> Int[np.ndarray, " pieces"]:
    """Return for each piece the id that its object has in the volume: 1 and up without gaps, 0 to leave it out.

    A block knows its own voxels best. An object stays when at least half of it lies in blocks that found it; the rest
    may lie in blocks that overlooked it. What lies mostly where others, who saw it better, did not find it is a
    fragment that a border has cut.

    Args:
        pieces: All pieces.
        objects: The object of each piece, as ``join`` gives them.
    """
    count = int(objects.max(initial=-1)) + 1
    seen = np.bincount(objects, pieces.core, minlength=count)
    piece, block, voxels = pieces.outside.T
    width = int(max(pieces.block.max(initial=0), block.max(initial=0))) + 1
    elsewhere = objects[piece] * width + block
    overlooked = ~np.isin(elsewhere, objects * width + pieces.block)
    keys, inverse = np.unique(elsewhere[overlooked], return_inverse=True)
    most = np.zeros(len(keys))
    np.maximum.at(most, inverse, voxels[overlooked])  # two blocks may say the same of a third
    unseen = np.bincount(keys // width, most, minlength=count)
    stays = (seen > 0) & (seen >= unseen)
    ids = np.where(stays, np.cumsum(stays), 0)
    return np.asarray(ids[objects], dtype=np.int64)


def _components(count: int, first: Ids, second: Ids) -> Ids:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def _holding_twice(objects: Ids, block: Ids) -> Ids:
    """Return the objects that hold two pieces of one block."""
    width = int(block.max(initial=0)) + 1
    keys, counts = np.unique(objects * width + block, return_counts=True)
    return np.unique(keys[counts > 1] // width)


def _without_conflicts(block: Ids, first: Ids, second: Ids, iou: npt.NDArray[np.float64]) -> Sequence[int]:
    """Choose pairs, the best first, that join no two pieces of one block."""
    parent: dict[int, int] = {}
    blocks: dict[int, set[int]] = {}

    def root(piece: int) -> int:
        while parent.setdefault(piece, piece) != piece:
            parent[piece] = parent[parent[piece]]
            piece = parent[piece]
        return piece

    chosen = []
    for pair in np.argsort(-iou, kind="stable").tolist():
        a, b = root(int(first[pair])), root(int(second[pair]))
        held, other = (blocks.setdefault(each, {int(block[each])}) for each in (a, b))
        if a != b and held & other:
            continue
        chosen.append(pair)
        if a != b:
            small, large = (a, b) if len(held) < len(other) else (b, a)
            parent[small] = large
            blocks[large] |= blocks.pop(small)
    return chosen

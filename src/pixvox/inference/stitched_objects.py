"""The objects of a volume, joined from what was found in its blocks, and painted block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from pixvox.inference.blocks import Block, Blocks, intersection, within
from pixvox.inference.stitching import Pieces, join, match, number
from pixvox.inference.tile_store import TileStore
from pixvox.ops.label_maps import fill_background, relabel


@dataclass(frozen=True)
class StitchedObjects:
    """The objects of a volume, and how blocks are painted with them.

    Args:
        blocks: Of the volume.
        store: What was found in each.
        starts: First piece of each block, and the number of all pieces at the end.
        ids: Id of each piece in the volume, 0 for fragments.
        classes: Class of each object, by id from 1 on.
        scores: Its score.
        fills: ``(block, piece)`` of objects that a block overlooked and its neighbours found.
    """

    blocks: Blocks
    store: TileStore
    starts: Int[np.ndarray, " blocks_and_end"]
    ids: Int[np.ndarray, " pieces"]
    classes: Int[np.ndarray, " objects"]
    scores: Float[np.ndarray, " objects"]
    fills: Int[np.ndarray, "fills 2"]

    @classmethod
    def of(
        cls, blocks: Blocks, store: TileStore, threshold: float = 0.5, threads: int = 1
    ) -> StitchedObjects:
        """Join what was found in the blocks.

        Args:
            blocks: All are in the store.
            store: As ``pixvox.inference.tile_objects.TileObjects`` fills it.
            threshold: Least intersection over union at which two objects of neighbours are one, in (0, 1].
            threads: That read and compare blocks.
        """
        columns = list(in_order(threads, store.columns, blocks))
        counts = [len(each["core"]) for each in columns]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        reaches = [each["reaches"] + [first, 0, 0] for each, first in zip(columns, starts[:-1], strict=True)]
        pieces = Pieces(
            block=np.repeat(np.arange(len(blocks)), counts),
            core=_joined(each["core"] for each in columns),
            outside=np.concatenate([np.zeros((0, 3), dtype=np.int64), *reaches]),
        )

        def compare(block: Block) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            return [
                _pairs(block, other, blocks, store, starts, threshold) for other in _following(block, blocks)
            ]

        found = [pairs for each in in_order(threads, compare, blocks) for pairs in each]
        first, second = (_joined(pairs[i] for pairs in found) for i in (0, 1))
        objects = join(pieces, first, second, np.concatenate([np.zeros(0), *(pairs[2] for pairs in found)]))
        ids = number(pieces, objects)
        best = _best_pieces(ids, pieces.core)
        return cls(
            blocks=blocks,
            store=store,
            starts=starts,
            ids=ids,
            classes=_joined(each["classes"] for each in columns)[best],
            scores=np.concatenate([np.zeros(0, np.float32), *(each["scores"] for each in columns)])[best],
            fills=_fills(pieces, objects, ids),
        )

    def __len__(self) -> int:
        return len(self.classes)

    def labels(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Return a block's voxels as places in a list of ids, 0 for none, and that list."""
        own = self._numbers(block)
        start, end = np.searchsorted(self.fills[:, 0], [block.number, block.number + 1])
        overlooked = self.fills[start:end, 1]
        present = np.unique(np.concatenate([own, self.ids[overlooked]]))
        present = present[present > 0]
        kind = np.uint16 if len(present) < 2**16 else np.uint32
        canvas = np.empty(tuple(part.stop - part.start for part in block.core), dtype=kind)
        for place, labels in self.store.pieces(block, block.core):
            relabel(labels, _places(own, present), canvas[within(place, block.core)])
        if len(overlooked):
            self._fill(canvas, block, overlooked, present)
        return canvas, present

    def _fill(self, canvas: np.ndarray, block: Block, overlooked: np.ndarray, present: np.ndarray) -> None:
        """Paint what neighbours found into the background of a block that overlooked it."""
        for other in self.blocks.neighbours(block):
            first, last = self.starts[other.number : other.number + 2]
            chosen = overlooked[(overlooked >= first) & (overlooked < last)]
            region = intersection(block.core, other.kept)
            if len(chosen) == 0 or region is None:
                continue
            numbers = np.zeros(last - first + 1, dtype=np.int64)
            numbers[chosen - first + 1] = self.ids[chosen]
            part = canvas[within(region, block.core)]
            fill_background(part, self.store.read(other, region), _places(numbers, present))

    def label_map(self) -> Integer[np.ndarray, "*size"]:
        """Return the ids of the whole volume, in memory."""
        whole = np.empty(self.blocks.size, dtype=np.int32)
        for block in self.blocks:
            places, present = self.labels(block)
            relabel(places, np.concatenate([[0], present]), whole[block.core])
        return whole

    def _numbers(self, block: Block) -> np.ndarray:
        """Return the id of each label of a block, that of the background in front."""
        first, last = self.starts[block.number : block.number + 2]
        return np.concatenate([[0], self.ids[first:last]])


def _places(numbers: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the place of each id in a list of ids, counted from 1; 0 stays 0."""
    return np.where(numbers > 0, np.searchsorted(present, numbers) + 1, 0)


def _following(block: Block, blocks: Blocks) -> Iterator[Block]:
    behind = (blocks.next_along(block, axis) for axis in range(len(blocks.grid)))
    return (other for other in behind if other is not None)


def _pairs(
    block: Block, other: Block, blocks: Blocks, store: TileStore, starts: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pieces of two neighbours that are one object, and how much they agree."""
    place = blocks.shared(block, other)
    found = match(store.read(block, place), store.read(other, place), threshold)
    return starts[block.number] + found.first - 1, starts[other.number] + found.second - 1, found.iou


def _best_pieces(ids: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Return for each object the piece with the most voxels in its own block: what is said of it is said of all."""
    order = np.lexsort((np.arange(len(ids)), -core, ids))
    order = order[ids[order] > 0]
    _, first = np.unique(ids[order], return_index=True)
    return order[first]


def _fills(pieces: Pieces, objects: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return block and piece, sorted, where an object reaches into a block that has no piece of it."""
    piece, block, _ = pieces.outside.T
    width = int(max(pieces.block.max(initial=0), block.max(initial=0))) + 1
    overlooked = ~np.isin(objects[piece] * width + block, objects * width + pieces.block)
    chosen = overlooked & (ids[piece] > 0)
    fills = np.stack([block[chosen], piece[chosen]], axis=1)
    return fills[np.lexsort((fills[:, 1], fills[:, 0]))]


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def in_order(threads: int, function: Callable[[Block], Any], blocks: Sequence[Block]) -> Iterator[Any]:
    """Yield what a function returns for each block, in the order of the blocks; a few are computed ahead."""
    if threads <= 1:
        yield from map(function, blocks)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Any]] = deque()
        for block in blocks:
            ahead.append(pool.submit(function, block))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

"""The objects that a network found in a window, as its block keeps them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from pixvox.inference.blocks import Block, Blocks, intersection, within
from pixvox.structures import Segmentation


@dataclass(frozen=True)
class TileObjects:
    """Objects of one block.

    Args:
        label_map: Objects 1 and up on what the block keeps, 0 elsewhere; each has at least one voxel.
        classes: Class of each object.
        scores: Its score, 1 where the model gives none.
        core: Its voxels in the block itself.
        reaches: ``(object, counted from 0, number of another block, voxels there)``.
    """

    label_map: Integer[np.ndarray, "*kept"]
    classes: Int[np.ndarray, " objects"]
    scores: Float[np.ndarray, " objects"]
    core: Int[np.ndarray, " objects"]
    reaches: Int[np.ndarray, "reaches 3"]

    @classmethod
    def of(cls, result: Segmentation, block: Block, blocks: Blocks) -> TileObjects:
        """Return what a block keeps of a result in the frame of its window.

        Raises:
            ValueError: If the result holds no masks.
        """
        if result.instances is None or result.instances.masks is None:
            raise ValueError("objects of blocks are joined by their masks, but these results have none")
        instances = result.instances.to("cpu")
        labels = result.label_map().numpy()[within(block.kept, block.window)]
        order = np.arange(len(instances))
        scores = np.ones(len(instances), dtype=np.float32)
        if instances.scores is not None:
            scores = instances.scores.float().numpy()
            order = instances.scores.argsort(descending=True, stable=True).numpy()  # as the label map counts
        classes = instances.labels.numpy().astype(np.int64)
        return cls.from_labels(labels, classes[order], scores[order], block, blocks)

    @classmethod
    def from_labels(
        cls, labels: np.ndarray, classes: np.ndarray, scores: np.ndarray, block: Block, blocks: Blocks
    ) -> TileObjects:
        """Return the objects of a label map ``(*kept)``; classes and scores are by label from 1 on.

        Labels without a voxel are left out, the others are numbered anew.
        """
        there = np.flatnonzero(np.bincount(labels.ravel(), minlength=len(classes) + 1)[1:])
        count = len(there)
        numbers = np.zeros(len(classes) + 1, dtype=np.uint16 if count < 2**16 else np.uint32)
        numbers[there + 1] = np.arange(1, count + 1)
        label_map = numbers[labels]
        reaches = chain.from_iterable(
            _reach(label_map, count, block, other) for other in blocks.neighbours(block)
        )
        return cls(
            label_map=label_map,
            classes=classes[there],
            scores=scores[there],
            core=_sizes(label_map[within(block.core, block.kept)], count),
            reaches=np.array(list(reaches), dtype=np.int64).reshape(-1, 3),
        )

    def without(self, missing: Bool[np.ndarray, "*kept"], block: Block, blocks: Blocks) -> TileObjects:
        """Return what is left where nothing is missing."""
        labels = np.where(missing, 0, self.label_map)
        return self.from_labels(labels, self.classes, self.scores, block, blocks)

    def columns(self) -> dict[str, np.ndarray]:
        """Return what is known of each object, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "label_map"}


def _reach(label_map: np.ndarray, count: int, block: Block, other: Block) -> list[tuple[int, int, int]]:
    """Return how far objects of a block reach into another."""
    common = intersection(block.kept, other.core)
    if common is None:
        return []
    sizes = _sizes(label_map[within(common, block.kept)], count)
    return [(int(i), other.number, int(sizes[i])) for i in np.flatnonzero(sizes)]


def _sizes(label_map: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(label_map.ravel(), minlength=count + 1)[1:].astype(np.int64)

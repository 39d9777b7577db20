"""Which predicted and which true objects meet, and in how many voxels: counted block by block, however large a volume.

What is kept grows with the objects and with the pairs that touch, not with the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Shaped

from pixvox.errors import DataError
from pixvox.metrics.metric import ratio
from pixvox.metrics.overlaps import Overlaps
from pixvox.structures import Size

_Ids = npt.NDArray[np.uint64]
_Sums = npt.NDArray[np.int64]

_LEAST_ROWS = 1 << 16
"""Rows that are gathered before equal pairs are added up again."""

_PIECE = 1 << 19
"""Voxels that are looked at together: what is made of them stays in the processor's cache."""


@dataclass(frozen=True)
class ContingencyTable:
    """Predicted and true objects of one image or volume, and the pairs of them that have common voxels.

    Ignored voxels count nowhere but in ``void``: not in sizes, pairs or centroids.

    Args:
        overlaps: Pairs and sizes in voxels; ids are those of the label maps.
        void: Voxels of each predicted object that are ignored.
        predicted_centroids: Mean coordinates of each predicted object in the unit of the spacing, in array order; NaN
            for objects that are ignored as a whole.
        true_centroids: The same of each true object.
        true_extents: Area or volume of each true object, in the unit of the spacing to the power of the axes (um^3).
        voxels: Voxels that are not ignored, background included.
    """

    overlaps: Overlaps
    void: Int[np.ndarray, " predictions"]
    predicted_centroids: Float[np.ndarray, "predictions axes"]
    true_centroids: Float[np.ndarray, "truths axes"]
    true_extents: Float[np.ndarray, " truths"]
    voxels: int

    @property
    def excused(self) -> Bool[np.ndarray, " predictions"]:
        """True for predictions with more than half of their voxels ignored: to match nothing is no error of theirs."""
        excused: npt.NDArray[np.bool_] = self.void > self.overlaps.predicted_sizes
        return excused


def side_by_side(tables: Sequence[ContingencyTable]) -> ContingencyTable:
    """Return one table of several volumes: none of their objects meet, and centroids stay in their own volume's frame.

    Args:
        tables: At least one, all of one number of axes.
    """
    parts = [table.overlaps for table in tables]
    rows = np.cumsum([0, *(len(part.predicted_sizes) for part in parts)])
    columns = np.cumsum([0, *(len(part.true_sizes) for part in parts)])
    return ContingencyTable(
        overlaps=Overlaps(
            predicted=np.concatenate([part.predicted + row for part, row in zip(parts, rows, strict=False)]),
            true=np.concatenate([part.true + column for part, column in zip(parts, columns, strict=False)]),
            counts=np.concatenate([part.counts for part in parts]),
            predicted_sizes=np.concatenate([part.predicted_sizes for part in parts]),
            true_sizes=np.concatenate([part.true_sizes for part in parts]),
            predicted_ids=np.arange(rows[-1]),
            true_ids=np.arange(columns[-1]),
        ),
        void=np.concatenate([table.void for table in tables]),
        predicted_centroids=np.concatenate([table.predicted_centroids for table in tables]),
        true_centroids=np.concatenate([table.true_centroids for table in tables]),
        true_extents=np.concatenate([table.true_extents for table in tables]),
        voxels=sum(table.voxels for table in tables),
    )


class ContingencyCounter:
    """Count the pairs of ids of two label maps, block by block; 0 is background.

    Args:
        spacing: Lengths of a voxel in array order, in any unit; None when unknown.
        ignore_ids: True ids that are neither right nor wrong, such as a crowd or a region that nobody labelled.

    Raises:
        DataError: If a length is not above 0, or an id below 0.

    Example:
        >>> counter = ContingencyCounter()
        >>> counter.add(np.array([[5, 5, 0]]), np.array([[1, 1, 1]]))
        >>> counter.add(np.array([[0, 9, 9]]), np.array([[0, 0, 2]]), origin=(1, 0))
        >>> table = counter.table()
        >>> table.overlaps.predicted_ids.tolist(), table.overlaps.true_ids.tolist(), table.overlaps.counts.tolist()
        ([5, 9], [1, 2], [2, 1])
        >>> table.predicted_centroids.tolist()
        [[0.0, 0.5], [1.0, 1.5]]
    """

    def __init__(self, spacing: Sequence[float] | None = None, ignore_ids: Sequence[int] = ()) -> None:
        if spacing is not None and not all(math.isfinite(step) and step > 0 for step in spacing):
            raise DataError(f"spacing is the length of a voxel per axis, above 0; got {tuple(spacing)}")
        if min(ignore_ids, default=0) < 0:
            raise DataError(f"ids to ignore are from 0 on, as those of label maps; got {list(ignore_ids)}")
        self.spacing = None if spacing is None else tuple(float(step) for step in spacing)
        self.ignore_ids = np.array(sorted(ignore_ids), dtype=np.uint64)
        self._axes = 0 if self.spacing is None else len(self.spacing)
        self._background = 0
        self._known, self._void = _PairSums(), _PairSums()

    def add(
        self,
        predicted: Shaped[np.ndarray, "..."],
        true: Shaped[np.ndarray, "..."],
        ignore: Bool[np.ndarray, "..."] | None = None,
        origin: Sequence[int] | None = None,
    ) -> None:
        """Count one block.

        Args:
            predicted: Ids, any integers from 0 on.
            true: Ids of the same block.
            ignore: True where the truth is unknown.
            origin: Where the block begins in the volume, in array order; by default at its first voxel.

        Raises:
            DataError: If sizes differ, or ids are negative or not integers.
        """
        self._check(predicted, true, ignore)
        if predicted.size == 0:
            return
        row = predicted.shape[-1]
        step = max(1, _PIECE // row) * row
        first, second = predicted.reshape(-1), true.reshape(-1)
        region = None if ignore is None else ignore.reshape(-1)
        begin = (0,) * predicted.ndim if origin is None else tuple(origin)
        for start in range(0, first.size, step):
            piece = slice(start, start + step)
            part = None if region is None else region[piece]
            self._add_rows(first[piece], second[piece], part, start, predicted.shape, begin)

    def _add_rows(
        self,
        first: Shaped[np.ndarray, " n"],
        second: Shaped[np.ndarray, " n"],
        region: Bool[np.ndarray, " n"] | None,
        offset: int,
        size: Size,
        origin: Sequence[int],
    ) -> None:
        """Count whole rows of a block of the given size, from the given place on in raster order."""
        starts = _run_starts(first, second, region, size[-1])
        lengths = np.diff(starts, append=first.size)
        first, second = _ids(first[starts], "prediction"), _ids(second[starts], "truth")
        void = np.isin(second, self.ignore_ids) if len(self.ignore_ids) else np.zeros(len(starts), dtype=bool)
        if region is not None:
            void |= region[starts]
        background = (first == 0) & (second == 0)
        self._background += int(lengths[background & ~void].sum())
        known, void = ~(background | void), void & (first != 0)
        sums = _run_sums(starts[known] + offset, lengths[known], size, origin)
        self._known.add(first[known], second[known], sums)
        if void.any():
            self._void.add(first[void], np.zeros_like(second[void]), lengths[void][None])

    def table(self) -> ContingencyTable:
        """Return what was counted so far."""
        first, second, sums = self._known.merged(1 + self._axes)
        void_first, _, void_sums = self._void.merged(1)
        nothing = np.zeros((len(sums), len(void_first)), dtype=np.int64)
        predicted_ids, predicted_sums = _by_id(
            np.concatenate([first, void_first]), np.concatenate([sums, nothing], axis=1)
        )
        true_ids, true_sums = _by_id(second, sums)
        void = np.zeros(len(predicted_ids), dtype=np.int64)
        void[np.searchsorted(predicted_ids, void_first)] = void_sums[0]
        both = (first != 0) & (second != 0)
        spacing = self.spacing or (1.0,) * self._axes
        return ContingencyTable(
            overlaps=Overlaps(
                predicted=np.searchsorted(predicted_ids, first[both]),
                true=np.searchsorted(true_ids, second[both]),
                counts=sums[0, both],
                predicted_sizes=predicted_sums[0],
                true_sizes=true_sums[0],
                predicted_ids=predicted_ids,
                true_ids=true_ids,
            ),
            void=void,
            predicted_centroids=ratio(predicted_sums[1:], predicted_sums[0]).T * spacing,
            true_centroids=ratio(true_sums[1:], true_sums[0]).T * spacing,
            true_extents=true_sums[0] * math.prod(spacing, start=1.0),
            voxels=int(sums[0].sum()) + self._background,
        )

    def _check(
        self, predicted: npt.NDArray[Any], true: npt.NDArray[Any], ignore: npt.NDArray[np.bool_] | None
    ) -> None:
        sizes = {predicted.shape, true.shape, *([] if ignore is None else [ignore.shape])}
        if len(sizes) > 1:
            raise DataError(
                f"a prediction of size {predicted.shape} and a truth of size {true.shape}"
                f"{'' if ignore is None else f' with an ignored region of size {ignore.shape}'} cannot be compared; "
                "bring all to one frame"
            )
        for labels, what in ((predicted, "prediction"), (true, "truth")):
            if labels.dtype.kind not in "iub":
                raise DataError(
                    f"the {what} holds {labels.dtype}; a label map holds the integer ids of its objects"
                )
        if self._axes not in (0, predicted.ndim):
            raise DataError(
                f"a block of {predicted.ndim} axes does not belong to a volume of {self._axes}; blocks and spacing "
                "have one number of axes"
            )
        self._axes = predicted.ndim


class _Sorted(NamedTuple):
    """Sums of each pair of ids, by ascending pair."""

    first: _Ids
    second: _Ids
    sums: _Sums


class _PairSums:
    """Sums by pair of ids, in not many more rows than there are pairs."""

    def __init__(self) -> None:
        self._parts: list[_Sorted] = []

    def add(self, first: _Ids, second: _Ids, sums: _Sums) -> None:
        """Add rows of ids and what belongs to them, ``(what, rows)``."""
        if not len(first):
            return
        self._parts.append(_by_pair(first, second, sums))
        rows = [len(part.first) for part in self._parts]
        # The longer the merged part, the rarer it is merged again: all merging costs as much as a few sorts.
        if sum(rows[1:]) > max(_LEAST_ROWS, rows[0]):
            self._parts = [self.merged(len(sums))]

    def merged(self, width: int) -> _Sorted:
        """Return one row per pair, with ``width`` sums."""
        if not self._parts:
            nobody = np.zeros(0, dtype=np.uint64)
            return _Sorted(nobody, nobody, np.zeros((width, 0), dtype=np.int64))
        if len(self._parts) > 1:
            first, second = (np.concatenate([part[i] for part in self._parts]) for i in (0, 1))
            sums = np.concatenate([part.sums for part in self._parts], axis=1)
            self._parts = [_by_pair(first, second, sums)]
        return self._parts[0]


def _ids(values: npt.NDArray[Any], what: str) -> _Ids:
    """Return ids as numbers without sign."""
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        raise DataError(
            f"the {what} holds the negative id {values.min()}; objects are numbered from 1, background is 0, and "
            "what is unknown in the truth is given as ignored"
        )
    return values.astype(np.uint64)


def _run_starts(
    first: Shaped[np.ndarray, " n"],
    second: Shaped[np.ndarray, " n"],
    region: Bool[np.ndarray, " n"] | None,
    row: int,
) -> Int[np.ndarray, " runs"]:
    """Return where runs of equal voxels begin: label maps are piecewise constant, runs are few.

    Runs of objects end with their row, so that the coordinates of their voxels are known; background goes on.
    """
    changes = np.empty(first.size, dtype=bool)
    changes[0] = True
    np.not_equal(first[1:], first[:-1], out=changes[1:])
    changes[1:] |= second[1:] != second[:-1]
    if region is not None:
        changes[1:] |= region[1:] != region[:-1]
    changes[::row] |= (first[::row] != 0) | (second[::row] != 0)
    return np.flatnonzero(changes)


def _run_sums(
    starts: Int[np.ndarray, " runs"],
    lengths: Int[np.ndarray, " runs"],
    size: Size,
    origin: Sequence[int],
) -> Int[np.ndarray, "sums runs"]:
    """Return the voxels of each run, and the sums of their coordinates, in array order: exact, as integers."""
    places = np.unravel_index(starts, size)
    sums = [lengths, *((place + shift) * lengths for place, shift in zip(places, origin, strict=True))]
    sums[-1] = sums[-1] + lengths * (lengths - 1) // 2
    return np.stack(sums)


def _by_pair(first: _Ids, second: _Ids, sums: _Sums) -> _Sorted:
    """Add up the sums of equal pairs of ids."""
    if max(int(first.max()), int(second.max())) < 1 << 32:
        order = np.argsort(first << np.uint64(32) | second)  # one key: twice as fast as two
    else:
        order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.flatnonzero((first[1:] != first[:-1]) | (second[1:] != second[:-1])) + 1
    starts = np.concatenate([[0], new])
    return _Sorted(first[starts], second[starts], np.add.reduceat(sums[:, order], starts, axis=1))


def _by_id(ids: _Ids, sums: _Sums) -> tuple[_Ids, _Sums]:
    """Add up the sums of equal ids, background left out."""
    real = ids != 0
    if not real.any():
        return ids[:0], sums[:, :0]
    totals = _by_pair(ids[real], np.zeros_like(ids[real]), sums[:, real])
    return totals.first, totals.sums

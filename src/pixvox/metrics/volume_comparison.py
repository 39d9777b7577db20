"""Two label maps on disk, compared block by block: neither has to fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from pixvox.data.volumes.open import open_volume
from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError
from pixvox.metrics.contingency import ContingencyCounter
from pixvox.metrics.object_scores import FIELD_THRESHOLDS
from pixvox.metrics.volume_scores import volume_scores
from pixvox.progress import progress as shown
from pixvox.structures import Size

BLOCK_VOXELS = 1 << 24
"""Voxels of a block when none is given: two blocks of 32-bit ids are 128 MiB."""


def compare_volumes(
    predicted: Any,
    true: Any,
    ignore: Any = None,
    ignore_ids: Sequence[int] = (),
    spacing: Sequence[float] | None = None,
    thresholds: Sequence[float] = FIELD_THRESHOLDS,
    distance: float | None = None,
    size_edges: Sequence[float] | None = None,
    block: int | Sequence[int] | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Return the scores of a predicted label map against the true one, read block by block.

    Memory holds one block of each, and what grows with the objects and the pairs of them that touch. Chunks that a
    Zarr store leaves out are background, as it does not write empty ones.

    Args:
        predicted: A ``Volume`` of ids, 0 is background; or what ``open_volume`` takes: a path or an array.
        true: The same of the truth, of the same size.
        ignore: The same of a map that is not 0 where the truth is unknown.
        ignore_ids: Ids of the truth that are neither right nor wrong.
        spacing: Lengths of a voxel in array order; None for what the truth's file says, or the prediction's.
        thresholds: IoU in (0, 1] over which the mean of the matched scores is taken.
        distance: How far apart matched centroids may be, in the unit of the spacing; None leaves them out.
        size_edges: Sizes that part the bins of the recall by size (um^3 or voxels); None for thirds.
        block: Lengths of a block in array order, or one for all axes; None for whole chunks of the files.
        progress: Tell how far it is: a bar on a terminal, a line in the log now and then elsewhere.

    Returns:
        Scores by name, as ``volume_scores`` tells them.

    Raises:
        DataError: If a file cannot be read, holds no label map, or sizes differ.

    Example:
        >>> import numpy as np
        >>> scores = compare_volumes(np.array([[5, 5, 0, 0]]), np.array([[1, 1, 0, 2]]), distance=1)
        >>> scores["matched_AP50"], scores["SEG"], scores["centroid_F1"].__round__(3)
        (0.5, 0.5, 0.667)
    """
    found, truth = _label_map(predicted), _label_map(true)
    region = None if ignore is None else _label_map(ignore)
    volumes = [found, truth, *([] if region is None else [region])]
    if len({volume.size for volume in volumes}) > 1:
        told = ", ".join(f"{volume.source} {volume.size}" for volume in volumes)
        raise DataError(f"label maps of one size can be compared, these differ: {told}")
    counter = ContingencyCounter(spacing or truth.spacing or found.spacing, ignore_ids)
    lengths = _block_size(truth.size, [volume.chunks for volume in volumes], block)
    places = regions(truth.size, lengths)
    for place in shown(places, len(places), "comparing") if progress else places:
        unknown = None if region is None else region.read(place)[0] != 0
        origin = [part.start for part in place]
        counter.add(found.read(place)[0], truth.read(place)[0], unknown, origin)
    return volume_scores([counter.table()], thresholds, distance, size_edges)


def regions(size: Size, block: Size) -> list[tuple[slice, ...]]:
    """Return the regions that fill a volume, at most as long as a block.

    Example:
        >>> [region[0] for region in regions((5,), (2,))]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    axes = [
        [slice(start, min(start + step, length)) for start in range(0, length, step)]
        for length, step in zip(size, block, strict=True)
    ]
    return list(product(*axes))


def _label_map(given: Any) -> Volume:
    """Open a label map, which has no channels."""
    if isinstance(given, Volume):
        volume = given
    else:
        axes = getattr(
            given, "ndim", None
        )  # all axes of an array are spatial; a file may say what its axes are
        volume = open_volume(given, spatial_dims=axes, allow_missing_chunks=True)
    if volume.channels != 1:
        raise DataError(
            f"{volume.source}: has {volume.channels} channels, a label map has one; where they are slices, say so: "
            "open_volume(..., axes='ZYX'), on the command line --axes ZYX"
        )
    return volume


def _block_size(size: Size, chunks: Sequence[Size | None], given: int | Sequence[int] | None = None) -> Size:
    """Return the lengths of a block: by default whole chunks of all files, as many as memory is meant for."""
    if given is not None:
        lengths = [given] * len(size) if isinstance(given, int) else list(given)
        if len(lengths) != len(size) or min(lengths) < 1:
            raise DataError(
                f"a block has a length above 0 for each of the {len(size)} axes, or one for all; got {given}"
            )
        return tuple(lengths)
    kept = [lengths or (1,) * len(size) for lengths in chunks]
    block = [min(length, max(axis)) for length, axis in zip(size, zip(*kept, strict=True), strict=True)]
    while (
        math.prod(block) > BLOCK_VOXELS
    ):  # chunks of these files together are too much: read some of them twice
        longest = block.index(max(block))
        block[longest] = -(-block[longest] // 2)
    for axis in reversed(range(len(size))):  # values of a row lie together
        block[axis] = min(size[axis], block[axis] * (BLOCK_VOXELS // math.prod(block)))
    return tuple(block)

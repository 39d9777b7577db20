"""The objects of a volume, painted block by block with their ids, written and measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvox.inference.blocks import Block
from pixvox.inference.object_table import ObjectTable
from pixvox.inference.stitched_objects import StitchedObjects, in_order
from pixvox.inference.windows import window_of
from pixvox.ops.label_maps import Shapes, relabel, shapes
from pixvox.progress import progress

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume


def write_objects(
    found: StitchedObjects,
    labels: Any,
    volume: Volume | None = None,
    in_channels: int = 1,
    class_names: Iterable[str] = (),
    threads: int = 1,
) -> ObjectTable:
    """Write the ids of all blocks and return the table of the objects.

    Args:
        found: The objects.
        labels: Array ``(*spatial)`` that takes ``labels[region] = ids``, in whose chunks blocks begin and end.
        volume: Its intensities are measured; None leaves them out.
        in_channels: Channels of these.
        class_names: Names by class index.
        threads: Blocks at a time.

    Raises:
        OverflowError: If the type of the array cannot hold all ids.
    """
    if len(found) > np.iinfo(labels.dtype).max:
        raise OverflowError(
            f"{len(found)} objects do not fit into {labels.dtype}; write the labels as uint32"
        )
    table = ObjectTable(
        found.classes,
        found.scores,
        found.blocks.size,
        0 if volume is None else in_channels,
        tuple(class_names),
        None if volume is None else volume.spacing,
        "um" if volume is None else volume.unit,
    )

    def write(block: Block) -> tuple[Block, np.ndarray, Shapes]:
        places, present = found.labels(block)
        image = None if volume is None else window_of(volume, block.core, in_channels)
        measured = shapes(places, len(present), image)
        ids = np.empty(places.shape, dtype=labels.dtype)
        relabel(places, np.concatenate([[0], present]), ids)
        labels[block.core] = ids
        return block, present, measured

    for block, present, measured in progress(
        in_order(threads, write, found.blocks), len(found.blocks), "writing"
    ):
        table.add(present, measured, block.core)
    return table

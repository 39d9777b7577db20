"""Volumes and slides that are larger than memory: segmented block by block, written as they are finished.

1. A network looks at window after window; the objects of each block are kept on disk, so that a run that was killed
   goes on where it was.
2. What neighbours found in the place they share tells which objects are one.
3. Each block is painted with the ids of the volume, measured and written.

The result depends neither on the order in which blocks are computed, nor on where, nor on interruptions: the same
bytes are written.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pixvox.errors import ConfigError, DataError
from pixvox.inference.blocks import Block, Blocks
from pixvox.inference.engines import Engine, SerialEngine, Work
from pixvox.inference.find_objects import FindObjects, volume_range, window_of
from pixvox.inference.object_table import ObjectTable
from pixvox.inference.stitched_objects import StitchedObjects, in_order
from pixvox.inference.tile_store import TileStore
from pixvox.ops.label_maps import Shapes, paint, shapes
from pixvox.progress import progress
from pixvox.version import __version__

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor
    from pixvox.segmenter import Segmenter

log = logging.getLogger("pixvox")


@dataclass(frozen=True)
class VolumePrediction:
    """What was written of a volume.

    Args:
        labels: OME-Zarr of the ids.
        table: CSV of the objects.
        count: Number of objects.
    """

    labels: Path
    table: Path
    count: int

    @property
    def files(self) -> list[Path]:
        """What was written."""
        return [self.labels, self.table]

    def describe(self) -> str:
        """Say in a few words what was found."""
        return f"{self.count} object{'' if self.count == 1 else 's'}"


def find_all(work: Work, blocks: Blocks, store: TileStore, engine: Engine | None = None) -> None:
    """Do the work for every block that is not in the store yet.

    Args:
        work: Fills the store.
        blocks: Of the volume.
        store: What is done already is left.
        engine: Where it is done; in this process by default.
    """
    left = [number for number in range(len(blocks)) if not store.has(blocks[number])]
    if len(left) < len(blocks):
        log.info("%d of %d blocks are done already", len(blocks) - len(left), len(blocks))
    engine = engine or SerialEngine()
    done = engine.run(work, (blocks[number] for number in left))
    for _ in progress(done, len(left), "segmenting"):
        pass


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
        raise OverflowError(f"{len(found)} objects do not fit into {labels.dtype}; write the labels as uint32")
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
        ids = np.zeros(places.shape, dtype=labels.dtype)
        paint(ids, places, np.concatenate([[0], present]))
        labels[block.core] = ids
        return block, present, measured

    for block, present, measured in progress(in_order(threads, write, found.blocks), len(found.blocks), "writing"):
        table.add(present, measured, block.core)
    return table


def predict_objects(
    predictor: Predictor,
    volume: Volume,
    out: Path,
    name: str,
    tile_size: tuple[int, ...],
    overlap: float = 0.25,
    join_iou: float = 0.5,
    engine: Engine | None = None,
    threads: int = 1,
) -> VolumePrediction:
    """Segment the objects of a volume or slide of any size, and write their ids and their table.

    Args:
        predictor: Segments windows; it must not resize them.
        volume: What is segmented.
        out: Folder for the results.
        name: Beginning of their names.
        tile_size: Lengths of the windows in array order.
        overlap: Share of a window that lies in margins, in [0, 0.5].
        join_iou: Least intersection over union at which two objects of neighbours are one, in (0, 1].
        engine: Where windows are segmented.
        threads: Blocks that are painted at a time.

    Raises:
        ConfigError: If the model does not find objects, or an option has no such value.
        DataError: If the volume cannot be read, or has other dimensions or channels than the model.
    """
    model = predictor.model
    _check(predictor, volume, join_iou)
    blocks = Blocks(volume.size, tile_size, overlap, model.size_divisor)
    labels, scratch = out / f"{name}_labels.ome.zarr", out / f".{name}.tiles"
    out.mkdir(parents=True, exist_ok=True)
    limits = volume_range(volume, model.in_channels)
    store = TileStore(scratch, _made_with(predictor, volume, blocks, limits))
    find_all(FindObjects(volume, blocks, store, predictor, limits), blocks, store, engine)
    found = StitchedObjects.of(blocks, store, join_iou, threads)
    part = out / f".{name}_labels.ome.zarr"
    array = _create(part, volume, blocks)
    table = write_objects(found, array, volume, model.in_channels, model.class_names, threads)
    _finish(part, labels)
    path = table.save(out / f"{name}_table.csv")
    store.remove()
    return VolumePrediction(labels, path, len(found))


def _check(predictor: Predictor, volume: Volume, join_iou: float) -> None:
    model = predictor.model
    if model.task != "instance":
        raise ConfigError(f"this finds objects, but the model gives {model.task} results")
    if len(volume.size) != model.spatial_dims:
        raise DataError(
            f"{volume.source} has {len(volume.size)} spatial axes, this model takes {model.spatial_dims}"
        )
    if predictor.resize != "none":
        raise ConfigError(
            f"blocks are segmented as they are, but this model resizes images (inference.resize={predictor.resize}); "
            "train with transforms=crops, or convert the volume to the spacing that the model knows and set "
            "inference.resize=none"
        )
    if not 0 < join_iou <= 1:
        raise ConfigError(f"inference.join_iou must lie in (0, 1], got {join_iou}")


def _made_with(predictor: Predictor, volume: Volume, blocks: Blocks, limits: torch.Tensor) -> Mapping[str, Any]:
    """Return everything that the objects of a block depend on."""
    path = Path(volume.source)
    changed = path.stat().st_mtime_ns if path.exists() else None
    return {
        "version": __version__,
        "weights": _digest(predictor.model),
        "score_threshold": predictor.score_threshold,
        "precision": predictor.precision,
        "source": [str(path.resolve()) if path.exists() else volume.source, list(volume.size), changed],
        "range": limits.tolist(),
        "blocks": [[axis.size, axis.tile, axis.length, axis.margin, axis.align] for axis in blocks.axes],
    }


def _digest(model: Segmenter) -> str:
    """Return the sum of a model's weights and configuration."""
    total = hashlib.sha256(repr(sorted(model.config.items(), key=str)).encode())
    for key, value in sorted(model.state_dict().items()):
        total.update(key.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _create(path: Path, volume: Volume, blocks: Blocks) -> Any:
    from pixvox.data.volumes.ome_zarr import create_ome_zarr

    shutil.rmtree(path, ignore_errors=True)
    chunks = tuple(_chunk(axis.length, 1024 if len(volume.size) == 2 else 128) for axis in blocks.axes)
    return create_ome_zarr(path, volume.size, np.uint32, chunks, volume.spacing, volume.unit, labels=True)


def _chunk(length: int, longest: int) -> int:
    """Return the length of chunks: the largest part of a block that is not too long."""
    count = math.ceil(length / longest)
    while length % count:
        count += 1
    return length // count


def _finish(part: Path, path: Path) -> None:
    """Add coarser levels and give the result its name; what had it before is replaced."""
    from pixvox.data.volumes.ome_zarr import build_pyramid

    build_pyramid(part)
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)


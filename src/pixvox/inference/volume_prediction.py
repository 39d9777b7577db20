"""Volumes and slides that are larger than memory: segmented block by block, written as they are finished.

1. A network looks at window after window; the objects of each block are kept on disk, so that a run that was killed
   goes on where it was.
2. What neighbours found in the place they share tells which objects are one.
3. Each block is painted with the ids of the volume, measured and written.

Of classes, the scores of blocks are kept and blended where neighbours both have some.

The result depends neither on the order in which blocks are computed, nor on where, nor on interruptions: the same
bytes are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pixvox.data.transforms.resample import spacing_per_axis
from pixvox.data.units import MICROMETRES
from pixvox.data.volumes.file_state import files_digest
from pixvox.errors import ConfigError, DataError
from pixvox.files import whole_file
from pixvox.image_means import ImageMeans
from pixvox.inference.blended_scores import FindScores
from pixvox.inference.blocks import Blocks
from pixvox.inference.class_writer import class_table, write_classes
from pixvox.inference.engines import Engine, SerialEngine, Work
from pixvox.inference.find_objects import FindObjects
from pixvox.inference.object_writer import write_objects
from pixvox.inference.stitched_objects import StitchedObjects
from pixvox.inference.tile_store import TileStore
from pixvox.inference.volume_files import LabelFormat, TableKind, VolumeFiles
from pixvox.inference.windows import volume_range
from pixvox.progress import progress
from pixvox.structures import Size
from pixvox.table_file import rows_of
from pixvox.version import __version__

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor
    from pixvox.segmenter import Segmenter

log = logging.getLogger("pixvox")

_SAME_SPACING = 0.01
"""Share by which two spacings may differ to count as one."""


@dataclass(frozen=True)
class VolumePrediction:
    """What was written of a volume.

    Args:
        labels: OME-Zarr or OME-TIFF of ids or classes.
        table: CSV or Parquet of the objects or classes.
        count: Number of objects, or of classes that occur.
        task: ``"instance"`` or ``"semantic"``.
        probabilities: OME-Zarr of the probability of each class, where it was asked for.
        page: HTML page that shows them, where there is one.
    """

    labels: Path
    table: Path
    count: int
    task: str = "instance"
    probabilities: Path | None = None
    page: Path | None = None

    @property
    def files(self) -> list[Path]:
        """What was written."""
        files = (self.labels, self.probabilities, self.table, self.page)
        return [path for path in files if path is not None]

    def describe(self) -> str:
        """Say in a few words what was found."""
        one, many = ("object", "objects") if self.task == "instance" else ("class", "classes")
        return f"{self.count} {one if self.count == 1 else many}"


@dataclass(frozen=True)
class BlockOptions:
    """How a volume is cut and where its blocks are computed.

    Args:
        tile_size: Lengths of the windows in array order.
        overlap: Share of a window that lies in margins, in [0, 0.5].
        join_iou: Least intersection over union at which two objects of neighbours are one, in (0, 1].
        probabilities: Also write the probability of each class.
        engine: Where windows are segmented.
        threads: Blocks that are written at a time.
        table: ``"csv"`` or ``"parquet"``.
        labels: ``"ome-zarr"`` or ``"tiff"``.
        page: Also write a page to look at.
    """

    tile_size: Size
    overlap: float = 0.25
    join_iou: float = 0.5
    probabilities: bool = False
    engine: Engine = field(default_factory=SerialEngine)
    threads: int = 1
    table: TableKind = "csv"
    labels: LabelFormat = "ome-zarr"
    page: bool = True


def predict_volume(
    predictor: Predictor, volume: Volume, out: Path, name: str, options: BlockOptions
) -> VolumePrediction:
    """Segment a volume or slide of any size, and write labels and their table.

    Args:
        predictor: Segments windows; it must not resize them.
        volume: What is segmented.
        out: Folder for the results; they appear when they are whole.
        name: Beginning of their names.
        options: How it is cut, and where it is computed.

    Raises:
        ConfigError: If the model gives neither objects nor classes, or an option has no such value.
        DataError: If the volume cannot be read, or has other dimensions or channels than the model.
    """
    model = predictor.model
    if predictor.image_spacing is not None:
        volume = copy(volume)
        volume.spacing, volume.unit = predictor.image_spacing, predictor.spacing_unit
    _check(predictor, volume, options)
    if predictor.resample is not None:  # the volume has that spacing
        predictor = predictor.without_resampling()
    blocks = Blocks(volume.size, options.tile_size, options.overlap, model.size_divisor)
    limits = volume_range(volume, model.in_channels)
    out.mkdir(parents=True, exist_ok=True)
    with _only_here(out / f".{name}.lock"):
        store = TileStore(out / f".{name}.tiles", _made_with(predictor, volume, blocks, limits, out))
        segment = _classes if model.task == "semantic" else _objects
        files = VolumeFiles(out / name, volume, blocks.length, options.table, options.labels, options.page)
        result = segment(predictor, volume, files, _Cut(blocks, store, limits), options)
        store.remove()
    return result


@dataclass(frozen=True)
class _Cut:
    """A volume cut into blocks."""

    blocks: Blocks
    store: TileStore
    limits: Tensor


def _objects(
    predictor: Predictor, volume: Volume, files: VolumeFiles, cut: _Cut, options: BlockOptions
) -> VolumePrediction:
    """Find the objects of all blocks, join them, and write their ids and their table."""
    model, blocks, store = predictor.model, cut.blocks, cut.store
    find_all(FindObjects(volume, blocks, store, predictor, cut.limits), blocks, store, options.engine)
    found = StitchedObjects.of(blocks, store, options.join_iou, options.threads)
    with files.new_labels(np.uint32) as (array, path):
        objects = write_objects(found, array, volume, model.in_channels, model.class_names, options.threads)
    table, page = files.save_table(objects.batches()), files.save_page(path, objects.rows())
    return VolumePrediction(path, table, len(found), page=page)


def _classes(
    predictor: Predictor, volume: Volume, files: VolumeFiles, cut: _Cut, options: BlockOptions
) -> VolumePrediction:
    """Compute the scores of all blocks, blend them, and write the class of each voxel."""
    model, blocks, store = predictor.model, cut.blocks, cut.store
    work = FindScores(volume, blocks, store, predictor, cut.limits)
    if predictor.procedure.pool_over == "image" and len(blocks) > 1:
        work.means = _means(work, store)
    find_all(work, blocks, store, options.engine)
    with contextlib.ExitStack() as images:
        kind = np.uint8 if model.num_classes < 256 else np.uint16
        array, path = images.enter_context(files.new_labels(kind))
        shares, shares_path = None, None
        if options.probabilities:
            shares, shares_path = images.enter_context(files.new_probabilities(model.num_classes))
        counts = write_classes(blocks, store, array, shares, options.threads)
    columns = class_table(counts, model.class_names, volume.spacing, volume.unit)
    table, page = files.save_table([columns]), files.save_page(path, rows_of(columns), model.class_names)
    return VolumePrediction(path, table, int((counts > 0).sum()), "semantic", shares_path, page)


def _means(work: FindScores, store: TileStore) -> ImageMeans | None:
    """Return the means of the volume that global pools are given; a run that goes on has them already."""
    path = store.folder / "means.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        return ImageMeans.restored(kept) if kept else None
    means = work.gather(progress(work.blocks, len(work.blocks), "looking at the whole"))
    with whole_file(path) as part:
        torch.save(None if means is None else means.state(), part)
    return means


def find_all(work: Work, blocks: Blocks, store: TileStore, engine: Engine) -> None:
    """Do the work for every block that is not in the store yet.

    Args:
        work: Fills the store.
        blocks: Of the volume.
        store: What is done already is left.
        engine: Where it is done.
    """
    left = [number for number in range(len(blocks)) if not store.has(blocks[number])]
    if len(left) < len(blocks):
        log.info("%d of %d blocks are done already", len(blocks) - len(left), len(blocks))
    done = engine.run(work, (blocks[number] for number in left))
    for _ in progress(done, len(left), "segmenting"):
        pass


def _check(predictor: Predictor, volume: Volume, options: BlockOptions) -> None:
    model = predictor.model
    if model.task not in ("instance", "semantic"):
        raise ConfigError(
            f"blocks are for objects and classes so far, but this model gives {model.task} results"
        )
    clean_up = predictor.procedure.clean_up
    if clean_up is not None and not clean_up.changes_nothing:
        raise ConfigError(
            "inference.clean_up looks at whole images, which blocks are not; leave it out (set to 0 what the model was "
            "saved with, as in inference.clean_up.min_area=0), and choose objects by the table that is written"
        )
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
    if predictor.resample is not None and not _has_spacing(volume, predictor):
        wanted = spacing_per_axis(predictor.resample.spacing, model.spatial_dims)
        shown = f"{volume.spacing} {volume.unit}" if volume.spacing is not None else "unknown"
        raise ConfigError(
            f"blocks are segmented as they are, but this model sees images at a spacing of {wanted} "
            f"{predictor.spacing_unit} and that of {volume.source} is {shown}; predict it whole with "
            "inference.blocks=false (and inference.tile_size=...), bring it to that spacing, or say "
            "inference.spacing=0 to segment it as it is"
        )
    if not 0 < options.join_iou <= 1:
        raise ConfigError(f"inference.join_iou must lie in (0, 1], got {options.join_iou}")


def _has_spacing(volume: Volume, predictor: Predictor) -> bool:
    """Tell whether a volume has the spacing already at which the model sees images."""
    if predictor.resample is None or volume.spacing is None:
        return False
    scale = MICROMETRES[volume.unit] / MICROMETRES[predictor.spacing_unit]
    wanted = spacing_per_axis(predictor.resample.spacing, len(volume.size))
    pairs = zip(volume.spacing, wanted, strict=True)
    return all(math.isclose(step * scale, new, rel_tol=_SAME_SPACING) for step, new in pairs)


def _made_with(
    predictor: Predictor, volume: Volume, blocks: Blocks, limits: torch.Tensor, out: Path
) -> Mapping[str, Any]:
    """Return everything that the objects of a block depend on; what is in the folder for results is not."""
    path = Path(volume.source)
    procedure = {key: value for key, value in predictor.procedure.options.items() if key != "join_iou"}
    source = [str(path.resolve()), files_digest(path, apart=out)] if path.exists() else [volume.source]
    return {
        "version": __version__,
        "weights": _digest(predictor.model),
        "score_threshold": predictor.score_threshold,
        "precision": predictor.precision,
        "procedure": procedure,
        "source": [*source, list(volume.size), repr(volume.layout)],
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


@contextlib.contextmanager
def _only_here(path: Path) -> Iterator[None]:
    """Refuse to write what another process writes."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"another process writes {path.name[1:-5]} in {path.parent}; wait for it, or choose --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)

"""Which images are segmented block by block, and how: the options of ``inference`` that say so."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixvox.data.transforms.crop import axis_lengths
from pixvox.errors import ConfigError
from pixvox.inference.engines import engine as engine_by_name
from pixvox.inference.procedure import BLOCK_OPTIONS, FILE_OPTIONS, build, merged
from pixvox.inference.results import name_of
from pixvox.inference.volume_files import LabelFormat, TableKind
from pixvox.inference.volume_prediction import BlockOptions, VolumePrediction, predict_volume
from pixvox.table_file import pyarrow

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor
    from pixvox.segmenter import Segmenter

_SHARED = ("tile_size", "overlap", "join_iou")
"""Options of inference that tiles in memory have, too."""

LARGE = 2**27
"""Pixels or voxels from which an image is segmented block by block unless it is said: half a gigabyte as float32."""

_TILE = {2: 1024, 3: 128}


class Blockwise:
    """Segments volumes and slides of any size into files.

    Args:
        predictor: Segments windows.
        blocks: Whether images are segmented so: True, False, or None for those of ``LARGE`` voxels or more.
        tile_size: Lengths of the windows, one for all axes or per axis in array order; by default the patch that the
            model was trained with, else 128 voxels or 1024 pixels.
        overlap: Share of a window that lies in margins, in [0, 0.5].
        join_iou: Least intersection over union at which two objects of neighbours are one, in (0, 1].
        probabilities: Also write the probability of each class.
        engine: ``"serial"``, ``"processes"`` or ``"ray"``.
        workers: Processes or tasks at a time; by default one per CPU core, and one process on a GPU.
        table: ``"csv"``, or ``"parquet"`` for millions of objects; of images that are read whole, too.
        labels: ``"ome-zarr"``, or ``"tiff"`` for an uncompressed OME-TIFF.
        allow_missing_chunks: Find no objects where Zarr chunks were never written; otherwise that is an error.
        page: Whether there is a page to look at; None for volumes and for what goes block by block.

    Raises:
        ConfigError: If an option has no such value.
    """

    def __init__(
        self,
        predictor: Predictor,
        blocks: bool | None = None,
        tile_size: int | Sequence[int] | None = None,
        overlap: float = 0.25,
        join_iou: float = 0.5,
        probabilities: bool = False,
        engine: str = "serial",
        workers: int | None = None,
        table: TableKind = "csv",
        labels: LabelFormat = "ome-zarr",
        allow_missing_chunks: bool = False,
        page: bool | None = None,
    ) -> None:
        dims, weight = predictor.model.spatial_dims, next(predictor.model.parameters(), None)
        self.predictor, self.blocks = predictor, blocks
        self.allow_missing_chunks = allow_missing_chunks
        self.page = dims == 3 if page is None else page
        self.options = BlockOptions(
            axis_lengths(tile_size or predictor.model.config.get("patch") or _TILE[dims], dims),
            overlap,
            join_iou,
            probabilities,
            engine_by_name(engine, workers, "cpu" if weight is None else weight.device.type),
            threads=min(4, os.cpu_count() or 1),
            table=table,
            labels=labels,
            page=page is not False,
        )
        if table == "parquet":
            pyarrow("inference.table=parquet")

    def volume(self, path: Path) -> Volume | None:
        """Return the volume at a path where it is to be segmented block by block; None for what is read whole.

        Raises:
            DataError: If the file cannot be read.
        """
        from pixvox.data.volumes.open import open_volume, volume_suffixes

        if self.blocks is False or not path.name.lower().endswith(volume_suffixes()):
            return None
        dims, allow = self.predictor.model.spatial_dims, self.allow_missing_chunks
        volume = open_volume(path, dims, allow_missing_chunks=allow)
        return volume if self.blocks or math.prod(volume.size) >= LARGE else None

    def __call__(self, volume: Volume, out: Path, name: str) -> VolumePrediction:
        """Segment a volume, and write the result into a folder under a name."""
        return predict_volume(self.predictor, volume, out, name, self.options)


def predict_in_blocks(
    model: Segmenter,
    volume: Any,
    out: Path,
    name: str | None = None,
    score_threshold: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> VolumePrediction:
    """Segment a volume block by block; the arguments are those of ``Segmenter.predict_volume``."""
    from pixvox.data.volumes.open import open_volume
    from pixvox.data.volumes.volume import Volume
    from pixvox.inference.predictor import Predictor, confident_score

    asked = merged(model.config.get("inference") or {}, options or {})
    for_blocks, for_images = split_options({**asked, "blocks": True})
    least = confident_score(model) if score_threshold is None else score_threshold
    predictor = Predictor(model, score_threshold=least, keep_image=False, **for_images)
    blockwise = build(Blockwise, "", for_blocks, predictor=predictor)
    opened = volume
    if not isinstance(volume, Volume):
        opened = open_volume(volume, model.spatial_dims, allow_missing_chunks=blockwise.allow_missing_chunks)
    return blockwise(opened, out, name_of(Path(opened.source)) if name is None else name)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options for blocks, and those for what is read whole; tiles have a size and an overlap in both.

    Raises:
        ConfigError: If there are to be no blocks, but options for them.

    Example:
        >>> split_options({"tile_size": 96, "engine": "ray", "tta": {"flips": [-1]}})
        ({'tile_size': 96, 'engine': 'ray'}, {'tile_size': 96, 'tta': {'flips': [-1]}})
    """
    blockwise = {
        key: value for key, value in options.items() if key in (*BLOCK_OPTIONS, *FILE_OPTIONS, *_SHARED)
    }
    whole = {key: value for key, value in options.items() if key not in (*BLOCK_OPTIONS, *FILE_OPTIONS)}
    if blockwise.get("blocks") is False and (
        unused := [key for key in BLOCK_OPTIONS[1:] if key in blockwise]
    ):
        raise ConfigError(f"inference.{unused[0]} is for blocks; leave out inference.blocks=false")
    return blockwise, whole

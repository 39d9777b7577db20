"""The files of a whole-volume prediction: labels that are filled block by block, their table, and a page to look at."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pixvox.errors import DataError
from pixvox.files import whole_file
from pixvox.structures import Size
from pixvox.table_file import save_table

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume
    from pixvox.data.volumes.writers import Write

TableKind = Literal["csv", "parquet"]
LabelFormat = Literal["ome-zarr", "tiff"]

log = logging.getLogger("pixvox")


@dataclass(frozen=True)
class VolumeFiles:
    """Makes the files of one volume; each gets its name when it is whole.

    Args:
        base: Folder and beginning of their names.
        volume: What is segmented; results have its size and spacing.
        block: Lengths of the blocks that are written at once.
        table: ``"csv"`` or ``"parquet"``.
        labels: ``"ome-zarr"``, compressed and with coarser levels; or ``"tiff"``, uncompressed OME-TIFF.
        page: Whether there is a page.
    """

    base: Path
    volume: Volume
    block: Size
    table: TableKind = "csv"
    labels: LabelFormat = "ome-zarr"
    page: bool = True

    @contextlib.contextmanager
    def new_labels(self, dtype: Any) -> Iterator[tuple[Any, Path]]:
        """Give an array that takes ``array[region] = ids``, from several threads, and where it will be."""
        if self.labels == "ome-zarr":
            with self._new_zarr("labels", dtype, labels=True) as new:
                yield new
            return
        from pixvox.data.volumes.writers import Content, write_tiff

        path, volume = self._path("labels.ome.tif"), self.volume
        content = Content(
            volume.size, 1, np.dtype(dtype), volume.spacing, volume.unit, labels=True, name=self.base.name
        )
        with whole_file(path) as part, write_tiff(part, content) as write:
            yield _Filled(content.dtype, write), path

    @contextlib.contextmanager
    def new_probabilities(self, classes: int) -> Iterator[tuple[Any, Path]]:
        """Give an array ``(classes, *spatial)`` to be filled, and where it will be."""
        with self._new_zarr("probabilities", np.float16, channels=classes) as new:
            yield new

    def save_table(self, batches: Iterable[Mapping[str, Any]]) -> Path:
        """Write the table; see ``pixvox.table_file.save_table``."""
        return save_table(self._path(f"table.{self.table}"), batches)

    def save_page(
        self, labels: Path, rows: Iterable[Mapping[str, Any]], class_names: Sequence[str] | None = None
    ) -> Path | None:
        """Write a page of slices with the labels over them; None where there is to be none, or cannot be one.

        Args:
            labels: What was written.
            rows: Of the table.
            class_names: Where labels are classes.
        """
        from pixvox.data.volumes.open import open_volume
        from pixvox.visualization.html_page import write_page

        if not self.page:
            return None
        path = self.base.with_name(f"{self.base.name}.html")
        written = open_volume(labels, len(self.volume.size), allow_missing_chunks=True)
        try:
            return write_page(self.volume, written, rows, path, class_names=class_names)
        except (
            DataError,
            ValueError,
        ) as error:  # labels and table are whole: hours of work are not given up for it
            log.warning("no page is written: %s", error)
            return None

    @contextlib.contextmanager
    def _new_zarr(self, what: str, dtype: Any, **options: Any) -> Iterator[tuple[Any, Path]]:
        """Give an array to be filled, and where it will be; at the end coarser levels are added."""
        from pixvox.data.volumes.ome_zarr import build_pyramid, create_ome_zarr

        path = self._path(f"{what}.ome.zarr")
        part, volume = path.with_name(f".{path.name}"), self.volume
        longest = 1024 if len(volume.size) == 2 else 128
        chunks = tuple(_chunk(length, longest) for length in self.block)
        array = create_ome_zarr(
            part, volume.size, dtype, chunks, volume.spacing, volume.unit, overwrite=True, **options
        )
        yield array, path
        build_pyramid(part)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)

    def _path(self, ending: str) -> Path:
        return self.base.with_name(f"{self.base.name}_{ending}")


@dataclass(frozen=True)
class _Filled:
    """A file that takes ``array[region] = values``.

    Args:
        dtype: Of the values.
        write: Takes a region and its values with a channel.
    """

    dtype: np.dtype[Any]
    write: Write

    def __setitem__(self, region: tuple[slice, ...], values: np.ndarray) -> None:
        self.write(region, values[None])


def _chunk(length: int, longest: int) -> int:
    """Return the length of chunks: the largest part of a block that is not too long."""
    count = math.ceil(length / longest)
    while length % count:
        count += 1
    return length // count

"""Make or renew a catalogue: in parallel, block by block, taking over what has not changed."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixvox.data.download import locked
from pixvox.data.units import MICROMETRES
from pixvox.data.volumes.catalogue import Catalogue, is_foreign
from pixvox.data.volumes.catalogue_writer import Volume, volume_rows, write_catalogue
from pixvox.data.volumes.crop_grid import CropGrid
from pixvox.data.volumes.index_findings import INTENSITY, Findings
from pixvox.data.volumes.index_source import choose, names_of, read_entries
from pixvox.data.volumes.index_volume import (
    BLOCK_VOXELS,
    IndexOptions,
    index_block,
    measure_intensity,
    read_header,
)
from pixvox.errors import ConfigError, DataError
from pixvox.processes import context_with

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it is, and how much there is."""

Job = tuple[Any, ...]
"""A function of a module, and its arguments."""


@dataclass(frozen=True)
class Indexed:
    """What a catalogue holds, and what was done for it.

    Args:
        path: The catalogue.
        volumes: Number of volumes.
        crops: Number of crops.
        empty: Number of crops that show no object, or, in volumes without labels, nothing bright.
        objects: Number of objects, counted in each crop.
        read: Volumes that were read.
        written: False where the catalogue was up to date.
    """

    path: str
    volumes: int
    crops: int
    empty: int
    objects: int
    read: list[str]
    written: bool


def build_catalogue(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    size: Sequence[float] = (64, 128, 128),
    overlap: float = 0.0,
    cover: bool = False,
    min_volume: int = 1,
    where: str | None = None,
    root: str | Path | None = None,
    spacing: Sequence[float] | None = None,
    unit: str = "um",
    percentiles: Sequence[float] = (1.0, 99.8),
    allow_missing_chunks: bool = False,
    min_intensity: float | None = None,
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    size_unit: str | None = None,
) -> Indexed:
    """Write a catalogue of volumes, their crops and the objects in these.

    It takes its name when it is whole. What a run that was interrupted has read lies beside it, and is taken over by
    the next; so are volumes of a catalogue that is there, as far as files and options are the same. Two runs at once
    wait for each other.

    Args:
        source: A folder with images beside label maps, or a CSV or JSON table with the columns path, label_path,
            experiment, split, those of ``Part``, and any others; or several, which a column ``origin`` tells apart.
        out: The catalogue.
        size: Lengths of a crop in array order, in voxels or ``size_unit``: three for volumes, two for slides.
        overlap: Share of a crop that the next one along an axis has, too, in [0, 1).
        cover: As in ``CropGrid``.
        min_volume: Objects with fewer voxels in a crop are left out there.
        where: SQL on the columns of the table that chooses volumes, as in ``"grade > 2"``.
        root: Folder that all files lie in; by default that of the source, or the one that holds all of several.
        spacing: Size of a pixel or voxel per axis in array order, for files that do not say.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        percentiles: Low and high percentile of the intensities that are noted.
        allow_missing_chunks: Accept places that were never written.
        min_intensity: Intensity from which a voxel of a volume without labels is foreground; crops with fewer such
            voxels than ``min_volume`` are empty. None takes all of them for full.
        workers: Processes that read.
        force: Read every volume again.
        progress: Told what is done.
        size_unit: Unit of ``size``, ``"um"`` or ``"mm"``: of each volume as many voxels are cut as that length takes.
            None where it is in voxels.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If the source or a volume cannot be read, or the catalogue cannot be written.
    """
    sources, out = [Path(each) for each in _several(source)], Path(out)
    options = IndexOptions(
        tuple(size),
        overlap,
        cover,
        min_volume,
        None if spacing is None else tuple(spacing),
        unit,
        (percentiles[0], percentiles[1]),
        allow_missing_chunks,
        min_intensity,
        size_unit,
    )
    _check(options, workers)
    if out.exists() and is_foreign(out):
        raise DataError(f"{out} is no catalogue and is not replaced; choose another --out, or remove it")
    base, entries = read_entries(sources, None if root is None else Path(root))
    if where is not None:
        entries = choose(entries, where, names_of(sources))
    stated = {
        "source": [_seen_from(out, each) for each in sources],
        "root": None if root is None else _seen_from(out, Path(root)),
        "where": where,
        **asdict(options),
    }
    settings = {"options": json.dumps(stated), "root": _seen_from(out, base)}
    tell = progress or (lambda what, done, total: None)
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out):
            old = None if force else _previous(out)
            jobs = [(read_header, base, entry, options) for entry in entries]
            headers = dict(_run(jobs, workers, lambda done: tell("looking at files", done, len(jobs))))
            volumes = [(entry, headers[number]) for number, entry in enumerate(entries)]
            _say_what_changed(old, volumes)
            kept = set() if old is None else {volume.key for volume in old.volumes.values()}
            new = {header.key: (entry, header) for entry, header in volumes if header.key not in kept}
            if old is not None and not new and _same(old, settings, volumes):
                logger.info("%s is up to date", out)
                return _summary(out, [], written=False)
            part = out.with_name(f".{out.name}.part")
            with closing(Findings(part)) as findings:
                findings.keep_only([] if force else new)
                _read(base, options, new, findings, workers, tell)
                fresh = out.with_name(f".{out.name}.new")  # the lock is held: nobody else writes to it
                fresh.unlink(missing_ok=True)
                write_catalogue(fresh, settings, volumes, options, findings, old)
            os.replace(fresh, out)
            part.unlink()
    return _summary(out, sorted(entry.name for entry, _ in new.values()), written=True)


def renew_catalogue(path: str | Path, workers: int = 1) -> Indexed:
    """Make a catalogue again from what it was made from, reading what has changed.

    Raises:
        DataError: As ``build_catalogue``.
    """
    catalogue = Catalogue(path)
    stated = dict(catalogue.options)
    folder = catalogue.path.parent
    sources, root = [os.path.normpath(folder / each) for each in stated.pop("source")], stated.pop("root")
    return build_catalogue(
        sources,
        path,
        root=None if root is None else os.path.normpath(folder / root),
        workers=workers,
        **stated,
    )


def _check(options: IndexOptions, workers: int) -> None:
    low, high = options.percentiles
    least = 1 if options.size_unit is None else 0
    if len(options.size) not in (2, 3) or min(options.size) < least or 0 in options.size:
        raise ConfigError(
            f"size={list(options.size)}: give the lengths of a crop in array order, three for volumes, two for slides"
        )
    if not 0 <= low <= high <= 100:
        raise ConfigError(f"percentiles must be two ascending numbers in 0..100, got {low} and {high}")
    if options.spacing is not None and len(options.spacing) != len(options.size):
        raise ConfigError(
            f"spacing {list(options.spacing)} needs {len(options.size)} values, one for each axis of a crop"
        )
    if options.min_volume < 1 or workers < 1:
        raise ConfigError(f"min_volume={options.min_volume} and workers={workers} must be 1 or above")
    if options.size_unit not in (None, *MICROMETRES):
        raise ConfigError(f"size_unit={options.size_unit}: lengths of crops are in um or mm, or in voxels")
    CropGrid((1,), (1,), options.overlap)  # refuses an overlap out of range


def _read(
    root: Path,
    options: IndexOptions,
    volumes: dict[str, Volume],
    findings: Findings,
    workers: int,
    tell: Progress,
) -> None:
    """Read the volumes, as far as an earlier run has not."""
    done = findings.done()
    places: list[tuple[str, int]] = []
    jobs: list[Job] = []
    for key, (entry, header) in volumes.items():
        own = options.of(header, entry.path)
        if (key, INTENSITY) not in done:
            places.append((key, INTENSITY))
            jobs.append((measure_intensity, root, entry, own))
        for number, block in enumerate(own.grid(header.size).blocks(BLOCK_VOXELS)):
            if (key, number) not in done:
                places.append((key, number))
                jobs.append((index_block, root, entry, own, block))
    if done:
        logger.info("an index that was interrupted had read %d of %d parts", len(done), len(done) + len(jobs))
    for place, result in _run(jobs, workers, lambda finished: tell("reading volumes", finished, len(jobs))):
        key, number = places[place]
        if number == INTENSITY:
            findings.add_intensity(key, result)
            if all(low == high for low, high in result):
                logger.warning(
                    "%s has no contrast: it is %g nearly everywhere", volumes[key][0].path, result[0][0]
                )
        else:
            findings.add_block(key, number, result)


def _run(jobs: Sequence[Job], workers: int, tell: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
    """Yield number and result of each job, in any order.

    Raises:
        DataError: If a job raises it, or its process is killed.
    """
    if workers == 1 or len(jobs) < 2:
        for number, (function, *arguments) in enumerate(jobs):
            yield number, function(*arguments)
            tell(number + 1)
        return
    context = context_with(["pixvox.data.volumes.index_volume"])
    with ProcessPoolExecutor(min(workers, len(jobs)), context) as pool:
        futures = {pool.submit(*job): number for number, job in enumerate(jobs)}
        try:
            for finished, future in enumerate(as_completed(futures), 1):
                yield futures[future], future.result()
                tell(finished)
        except BrokenProcessPool as error:
            raise DataError(
                f"a process of the index was killed, most likely for its memory; use fewer than {workers} workers. "
                "What was read so far is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _previous(out: Path) -> Catalogue | None:
    """Return the catalogue that is there, if it can be used."""
    if not out.exists():
        return None
    try:
        return Catalogue(out)
    except DataError as error:
        logger.warning("%s", str(error).partition("; make it again")[0] + "; it is made again")
        return None


def _same(old: Catalogue, settings: dict[str, str], volumes: Sequence[Volume]) -> bool:
    """Tell whether a new catalogue would be the old one."""
    rows = volume_rows(volumes)
    return old.settings == settings and old.rows(list(rows[0])) == [list(row.values()) for row in rows]


def _say_what_changed(old: Catalogue | None, volumes: Sequence[Volume]) -> None:
    if old is None:
        return
    before = {volume.name: volume for volume in old.volumes.values()}
    others = 0
    for entry, header in volumes:
        volume = before.pop(entry.name, None)
        if volume is None:
            logger.info("%s is new", entry.name)
        elif volume.state != header.state:
            logger.warning(
                "%s or its label map has changed since it was indexed; it is read again", entry.name
            )
        else:
            others += volume.key != header.key
    for name in before:
        logger.info("%s is left out of the new index", name)
    if others:
        logger.warning("the options of the index have changed; %d volumes are read again", others)


def _summary(out: Path, read: list[str], written: bool) -> Indexed:
    catalogue = Catalogue(out)
    return Indexed(str(out), len(catalogue.volumes), *catalogue.totals(), read=read, written=written)


def _several(source: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [source] if isinstance(source, (str, Path)) else source


def _seen_from(out: Path, place: Path) -> str:
    """Return the way from the folder of the catalogue: a folder that holds both can be moved."""
    return Path(os.path.relpath(place, out.parent)).as_posix()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"the catalogue {out} cannot be written ({error}); choose another --out") from error

"""Commands on volumes, below ``pixvox data``."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pixvox.command_options import Debug, Json
from pixvox.console import print_json
from pixvox.errors import ConfigError
from pixvox.progress import progress_bars


class Dtype(StrEnum):
    """Types of values that can be asked for."""

    keep = "keep"
    uint8 = "uint8"
    uint16 = "uint16"
    uint32 = "uint32"
    float32 = "float32"


def data_convert(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="TIFF, Zarr, NIfTI, HDF5 or npy.")],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="Its suffix chooses the format: .zarr, .tif, .nii, .nii.gz, .h5, .npy."
        ),
    ],
    dims: Annotated[
        int | None, typer.Option("--dims", min=2, max=3, help="2 for slides, 3 for volumes.")
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option("--axes", help="A letter per stored axis, as in TCZYX; by default as the file says."),
    ] = None,
    time: Annotated[int | None, typer.Option("--time", min=0, help="Time point, from 0.")] = None,
    level: Annotated[int, typer.Option("--level", min=0, help="Level of a pyramid, 0 is the finest.")] = 0,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Array of an HDF5 file; by default its only one.")
    ] = None,
    chunks: Annotated[
        str | None,
        typer.Option(
            "--chunks", help="Voxels per axis of a chunk.", show_default="64,64,64, of slides 512,512"
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards", help="Voxels per axis of a file of several chunks.", show_default="a file per chunk"
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            help="Micrometres per axis in array order (z,y,x), as in 2,0.5,0.5.",
            show_default="as the file says",
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Type of the new values; none is wrapped or cut.")
    ] = Dtype.keep,
    pyramid: Annotated[
        bool, typer.Option("--pyramid/--no-pyramid", help="Add coarser levels to .zarr.")
    ] = True,
    labels: Annotated[
        bool,
        typer.Option("--labels", help="Values are object ids or classes: coarser levels never mix them."),
    ] = False,
    allow_missing_chunks: Annotated[
        bool,
        typer.Option("--allow-missing-chunks", help="Write 0 where Zarr chunks of INPUT were never written."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUTPUT.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a volume or slide of any size, block by block; OUTPUT appears when it is whole."""
    from pixvox.data.volumes.convert import convert

    with progress_bars() as progress:
        done = convert(
            source,
            output,
            spatial_dims=dims,
            axes=axes,
            time=time,
            level=level,
            dataset=dataset,
            chunks=_lengths("--chunks", chunks, "64,64,64"),
            shards=_lengths("--shards", shards, "256,256,256"),
            spacing=_numbers("--spacing", spacing),
            dtype=dtype.value,
            labels=labels,
            pyramid=pyramid,
            force=force,
            progress=progress,
            allow_missing_chunks=allow_missing_chunks,
        )
    if as_json:
        print_json({"source": str(source), **asdict(done)})
        return
    size = " x ".join(map(str, done.size))
    steps = (
        "unknown"
        if done.spacing is None
        else f"{' x '.join(f'{step:g}' for step in done.spacing)} {done.unit}"
    )
    typer.echo(
        f"{done.path}: {size}, {done.channels} channel{'s' * (done.channels > 1)} of {done.dtype}, spacing {steps}, "
        f"{done.levels} level{'s' * (done.levels > 1)}"
    )
    if done.missing:
        share = done.missing / math.prod(done.size)
        typer.echo(
            f"{done.missing} voxels, {share:.2g} of all, were never written in {source}: 0 stands for them",
            err=True,
        )


def data_index(
    source: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|TABLE...",
            help="images/ with labels/; or .csv or .json with path, label_path, experiment, split, more.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The catalogue, a SQLite file.")],
    size: Annotated[
        str,
        typer.Option(
            "--size", help="Voxels per axis of a crop, z,y,x, or lengths as 32um,64um,64um; two for slides."
        ),
    ] = "64,128,128",
    overlap: Annotated[
        float, typer.Option("--overlap", min=0.0, help="Share of a crop that the next one has, too, below 1.")
    ] = 0.0,
    cover: Annotated[
        bool,
        typer.Option("--cover", help="Leave no margin: crops that reach every voxel, overlapping a little."),
    ] = False,
    min_volume: Annotated[
        int, typer.Option("--min-volume", min=1, help="Leave out objects with fewer voxels in a crop.")
    ] = 1,
    min_intensity: Annotated[
        float | None,
        typer.Option(
            "--min-intensity",
            help="Leave out crops of volumes without labels in which fewer than --min-volume voxels reach it.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help='Volumes to take, in SQL on the columns of TABLE, as in "grade > 2".'),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Folder that holds all files.", show_default="that of the source"),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option("--spacing", help="Micrometres per axis (z,y,x), for files that do not say."),
    ] = None,
    allow_missing_chunks: Annotated[
        bool, typer.Option("--allow-missing-chunks", help="Accept Zarr chunks that were never written.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes.", show_default="one per core")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Read every volume again.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Catalogue volumes, their crops and the objects in these; what has not changed since is not read again."""
    from pixvox.data.volumes.crop_size import parse_crop_size
    from pixvox.data.volumes.index import build_catalogue

    lengths, unit = parse_crop_size(size)
    with progress_bars() as progress:
        done = build_catalogue(
            source,
            out,
            size=lengths,
            size_unit=unit,
            overlap=overlap,
            cover=cover,
            min_volume=min_volume,
            where=where,
            root=root,
            spacing=_numbers("--spacing", spacing),
            allow_missing_chunks=allow_missing_chunks,
            min_intensity=min_intensity,
            workers=workers or os.cpu_count() or 1,
            force=force,
            progress=progress,
        )
    if as_json:
        print_json(asdict(done))
        return
    what = (
        f"{len(done.read)} read, {done.volumes - len(done.read)} as they were"
        if done.written
        else "up to date"
    )
    typer.echo(
        f"{done.path}: {done.volumes} volumes ({what}), {done.crops} crops, {done.empty} of them empty, "
        f"{done.objects} objects in crops"
    )


def _lengths(option: str, text: str | None, example: str) -> list[int] | None:
    """Read one whole number per axis."""
    if text is None:
        return None
    parts = text.strip("[]() ").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"{option} {text}: write a length per axis, as in {example}")
    return [int(part) for part in parts]


def _numbers(option: str, text: str | None) -> list[float] | None:
    """Read one number per axis."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.strip("[]() ").split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: write a number per axis, as in 2,0.5,0.5") from error

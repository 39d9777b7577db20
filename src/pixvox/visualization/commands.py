"""The command that shows labels over their image, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixvox.command_options import Debug, Json
from pixvox.console import print_json
from pixvox.errors import ConfigError

if TYPE_CHECKING:
    from pixvox.data.volumes.volume import Volume


def view(
    image: Annotated[
        Path,
        typer.Argument(metavar="IMAGE", help="Picture, TIFF, OME-Zarr, NIfTI, HDF5 or npy, of any size."),
    ],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Ids of its objects, of the same size.")],
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            help="CSV or Parquet with a column id.",
            show_default="NAME_table.csv beside NAME_labels, if it is there",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page.", show_default="NAME.html beside NAME_labels"),
    ] = None,
    axes: Annotated[
        str | None, typer.Option("--axes", help="Axes of IMAGE where it does not tell, as in ZYX.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a page of slices with the objects over them and their table: one HTML file for any browser."""
    from pixvox.inference.results import name_of
    from pixvox.table_file import table_beside
    from pixvox.visualization.html_page import write_page

    name = name_of(labels).removesuffix("_labels")
    if out is None:
        out = labels.with_name(f"{name}.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: a page is called NAME.html")
    if table is None:
        table = table_beside(labels, name)
    shown = _opened(image, axes)
    page = write_page(shown, _opened_labels(labels, len(shown.size)), table, out)
    if as_json:
        print_json({"page": str(page), "table": None if table is None else str(table)})
    else:
        typer.echo(str(page))


def _opened(path: Path, axes: str | None) -> Volume:
    from pixvox.data.images import RASTER, read_image
    from pixvox.data.volumes.open import open_volume

    if path.name.lower().endswith(RASTER):
        picture = open_volume(read_image(path).data, axes="CYX")
        picture.source = str(path)
        return picture
    return open_volume(path, axes=axes, allow_missing_chunks=True)


def _opened_labels(path: Path, spatial_dims: int) -> Volume:
    """Open label maps; pictures with a palette hold indices."""
    from pixvox.data.images import RASTER, read_labels
    from pixvox.data.volumes.open import open_volume

    if path.name.lower().endswith(RASTER):
        picture = open_volume(read_labels(path), axes="YX")
        picture.source = str(path)
        return picture
    return open_volume(path, spatial_dims=spatial_dims, allow_missing_chunks=True)

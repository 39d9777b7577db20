"""The command that scores a label map against the true one, without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from pixvox.command_options import Debug, Json
from pixvox.console import print_json, print_table
from pixvox.errors import ConfigError

Number = TypeVar("Number", int, float)

_MATCHED = ("matched_AP", "precision_", "recall_", "F1_")


def score(
    predicted: Annotated[
        Path, typer.Argument(metavar="PREDICTED", help="Label map: TIFF, OME-Zarr, NIfTI, HDF5 or npy.")
    ],
    true: Annotated[Path, typer.Argument(metavar="TRUE", help="The true label map, of the same size.")],
    distance: Annotated[
        float | None,
        typer.Option(
            "--distance", help="Also match centroids up to so far apart, in the unit of the spacing."
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option("--spacing", help="Lengths of a voxel, z,y,x.", show_default="what the files say"),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            help="Recall of objects by size, as in 50,200 (um^3, voxels without spacing).",
            show_default="thirds",
        ),
    ] = None,
    ignore: Annotated[
        Path | None, typer.Option("--ignore", help="A map that is not 0 where the truth is unknown.")
    ] = None,
    ignore_ids: Annotated[
        str | None, typer.Option("--ignore-ids", help="True ids that do not count, as in 255,300.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option("--axes", help="Axes of the files where they do not tell, as in ZYX.")
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(
            "--block", help="Voxels read at a time: 128, or z,y,x.", show_default="whole chunks of the files"
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a label map against the true one, block by block: matched AP, PQ, SEG, AJI, ARAND, VOI, centroids."""
    from pixvox.data.volumes.open import open_volume
    from pixvox.metrics.volume_comparison import compare_volumes

    def opened(path: Path) -> object:
        return open_volume(path, axes=axes, allow_missing_chunks=True)

    lengths = _numbers(block, "--block", int)
    scores = compare_volumes(
        opened(predicted),
        opened(true),
        ignore=None if ignore is None else opened(ignore),
        ignore_ids=_numbers(ignore_ids, "--ignore-ids", int) or (),
        spacing=_numbers(spacing, "--spacing", float),
        distance=distance,
        size_edges=_numbers(sizes, "--sizes", float),
        block=lengths[0] if lengths and len(lengths) == 1 else lengths,
        progress=True,
    )
    if as_json:
        print_json({"predicted": str(predicted), "true": str(true), "scores": scores})
        return
    _show(f"{predicted} against {true}", scores)


def _show(title: str, scores: dict[str, float]) -> None:
    """Print what is matched by threshold as a table of its own."""
    percents = [name.removeprefix(_MATCHED[0]) for name in scores if name.startswith(_MATCHED[0])]
    rows = [
        [f"{int(percent) / 100:g}", *(f"{scores[f'{name}{percent}']:.4f}" for name in _MATCHED)]
        for percent in percents
    ]
    by_threshold = {f"{name}{percent}" for name in _MATCHED for percent in percents}
    counts = ("predicted_objects", "true_objects")
    rest = [
        (name, f"{value:.0f}" if name in counts else f"{value:.4f}")
        for name, value in scores.items()
        if name not in by_threshold
    ]
    print_table(title, ("IoU from", *(name.rstrip("_") for name in _MATCHED)), rows)
    print_table("", ("score", "value"), rest)


def _numbers(text: str | None, option: str, kind: Callable[[str], Number]) -> list[Number] | None:
    """Read numbers between commas."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        example = "64,128,128" if kind is int else "2,0.5,0.5"
        raise ConfigError(f"{option} {text}: write numbers between commas, as in {example}") from None

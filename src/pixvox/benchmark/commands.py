"""Commands that measure models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pixvox.command_options import ConfigDir, DataPath, Debug, Json, Overrides
from pixvox.console import exit_if_failed, print_json, print_table, show_comparison
from pixvox.errors import ConfigError

benchmark_app = typer.Typer(no_args_is_help=True, help="Measure models, and every pair of backbone and head.")


@benchmark_app.command("components")
def benchmark_components(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN | KEY=VALUE...]",
            help="A run folder or checkpoint; or a new model, such as backbone=darknet53 head=hybrid.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[str | None, typer.Option("--head", help="Head of a new model.")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Backbone of a new model.")] = None,
    image_size: Annotated[
        str, typer.Option("--image-size", help="Side, or one per axis as in 128,256 (z,y,x for volumes).")
    ] = "640",
    image: Annotated[
        Path | None, typer.Option("--image", help="Segment this file instead of noise, resized.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per pass.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes that count.")] = 20,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Passes before them.")] = 3,
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16.")] = "fp32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time backbone, neck, head and post-processing of a prediction: medians of repeated passes."""
    from pixvox.component_timing import model_to_time, time_components

    parts = [f"{name}={value}" for name, value in (("head", head), ("backbone", backbone)) if value]
    times = time_components(
        model_to_time([*(model or ()), *parts]),
        _lengths(image_size),
        batch_size,
        repeats,
        warmup,
        image,
        precision,
    )
    if as_json:
        print_json(times.to_dict())
        return
    size = " x ".join(map(str, times.image_size))
    title = f"{times.device}, {batch_size} of {size}, median of {repeats} passes"
    print_table(title, ("part", "ms", "share", "parameters"), times.rows())
    memory = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in times.peak_memory_mib.items())
    typer.echo(
        f"{times.images_per_second:.2f} images/s, peak memory: {memory}; {times.instances} objects found"
    )


def _lengths(text: str) -> list[int] | int:
    """Read a side, or one per axis with or without brackets."""
    parts = text.strip("[]() ").replace("x", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--image-size {text}: write 640, or one length per axis as in 480,640")
    lengths = [int(part) for part in parts]
    return lengths if len(lengths) > 1 else lengths[0]


@benchmark_app.command("matrix")
def benchmark_matrix(
    backbones: Annotated[
        str | None,
        typer.Option("--backbones", help="Names, as in simple,resnet; by default one of each family."),
    ] = None,
    heads: Annotated[str | None, typer.Option("--heads", help="Names; by default all.")] = None,
    dims: Annotated[str, typer.Option("--dims", help="2 for images, 3 for volumes.")] = "2,3",
    out: Annotated[Path, typer.Option("--out", help="Folder of matrix.json and matrix.md.")] = Path("."),
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Pairs at a time, each in its process.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each process.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Check also what matrix.json says works.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Let every backbone learn and predict under every head, and write what works and what it costs.

    An interrupted matrix goes on where it was; exit code 1 tells that a pair fails.
    """
    from pixvox.benchmark.matrix import check_all, measured_with, pairs
    from pixvox.benchmark.matrix_report import read_json, write_json, write_markdown

    wanted = pairs(_names(backbones), _names(heads), _axes(dims))
    out.mkdir(parents=True, exist_ok=True)
    known = {cell.place: cell for cell in read_json(out / "matrix.json")}
    left = [
        cell
        for cell in wanted
        if again or known.get(cell.place, cell).status != "works" or cell.place not in known
    ]
    facts = measured_with(threads)
    for number, cell in enumerate(check_all(left, jobs, threads), 1):
        known[cell.place] = cell
        write_json(sorted(known.values(), key=lambda cell: cell.place), facts, out / "matrix.json")
        told = f"{cell.status}{f': {cell.reason}' if cell.reason else f', {cell.seconds:.1f} s'}"
        typer.echo(
            f"{number}/{len(left)} {cell.spatial_dims}-D {cell.backbone} + {cell.head}: {told}", err=True
        )
    cells = sorted(known.values(), key=lambda cell: cell.place)
    write_markdown(cells, facts, out / "matrix.md")
    counts = {
        status: sum(cell.status == status for cell in cells) for status in ("works", "refused", "failed")
    }
    if as_json:
        print_json({**counts, "matrix": str(out / "matrix.json")})
    else:
        typer.echo(
            ", ".join(f"{count} {status}" for status, count in counts.items()) + f"; see {out / 'matrix.md'}"
        )
    if counts["failed"]:
        raise typer.Exit(1)


@benchmark_app.command("models")
def benchmark_models(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [KEY=VALUE]...",
            help="Run folders, checkpoints, or HEAD_BACKBONE such as fcn_resnet50 for models that have not learned; "
            "and overrides of their evaluation.",
        ),
    ],
    data: DataPath = None,
    split: Annotated[
        str, typer.Option("--split", help="Part of the dataset to score: train, val, test.")
    ] = "val",
    tta: Annotated[
        bool, typer.Option("--tta", help="Also score with five sizes of each image, each also mirrored.")
    ] = False,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--image-size", help="Side, or one per axis as in 512,1024.", show_default="512, of volumes 96"
        ),
    ] = None,
    num_classes: Annotated[
        int, typer.Option("--num-classes", min=1, help="Classes of models that have not learned.")
    ] = 21,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes whose median counts.")] = 10,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of a prediction.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of models.csv and models.md.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare models: scores, parameters, multiply-adds, and memory and time of predicting one image.

    Scores are those that runs have kept of their best epoch, or new ones where --data, --split or overrides ask for
    them. Exit code 1 tells that a model could not be measured.
    """
    from pixvox.benchmark.models import ModelTable, Score, check_names, measure_all

    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split {split}: write train, val or test")
    names = [word for word in models if "=" not in word or Path(word).exists()]
    overrides = tuple(word for word in models if word not in names)
    check_names(names)
    size = None if image_size is None else _lengths(image_size)
    rows = []
    for row in measure_all(names, size, repeats, num_classes, Score(data, split, overrides, tta), threads):
        rows.append(row)
        typer.echo(f"{len(rows)}/{len(names)} {row.name}{f': {row.error}' if row.error else ''}", err=True)
    table = ModelTable(rows)
    files = table.save(out) if out is not None else []
    if as_json:
        print_json({"models": [asdict(row) for row in rows], "files": [str(path) for path in files]})
    else:
        header, lines = table.table()
        sizes = sorted({" x ".join(map(str, row.image_size)) for row in rows if row.image_size})
        devices = sorted({row.device for row in rows if row.device})
        print_table(f"one image of {', '.join(sizes)}; {', '.join(devices)}", header, lines)
        for path in files:
            typer.echo(str(path))
    if any(row.error for row in rows):
        raise typer.Exit(1)


@benchmark_app.command("grid")
def benchmark_grid(
    backbones: Annotated[str, typer.Option("--backbones", help="Names, as in simple,resnet18.")],
    heads: Annotated[str, typer.Option("--heads", help="Names, as in maskrcnn,lw_detr.")],
    overrides: Overrides = None,
    data: DataPath = None,
    config_dir: ConfigDir = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each pair.")] = 1,
    name: Annotated[str, typer.Option("--name", help="Folder below runs/sweeps.")] = "grid",
    examples: Annotated[int, typer.Option("--examples", min=0, help="Images that all models segment.")] = 3,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every backbone under every head; draw their scores, their speed and what they see.

    The same command goes on with an interrupted grid; exit code 1 tells that a training failed.
    """
    from pixvox.benchmark.grid import grid_cells, report
    from pixvox.overrides import data_overrides
    from pixvox.training.sweep import run_sweep, sweep_folder

    given = list(overrides or ())
    given = [*(data_overrides(data, given) if data is not None else []), *given]
    cells = grid_cells(_names(backbones) or (), _names(heads) or (), seeds, given)
    outcome = run_sweep(cells, sweep_folder(given, name), config_dir)
    if outcome.finished:
        show_comparison(*report(outcome, examples), as_json)
    elif as_json:
        print_json({"sweep": str(outcome.folder), "failed": outcome.failed})
    exit_if_failed(outcome)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _axes(text: str) -> list[int]:
    wrong = [axes for axes in _names(text) or () if axes not in ("2", "3")]
    if wrong or not text.strip():
        raise ConfigError(f"--dims {text}: write 2 for images, 3 for volumes, or 2,3")
    return [int(axes) for axes in _names(text) or ()]

"""The command line: each command composes a configuration, calls the library and prints.

``key=value`` are overrides of the configuration; every path is an option or argument. Nothing heavy is
imported before a command runs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pixvox.benchmark.commands import benchmark_app
from pixvox.command_options import ConfigDir, DataPath, Debug, Json, Overrides, RunPath
from pixvox.console import exit_if_failed, print_json, print_table, show_comparison
from pixvox.data.volumes.commands import data_convert, data_index
from pixvox.errors import ConfigError, PixvoxError
from pixvox.metrics.commands import score
from pixvox.visualization.commands import view

app = typer.Typer(
    name="pixvox",
    help="Segment pixels and voxels: instance and semantic, 2-D and 3-D.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    no_args_is_help=True,
    help="Make synthetic datasets, check datasets before training, convert and catalogue volumes.",
)
data_app.command("convert")(data_convert)
data_app.command("index")(data_index)
app.add_typer(data_app, name="data")
app.add_typer(benchmark_app, name="benchmark")


class DatasetKind(StrEnum):
    """Datasets that can be made."""

    shapes = "shapes"
    digits = "digits"
    nuclei3d = "nuclei3d"


class Split(StrEnum):
    """Parts of a dataset that have truth."""

    train = "train"
    val = "val"
    test = "test"


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Show versions, device, memory and extras."""
    from pixvox.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    device, extras = found["device"], found["extras"]
    rows = [("pixvox", found["pixvox"]), ("python", found["python"]), ("platform", found["platform"])]
    rows += [(name, version or "missing") for name, version in found["packages"].items()]
    memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
    rows.append(("device", f"{device['kind']}: {device['name']}{memory}"))
    rows.append(("cores", f"{found['cpu_cores']} ({found['threads']} threads in torch)"))
    rows.append(("memory", f"{found['memory_gib']} GiB"))
    rows += [
        (
            f"[{name}]",
            f"installed ({extra['for']})"
            if extra["installed"]
            else f"{extra['install']}  for {extra['for']}",
        )
        for name, extra in extras.items()
    ]
    print_table("pixvox doctor", ("what", "found"), rows)


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> None:
    """List backbones and heads, with the dimensions and tasks they are for."""
    from pixvox.models import list_backbones, list_heads, part_class

    rows: list[dict[str, Any]] = []
    for kind, names in (("backbone", list_backbones()), ("head", list_heads())):
        for name in names:
            part = part_class(kind, name)
            dims = [int(dim) for dim in getattr(part, "supported_dims", (2, 3))]
            text = (part.__doc__ or "").strip().splitlines()
            rows.append(
                {
                    "kind": kind,
                    "name": name,
                    "dims": dims,
                    "task": ", ".join(part.known_tasks()) if kind == "head" else None,
                    "about": text[0] if text else "",
                }
            )
    if as_json:
        print_json({"models": rows})
        return
    print_table(
        "pixvox models",
        ("kind", "name", "for", "task", "about"),
        [
            (
                row["kind"],
                row["name"],
                " ".join(f"{dim}-D" for dim in row["dims"]),
                row["task"] or "",
                row["about"],
            )
            for row in rows
        ],
    )


@data_app.command("make")
def data_make(
    kind: Annotated[DatasetKind, typer.Argument(help="What to make.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new dataset.")],
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a synthetic dataset on disk, the same bits for the same seed."""
    from pixvox.data.make import make_dataset

    made = make_dataset(kind.value, out, **_options(overrides))
    if as_json:
        print_json({"path": str(made), "kind": kind.value})
    else:
        typer.echo(f"made {kind.value} in {made}")


@data_app.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="A dataset on disk.")],
    overrides: Overrides = None,
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest", help="Propose a configuration with reasons; head=..., backbone=... say what for."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is in a dataset and what is wrong with it; exit code 2 when training would fail."""
    from pixvox.data.check import check_dataset, split_overrides

    of_data, of_training = split_overrides(overrides or ()) if suggest else (list(overrides or ()), [])
    options = _options(of_data)
    report = check_dataset(path, **options)
    found = None
    if suggest and report.ok:
        from pixvox.training.automatic import suggest_for_dataset

        found = suggest_for_dataset(path, options, of_training)
    if as_json:
        print_json({**report.to_dict(), **({"suggestions": found.to_dict()} if found else {})})
    else:
        typer.echo(str(report), err=not report.ok)
        if found is not None:
            typer.echo(f"\nsuggestions, used by: pixvox train --data {path} auto=true\n\n{found}")
    if not report.ok:
        raise typer.Exit(2)


@app.command()
def train(
    overrides: Overrides = None,
    data: DataPath = None,
    config_dir: ConfigDir = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this run (resume=true continues the newest).")
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Train every combination of head=a,b learning_rate=1e-3,1e-4 seed=range(3)."
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A YAML or TOML file of settings; KEY=VALUE given beside it win."),
    ] = None,
    configs: Annotated[
        Path | None, typer.Option("--configs", help="Train each file of this folder, one after another.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Folder of --sweep or --configs below runs/sweeps.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model; everything about the run is in its folder."""
    if config is not None:
        from pixvox.config_files import with_file

        overrides = with_file(config, overrides or ())
    if sweep or configs is not None:
        if resume is not None:
            raise ConfigError("--resume continues one run; a sweep that is started again continues by itself")
        _sweep(list(overrides or ()), data, config_dir, sweep, configs, name, as_json)
        return
    if name is not None:
        raise ConfigError("--name names a sweep; give --sweep or --configs, or run_dir=FOLDER for one run")
    from pixvox.training.train import train as run_training

    run = run_training(list(overrides or ()), data=data, config_dir=config_dir, resume=resume)
    if as_json:
        print_json({"run": str(run.dir), "metrics": run.metrics, **run.summary})


def _sweep(
    overrides: list[str],
    data: Path | None,
    config_dir: Path | None,
    sweep: bool,
    configs: Path | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Train several, then compare them; exit code 1 when one failed."""
    from pixvox.overrides import data_overrides
    from pixvox.training.sweep import (
        folder_name,
        folder_of_configs,
        grid,
        run_sweep,
        sweep_folder,
        sweep_name,
    )

    chosen = [*(data_overrides(data, overrides) if data is not None else []), *overrides]
    if configs is not None:
        if not configs.is_dir():
            raise ConfigError(f"--configs {configs}: there is no such folder")
        cells = folder_of_configs(configs, chosen)
        if len(grid(chosen)) > 1 and not sweep:
            raise ConfigError("an override has several values; add --sweep to train each of them")
    else:
        cells = grid(chosen)
    default = folder_name(configs.resolve().name) if configs is not None else sweep_name(chosen)
    folder = sweep_folder(chosen, name or default)
    outcome = run_sweep(cells, folder, config_dir)
    if outcome.finished:
        _show_comparison([folder / cell for cell in outcome.finished], None, folder, as_json)
    elif as_json:
        print_json({"sweep": str(folder), "failed": outcome.failed})
    exit_if_failed(outcome)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    score: Annotated[str | None, typer.Option("--score", help="By default that of the best epoch.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for comparison.csv, comparison.md and pictures."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare trainings: what differs, the best score with its spread over seeds, seconds and memory."""
    _show_comparison(runs, score, out, as_json)


def _show_comparison(runs: Sequence[Path], score: str | None, out: Path | None, as_json: bool) -> None:
    from pixvox.training.comparison import compare as compare_runs

    comparison = compare_runs(runs, score)
    show_comparison(comparison, comparison.save(out) if out is not None else [], as_json)


@app.command()
def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    data: DataPath = None,
    split: Annotated[Split, typer.Option("--split", help="Part of the dataset.")] = Split.val,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Also write scores.json, and of classes per_class.csv and a figure."
        ),
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a trained model, by default on the data of its run."""
    from pixvox.evaluation import evaluation

    found = evaluation(
        run, data=data, split=split.value, overrides=list(overrides or ()), config_dir=config_dir
    )
    files = found.save(out) if out is not None else []
    if as_json:
        facts = {"run": str(run), "split": split.value, "metrics": found.scores}
        print_json({**facts, **({"files": [str(path) for path in files]} if files else {})})
        return
    # What the table of classes shows needs no rows of its own.
    rows = [(name, value) for name, value in found.scores.items() if not (found.classes and "/" in name)]
    print_table(f"{run}, {split.value}", ("score", "value"), [(name, f"{value:.4f}") for name, value in rows])
    if found.classes is not None:
        print_table("classes", found.classes.header, found.classes.cells())
    for path in files:
        typer.echo(str(path))


app.command()(score)
app.command()(view)


@app.command()
def predict(
    run: RunPath,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUTS... [inference.KEY=VALUE]...",
            help="Images, volumes, folders of them, videos; and options such as inference.tile_size=512.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("results"),
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            help="Leave out objects below this score (default: the head's confident_score, mostly 0.5).",
        ),
    ] = None,
    cut_out: Annotated[
        str | None,
        typer.Option(
            "--cut-out",
            metavar="CLASS",
            help="Also write images with only this class left (all: every object), from a score of 0.7 on.",
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option("--background", help="Of cut-outs: a colour or a picture; by default transparent."),
    ] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Cut the class away and leave the rest.")] = False,
    closing: Annotated[
        int, typer.Option("--closing", min=0, help="Bridge gaps of cut-outs with a disc of this radius.")
    ] = 0,
    max_hole: Annotated[
        int, typer.Option("--max-hole", min=0, help="Fill holes of cut-outs up to this many pixels.")
    ] = 0,
    feather: Annotated[
        float, typer.Option("--feather", min=0.0, help="Soften the edge of cut-outs, in pixels.")
    ] = 0.0,
    as_labels: Annotated[
        bool,
        typer.Option(
            "--as-labels",
            help="Write what the model is sure of as a dataset to train on: images beside labels.",
        ),
    ] = False,
    values: Annotated[
        str | None,
        typer.Option(
            "--label-values",
            metavar="NAME",
            help="Instead write a zip for a benchmark: class maps with the values of Cityscapes, or of 7,8,11,...",
        ),
    ] = None,
    video_labels: Annotated[
        bool, typer.Option("--video-labels", help="Also write the label map of every frame of videos.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Segment images or volumes: label map, COCO file or table, and overlay for each; of videos an overlay.

    Images that cannot be read are left out and listed at the end, with exit code 2.
    """
    from pixvox.prediction import inference_options, predict_files, predict_labels, predict_submission

    options = {
        "background": background, "invert": invert, "closing": closing, "max_hole": max_hole, "feather": feather,
    }  # fmt: skip
    if cut_out is None and any(options.values()):
        raise ConfigError("--background, --invert, --closing, --max-hole and --feather need --cut-out CLASS")
    if (as_labels, cut_out is not None, values is not None).count(True) > 1:
        raise ConfigError(
            "--as-labels writes a dataset, --label-values a submission, --cut-out pictures; give one of them"
        )
    inputs, inference = inference_options(inputs)
    least = 0.7 if threshold is None else threshold
    cut = None if cut_out is None else {"of": cut_out, "score_threshold": least, **options}
    if as_labels:
        rows = predict_labels(run, inputs, out, threshold, **inference)
    elif values is not None:
        rows = predict_submission(run, inputs, out, values, **inference)
    else:
        rows = predict_files(run, inputs, out, cut, video_labels, score_threshold=threshold, **inference)
    if as_json:
        print_json({"run": str(run), "out": str(out), "results": rows})
    else:
        for row in rows:
            if "error" not in row:
                files = ", ".join(row.get("files", ()))
                typer.echo(f"{row['source']}: {row['found']}{f' -> {files}' if files else ''}")
    failed = [row for row in rows if "error" in row]
    if failed:
        listed = "".join(f"\n  - {row['error']}" for row in failed)
        typer.echo(f"error: {len(failed)} of {len(rows)} images were not segmented:{listed}", err=True)
        raise typer.Exit(2)


@app.command()
def visualize(
    run: RunPath,
    overrides: Overrides = None,
    data: DataPath = None,
    split: Annotated[Split, typer.Option("--split", help="Part of the dataset.")] = Split.val,
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="Rows of the picture.")] = 3,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            help="Leave out objects below this score.",
            show_default="the head's own",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw original, ground truth and prediction: model_predictions_viz.png beside the checkpoint."""
    from pixvox.evaluation import visualize as draw

    path = draw(run, data, split.value, list(overrides or ()), num_images, threshold)
    if as_json:
        print_json({"run": str(run), "picture": str(path)})
    else:
        typer.echo(str(path))


def _options(overrides: Sequence[str] | None) -> dict[str, Any]:
    """Read overrides as keyword arguments of a function."""
    from omegaconf import OmegaConf
    from yaml import YAMLError  # type: ignore[import-untyped]

    wrong = [text for text in overrides or () if "=" not in text]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is not an option: write key=value")
    parsed = OmegaConf.create()
    for text in overrides or ():
        try:
            parsed.merge_with_dotlist([text])
        except YAMLError as error:
            raise ConfigError(
                f"{text!r} cannot be read: write lists as key=[1,2], and close quotes"
            ) from error
    container = OmegaConf.to_container(parsed)
    return {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 130 Ctrl-C, 143 SIGTERM after saving."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "matplotlib", "fsspec", "numcodecs"):
        logging.getLogger(name).setLevel(logging.WARNING)
    debug = "--debug" in arguments
    try:
        code = app(args=list(arguments), standalone_mode=False)
    except PixvoxError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        return 2
    except OSError as error:
        if debug or error.filename is None:
            raise
        reason = (error.strerror or type(error).__name__).lower()
        typer.echo(f"error: {error.filename}: {reason}; check the path, its rights and the space", err=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        return _other_failure(error)
    return code if isinstance(code, int) else 0


def _other_failure(error: Exception) -> int:
    """Show a wrong command line as typer does; let everything else be seen."""
    if isinstance(error, typer.Abort):
        return 130
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # typer's click exists under two names
        error.show()
        return int(error.exit_code)
    raise error

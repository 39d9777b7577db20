"""A table of models: what they score, and what a prediction costs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixvox.errors import ConfigError, PixvoxError
from pixvox.files import whole_file
from pixvox.models import create_model, list_heads, split_name
from pixvox.processes import context_with, run_alone
from pixvox.training.run_folder import RunFolder, find_run

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

SIZES = {2: 512, 3: 96}
"""Sides of the images and volumes that models are measured with, by default."""

TTA = ("inference.tta.scales=[0.5,0.75,1,1.25,1.5]", "inference.tta.flips=[-1]")
"""Augmentation at test time, of volumes too: five sizes, each also mirrored left and right."""


@dataclass(frozen=True)
class Score:
    """How models are scored.

    Args:
        data: A dataset's path; None for the data of each run.
        split: ``"train"``, ``"val"`` or ``"test"``.
        overrides: Of the evaluation's configuration, such as ``data=camvid``.
        tta: Whether class maps are scored with augmentation at test time, too.
    """

    data: Path | None = None
    split: str = "val"
    overrides: tuple[str, ...] = ()
    tta: bool = False

    @property
    def anew(self) -> bool:
        """Whether the scores that runs have kept are those of something else."""
        return self.data is not None or self.split != "val" or bool(self.overrides)


@dataclass(frozen=True)
class Model:
    """One row.

    Args:
        name: A run folder, a checkpoint, or ``HEAD`` or ``HEAD_BACKBONE`` of a model that has not learned.
        score_name: Main score of its task, such as ``"mIoU"``.
        score: Its value; NaN where it is unknown.
        score_tta: The same with augmentation at test time.
        parameters: Number of weights.
        gmacs: Multiply-adds of a prediction in 1e9: convolutions, products and attention.
        memory_mib: Most that a prediction took, weights included: on the device, or what the process grew by.
        milliseconds: Median of a prediction.
        image_size: What was predicted, in array order.
        device: Where.
        error: Why there is no more to tell.
    """

    name: str
    score_name: str = ""
    score: float = math.nan
    score_tta: float = math.nan
    parameters: int = 0
    gmacs: float = math.nan
    memory_mib: float = math.nan
    milliseconds: float = math.nan
    image_size: tuple[int, ...] = ()
    device: str = ""
    error: str = ""


@dataclass(frozen=True)
class ModelTable:
    """Rows of models, in the order in which they were given.

    Args:
        rows: One for each model.
    """

    rows: Sequence[Model] = field(default_factory=tuple)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return a header and cells for people; columns that no model has are left out."""
        names = {row.score_name for row in self.rows if not math.isnan(row.score)}
        title = names.pop() if len(names) == 1 else "score"
        one_score = not names
        header = ["model", title, f"{title} (TTA)", "million parameters", "GMACs", "peak MiB", "ms"]
        lines = [
            [
                row.name, _score_text(row, row.score, one_score), _score_text(row, row.score_tta, one_score),
                f"{row.parameters / 1e6:.2f}" if row.parameters else "", _text(row.gmacs, 2),
                _text(row.memory_mib, 0), _text(row.milliseconds, 1),
            ]
            for row in self.rows
        ]  # fmt: skip
        used = [i for i in range(len(header)) if i == 0 or i > 2 or any(line[i] for line in lines)]
        return [header[i] for i in used], [[line[i] for i in used] for line in lines]

    def markdown(self) -> str:
        """Return the table in Markdown, and below it what failed."""
        header, lines = self.table()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        text = "".join("| " + " | ".join(line) + " |\n" for line in (header, rule, *lines))
        failed = "".join(f"\n- {row.name}: {row.error}" for row in self.rows if row.error)
        return text + (f"{failed}\n" if failed else "")

    def save(self, folder: Path) -> list[Path]:
        """Write ``models.csv`` and ``models.md``; return them."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "models.csv", folder / "models.md"]
        with whole_file(paths[0]) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(Model(""))))
            writer.writeheader()
            for row in self.rows:
                plain = {**asdict(row), "image_size": "x".join(map(str, row.image_size))}
                writer.writerow({key: "" if value != value else value for key, value in plain.items()})
        with whole_file(paths[1]) as part:
            part.write_text(self.markdown(), encoding="utf-8")
        return paths


def _text(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def _score_text(row: Model, value: float, one_score: bool) -> str:
    return "" if math.isnan(value) else f"{value:.4f}" + ("" if one_score else f" ({row.score_name})")


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no model before any is measured.

    Raises:
        ConfigError: If there is none, or a name means nothing.
    """
    if not names:
        raise ConfigError("give run folders, checkpoints, or names such as fcn_resnet50")
    for name in names:
        if not _exists(name) and split_name(name)[0] not in list_heads():
            raise ConfigError(
                f"{name} is neither a run folder or checkpoint nor HEAD or HEAD_BACKBONE, such as fcn_resnet50; heads: "
                f"{', '.join(list_heads())}"
            )


def measure_all(
    names: Sequence[str],
    image_size: Sequence[int] | int | None = None,
    repeats: int = 10,
    num_classes: int = 21,
    scoring: Score | None = None,
    threads: int | None = None,
) -> Iterator[Model]:
    """Measure models one after the other, each in a process of its own, and give them out as they are done.

    Args:
        names: Run folders, checkpoints, or ``HEAD`` or ``HEAD_BACKBONE`` for models that have not learned.
        image_size: Side in pixels or voxels, or one per axis in array order; None is that of ``SIZES``.
        repeats: Passes whose median tells the time, after three that do not count.
        num_classes: Of models that have not learned.
        scoring: How models that have learned are scored.
        threads: Threads of torch; by default torch's own number.

    Raises:
        ConfigError: If a name means nothing.
    """
    check_names(names)
    context = context_with(["pixvox.benchmark.models", "pixvox.weights", "timm"])
    for name in names:
        try:
            row = run_alone(context, _measure, name, image_size, repeats, num_classes, threads)
        except BrokenProcessPool as error:
            row = Model(name, error=f"its process ended: {error}")
        if _exists(name) and not row.error:
            row = _scored(row, scoring or Score())
        yield row


def measure(
    name: str, image_size: Sequence[int] | int | None = None, repeats: int = 10, num_classes: int = 21
) -> Model:
    """Measure what the prediction of one image costs; the arguments are those of ``measure_all``.

    Memory on the host is what this process grows by, so it wants a process of its own.
    """
    from pixvox.callbacks.summary import peak_memory_mib
    from pixvox.component_timing import time_components
    from pixvox.flops import count_flops

    before = peak_memory_mib().get("host", math.nan)
    model = _model(name, num_classes)
    times = time_components(
        model, SIZES[model.spatial_dims] if image_size is None else image_size, 1, repeats
    )
    peak = times.peak_memory_mib
    memory = peak["cuda"] if "cuda" in peak else peak.get("host", math.nan) - before
    return Model(
        name,
        parameters=times.parameters["total"],
        gmacs=count_flops(model, times.image_size)["total"] / 2e9,
        memory_mib=round(memory, 1),
        milliseconds=times.milliseconds["total"],
        image_size=times.image_size,
        device=times.device,
    )


def _measure(
    name: str, image_size: Sequence[int] | int | None, repeats: int, num_classes: int, threads: int | None
) -> Model:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return measure(name, image_size, repeats, num_classes)
    except Exception as error:  # whatever it is, it is this model's result
        said = str(error) if isinstance(error, PixvoxError) else f"{type(error).__name__}: {error}"
        return Model(name, error=said[:400])


def _model(name: str, num_classes: int) -> Segmenter:
    if _exists(name):
        from pixvox.weights import load

        return load(name)
    return create_model(name, num_classes=num_classes)


def _exists(name: str) -> bool:
    return Path(name).exists()


def _scored(row: Model, scoring: Score) -> Model:
    """Return the row with its scores: those that the run has kept, or new ones."""
    summary = _summary(row.name)
    monitor = str(summary.get("monitor") or "").removeprefix("val/")
    kept = summary.get("best") or {}
    try:
        scores = kept if monitor in kept and not scoring.anew else _evaluate(row.name, scoring)
        main = monitor if monitor in scores else next(name for name in ("mIoU", "PQ", "AP") if name in scores)
        row = replace(row, score_name=main, score=float(scores[main]))
        if scoring.tta and main == "mIoU":
            row = replace(row, score_tta=_evaluate(row.name, scoring, TTA)[main])
    except (PixvoxError, StopIteration) as error:
        return replace(row, error=f"not scored: {error or 'no main score'}")
    return row


def _evaluate(name: str, scoring: Score, more: Sequence[str] = ()) -> dict[str, float]:
    from pixvox.evaluation import evaluate

    return evaluate(name, scoring.data, scoring.split, [*scoring.overrides, *more])


def _summary(name: str) -> Mapping[str, Any]:
    """Return what a run has written of itself; nothing where there is no run."""
    try:
        run: RunFolder = find_run(name)
        summary = json.loads(run.summary.read_text())
    except (PixvoxError, OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}

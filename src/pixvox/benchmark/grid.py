"""A grid of trainings, backbones by heads: their scores, their speed, and what they see in the same images."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from pixvox.component_timing import device_name, time_batch
from pixvox.errors import ConfigError
from pixvox.evaluation import first_pairs, loader, prepare
from pixvox.structures import Segmentation
from pixvox.training.comparison import Comparison, compare
from pixvox.training.run_folder import RunFolder
from pixvox.training.sweep import Cell, Outcome, grid

log = logging.getLogger("pixvox")

T = TypeVar("T")


def grid_cells(
    backbones: Sequence[str], heads: Sequence[str], seeds: int = 1, overrides: Sequence[str] = ()
) -> list[Cell]:
    """Return the trainings of a grid: each backbone under each head with each seed.

    Args:
        backbones: Their names.
        heads: Their names.
        seeds: Trainings of each pair, with seeds from 0 on.
        overrides: What all share; lists of values multiply the grid.

    Raises:
        ConfigError: If there is no backbone, head or seed, or the overrides choose one of them.

    Example:
        >>> [cell.name for cell in grid_cells(["simple", "resnet18"], ["fcn"])]
        ['backbone=simple,head=fcn,seed=0', 'backbone=resnet18,head=fcn,seed=0']
    """
    axes = {"backbone": backbones, "head": heads, "seed": [str(seed) for seed in range(seeds)]}
    for key, values in axes.items():
        if not values:
            raise ConfigError(f"a grid needs at least one {key}; give --{key}s")
        twice = next((line for line in overrides if line.startswith(f"{key}=")), None)
        if twice is not None:
            raise ConfigError(f"{twice}: the {key}s of a grid are given by --{key}s")
    return grid([*overrides, *(f"{key}=choice({','.join(values)})" for key, values in axes.items())])


def report(outcome: Outcome, num_examples: int = 3, repeats: int = 10) -> tuple[Comparison, list[Path]]:
    """Time every model that is trained, and write tables and pictures into the grid's folder.

    Beside the files of a comparison these are ``example_1.png`` and so on: an image of the validation split as the
    best training of each backbone and head sees it.

    Args:
        outcome: What became of the trainings.
        num_examples: Pictures of examples.
        repeats: Passes over the first validation batch whose median tells the speed.

    Returns:
        Scores and speed, best first, and the files.

    Raises:
        ConfigError: If no training is finished.
    """
    runs = [outcome.folder / name for name in outcome.finished]
    compare(runs).save(outcome.folder)  # whatever comes of the rest
    for run in runs:
        _try(f"the speed of {run.name} was not measured", measure_speed, run, repeats)
    comparison = compare(runs)
    files = comparison.save(outcome.folder)
    return comparison, [*files, *draw_examples(comparison, outcome.folder, num_examples)]


def _try(failure: str, work: Callable[..., T], *arguments: Any) -> T | None:
    """Do what trained models are worth more than: a failure is told, and nothing is returned."""
    try:
        return work(*arguments)
    except Exception as error:
        log.warning("%s: %s: %s", failure, type(error).__name__, error)
        return None


def measure_speed(run: Path, repeats: int = 10) -> None:
    """Time the prediction of a run's first validation batch, and note it in ``speed.json``; once on each device.

    Args:
        run: A run folder.
        repeats: Passes that count, after one that does not.
    """
    place = RunFolder(run)
    if place.speed.exists() and json.loads(place.speed.read_text())["device"] == device_name():
        return
    log.info("timing %s", run.name)
    model, datamodule, _ = prepare(run)
    batch = next(iter(loader(datamodule, "val")))
    place.write_json(place.speed, asdict(time_batch(model, batch, repeats, warmup=1)))


def draw_examples(comparison: Comparison, folder: Path, num_examples: int = 3) -> list[Path]:
    """Draw the first validation images as a training of each backbone and head sees them.

    Of each pair it is the best training with the lowest seed: others may have been validated on other images.

    Args:
        comparison: The trainings.
        folder: Where ``example_1.png`` and so on go.
        num_examples: How many images.

    Returns:
        The files.
    """
    from pixvox.visualization.model_grid import draw_model_grid

    if num_examples < 1:
        return []
    pictures: list[dict[tuple[str, str], Segmentation]] = []
    truths: list[Segmentation] = []
    for pair, run in sorted(_shown_runs(comparison).items()):
        found = _try(f"{run.name} is in no example", _first_predictions, run, num_examples) or []
        pictures = pictures or [{} for _ in found]
        truths = truths or [truth for _, truth in found]
        for picture, shown, (prediction, truth) in zip(pictures, truths, found, strict=False):
            if (truth.source, truth.size) == (shown.source, shown.size):
                picture[pair] = prediction
            else:
                log.warning("%s is in no example: it was validated on other images", run.name)
    return [
        draw_model_grid(picture, truth, folder / f"example_{number}.png")
        for number, (picture, truth) in enumerate(zip(pictures, truths, strict=True), 1)
    ]


def _shown_runs(comparison: Comparison) -> dict[tuple[str, str], Path]:
    """Return a training of each backbone and head: of the lowest seed in the best row that has it."""
    runs = [(run, OmegaConf.load(RunFolder(run).config)) for row in comparison.rows for run in row.runs]
    lowest = min((config.seed for _, config in runs), default=0)
    shown: dict[tuple[str, str], Path] = {}
    for run, config in runs:
        if config.seed == lowest:
            shown.setdefault((str(config.choices.backbone), str(config.choices.head)), run)
    return shown


def _first_predictions(run: Path, count: int) -> list[tuple[Segmentation, Segmentation]]:
    """Return what a model is sure of in the first validation images, with their truths."""
    from pixvox.visualization.views import drawn_instances

    model, datamodule, _ = prepare(run)
    pairs, _ = first_pairs(model, loader(datamodule, "val"), count)
    return [(drawn_instances(found, model.head.confident_score), truth) for found, truth in pairs]

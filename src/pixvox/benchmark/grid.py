"""A grid of trainings, backbones by heads: their scores, their speed, and what they see in the same images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from pixvox.component_timing import time_batch
from pixvox.errors import ConfigError
from pixvox.evaluation import first_pairs, loader, prepare
from pixvox.structures import Segmentation
from pixvox.training.comparison import Comparison, compare
from pixvox.training.run_folder import RunFolder
from pixvox.training.sweep import Cell, Outcome, grid

log = logging.getLogger("pixvox")


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
    for run in runs:
        measure_speed(run, repeats)
    comparison = compare(runs)
    files = comparison.save(outcome.folder)
    return comparison, [*files, *draw_examples(comparison, outcome.folder, num_examples)]


def measure_speed(run: Path, repeats: int = 10) -> None:
    """Time the prediction of a run's first validation batch, and note it in ``speed.json``; once for each run.

    Args:
        run: A run folder.
        repeats: Passes that count, after one that does not.
    """
    place = RunFolder(run)
    if place.speed.exists():
        return
    log.info("timing %s", run.name)
    model, datamodule, _ = prepare(run)
    batch = next(iter(loader(datamodule, "val")))
    place.write_json(place.speed, asdict(time_batch(model, batch, repeats, warmup=1)))


def draw_examples(comparison: Comparison, folder: Path, num_examples: int = 3) -> list[Path]:
    """Draw the first validation images as the best training of each backbone and head sees them.

    Args:
        comparison: The trainings.
        folder: Where ``example_1.png`` and so on go.
        num_examples: How many images.

    Returns:
        The files.
    """
    from pixvox.visualization.model_grid import draw_model_grid
    from pixvox.visualization.views import drawn_instances

    pictures: list[dict[tuple[str, str], Segmentation]] = []
    truths: list[Segmentation] = []
    best: dict[tuple[str, str], Path] = {}
    for row in reversed(comparison.rows):  # the best is written last
        run = comparison.best_run(row)
        best[_pair(run)] = run
    for pair, run in sorted(best.items()):
        model, datamodule, _ = prepare(run)
        pairs, _ = first_pairs(model, loader(datamodule, "val"), num_examples)
        pictures = pictures or [{} for _ in pairs]
        truths = truths or [truth for _, truth in pairs]
        for picture, (prediction, _) in zip(pictures, pairs, strict=True):
            picture[pair] = drawn_instances(prediction, model.head.confident_score)
    return [
        draw_model_grid(picture, truth, folder / f"example_{number}.png")
        for number, (picture, truth) in enumerate(zip(pictures, truths, strict=True), 1)
    ]


def _pair(run: Path) -> tuple[str, str]:
    """Return the names of a run's backbone and head."""
    choices = OmegaConf.load(RunFolder(run).config).choices
    return str(choices.backbone), str(choices.head)

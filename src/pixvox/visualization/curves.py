"""Training curves from the CSV log of a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pixvox.errors import DataError
from pixvox.visualization.figure import INK, MUTED, SERIES, chart_axes, new_figure, save_figure

Series = tuple[list[float], list[float]]
"""Steps and values of one column, without its gaps."""

_FIRST_SCORES = (
    "mask_AP50", "mask_AP", "box_AP50", "matched_AP50", "AP50", "AP", "PQ", "F1_50",
    "mIoU", "mDice", "mDice_foreground", "acc", "macc", "fwIoU",
)  # fmt: skip
_MOST_LINES = 6


def read_metrics(metrics_csv: str | Path) -> dict[str, Series]:
    """Return the columns of a Lightning CSV log over the step; rows leave most columns empty.

    Raises:
        DataError: If the file is missing or has no column ``step``.
    """
    path = Path(metrics_csv)
    if not path.is_file():
        raise DataError(f"{path} does not exist; it is written by training, in the run folder")
    columns: dict[str, Series] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is not None and "step" not in reader.fieldnames:
            raise DataError(f"{path} has no column 'step', only {', '.join(reader.fieldnames)}")
        for row in reader:
            for name, text in row.items():
                value = _number(text)
                if name not in ("step", "epoch", None) and value is not None:
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(_number(row["step"]) or 0.0)
                    values.append(value)
    return columns


def _number(text: str | None) -> float | None:
    """Return a finite number, or None for a gap, NaN or infinity."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def draw_curves(metrics_csv: str | Path, path: str | Path, best_by: str | None = None) -> Path:
    """Write the losses, their terms, the scores and the learning rate of a run; the best step is marked.

    Args:
        metrics_csv: Lightning's CSV log, with columns such as ``train/loss``, ``val/loss``, ``val/AP50``.
        path: PNG file; its folder is made when missing.
        best_by: ``"max:<score>"`` or ``"min:<score>"`` as in ``Metrics.best_by``; None for the first score.

    Raises:
        DataError: If the log cannot be read.
    """
    columns = read_metrics(metrics_csv)
    losses = _pick(columns, ("train/loss", "val/loss"))
    terms = {name: s for name, s in columns.items() if name.startswith("train/") and name not in losses}
    scores = _scores(columns, best_by)
    panels = [
        ("loss", losses),
        ("loss terms", dict(list(terms.items())[:_MOST_LINES])),
        ("scores", scores),
        ("learning rate", _pick(columns, ("learning_rate",))),
    ]
    panels = [(title, lines) for title, lines in panels if lines]
    wide = 2 if len(panels) > 1 else 1
    high = max(1, -(-len(panels) // wide))
    figure = new_figure(5.2 * wide, 3.3 * high)
    grid = figure.subplots(high, wide, squeeze=False).reshape(-1)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        figure.text(0.5, 0.5, "nothing was logged yet", color=MUTED, ha="center")
    for axes, (title, lines) in zip(grid, panels, strict=False):
        chart_axes(axes, title, "step")
        _draw_lines(axes, lines, smooth=title in ("loss", "loss terms"))
        if title == "scores":
            _mark_best(axes, lines, best_by)
            axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        if title == "learning rate":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        if len(lines) > 1 or title == "scores":
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return save_figure(figure, path)


def _pick(columns: Mapping[str, Series], names: Iterable[str]) -> dict[str, Series]:
    return {name: columns[name] for name in names if name in columns}


def _scores(columns: Mapping[str, Series], best_by: str | None) -> dict[str, Series]:
    """Return the most telling scores, that of ``best_by`` first."""
    wanted = [best_by.partition(":")[2]] if best_by else []
    names = [f"val/{name}" for name in [*wanted, *_FIRST_SCORES] if "loss" not in name]
    return dict(list(_pick(columns, dict.fromkeys(names)).items())[:_MOST_LINES])


def _draw_lines(axes: Axes, lines: Mapping[str, Series], smooth: bool) -> None:
    """Draw series; noisy training losses pale, with their running mean over them."""
    for (name, (steps, values)), color in zip(lines.items(), SERIES, strict=False):
        marker = "o" if len(values) < 30 else None
        label = name.removeprefix("train/").removeprefix("val/") if name.split("/")[-1] != "loss" else name
        if smooth and len(values) > 50:
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.25)
            values = _running_mean(values, len(values) // 25)
        axes.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=label)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Average over a window that shrinks at both ends."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    mean: list[float] = ((totals[high] - totals[low]) / (high - low)).tolist()
    return mean


def _mark_best(axes: Axes, lines: Mapping[str, Series], best_by: str | None) -> None:
    """Mark the best value of the deciding score, the first line."""
    if not lines or (best_by is not None and f"val/{best_by.partition(':')[2]}" not in lines):
        return
    steps, values = next(iter(lines.values()))
    best = int(np.argmin(values) if best_by is not None and best_by.startswith("min") else np.argmax(values))
    axes.plot(
        steps[best], values[best], marker="*", markersize=13, color="#f5b301", markeredgecolor=INK, zorder=5
    )
    axes.annotate(
        f"{values[best]:.3f}",
        (steps[best], values[best]),
        xytext=(0, 9),
        textcoords="offset points",
        fontsize=8,
        color=INK,
        ha="center",
        fontweight="bold",
    )

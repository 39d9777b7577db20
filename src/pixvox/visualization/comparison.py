"""Pictures of a comparison of trainings: bars with their spread, heat maps over two settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvox.visualization.figure import GRID, INK, MUTED, SERIES, chart_axes, new_figure, save_figure

if TYPE_CHECKING:
    from pixvox.training.comparison import Comparison, Row

_MOST_BARS = 30
_MOST_MAPS = 6


def draw_bars(comparison: Comparison, path: Path) -> Path:
    """Draw one bar per row with its standard deviation and the single scores as dots; best on top.

    Args:
        comparison: The rows.
        path: PNG file.
    """
    rows = list(comparison.rows)[:_MOST_BARS]
    figure = new_figure(7.2, 1.1 + 0.36 * max(3, len(rows)))
    axes = figure.subplots()
    hidden = len(comparison.rows) - len(rows)
    title = f"{comparison.score}, {'higher' if comparison.mode == 'max' else 'lower'} is better"
    chart_axes(axes, title + (f" (best {len(rows)} of {len(comparison.rows)})" if hidden else ""))
    places = np.arange(len(rows))
    values = [0.0 if math.isnan(row.score) else row.score for row in rows]
    spreads = [0.0 if math.isnan(row.spread) else row.spread for row in rows]
    axes.barh(places, values, color=SERIES[0], alpha=0.85, height=0.62)
    axes.errorbar(values, places, xerr=spreads, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    for place, row in zip(places, rows, strict=True):
        if row.count > 1:
            axes.plot(
                row.scores, [place] * row.count, "o", color="white", markeredgecolor=INK, markersize=3.5
            )
    reach = [value + spread for value, spread in zip(values, spreads, strict=True)]
    most = max([*reach, *(s for row in rows for s in row.scores if not math.isnan(s)), 1e-9])
    for place, row, end in zip(places, rows, reach, strict=True):
        end = max([end, *(s for s in row.scores if not math.isnan(s))])
        label = "no score" if math.isnan(row.score) else f"{row.score:.3f}"
        axes.text(end + 0.015 * most, float(place), label, va="center", fontsize=8, color=INK)
    axes.set_yticks(places, [_label(row) for row in rows], color=INK)
    axes.set_xlim(min(0.0, *values), most * 1.12)
    axes.grid(False, axis="y")
    axes.invert_yaxis()
    return save_figure(figure, path)


def draw_heat_maps(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw the score over each two settings, averaged over all others, and the speed where it is known.

    Args:
        comparison: The rows.
        folder: Files are ``heat_map_A_B.png`` and ``speed_map_A_B.png`` there; backbone and head come first.

    Returns:
        The files.
    """
    columns = sorted(comparison.columns, key=lambda key: (key != "backbone", key != "head"))
    several = [key for key in columns if len(_values(comparison, key)) > 1]
    paths = []
    for keys in list(itertools.combinations(several, 2))[:_MOST_MAPS]:
        name = f"{keys[0]}_{keys[1]}.png".replace("/", "-")
        scores = [row.score for row in comparison.rows]
        paths.append(
            _heat_map(comparison, keys, scores, f"mean {comparison.score}", folder / f"heat_map_{name}")
        )
        if comparison.knows_speed:
            speeds = [row.speed for row in comparison.rows]
            paths.append(
                _heat_map(comparison, keys, speeds, "images per second", folder / f"speed_map_{name}")
            )
    return paths


def _heat_map(
    comparison: Comparison, keys: tuple[str, str], measured: Sequence[float], title: str, path: Path
) -> Path:
    """Draw what was measured for each row over two settings."""
    rows_key, columns_key = keys
    down, across = _values(comparison, rows_key), _values(comparison, columns_key)
    means = np.full((len(down), len(across)), np.nan)
    for i, j in itertools.product(range(len(down)), range(len(across))):
        cell = [
            value
            for row, value in zip(comparison.rows, measured, strict=True)
            if _text(row.settings[rows_key]) == down[i]
            and _text(row.settings[columns_key]) == across[j]
            and not math.isnan(value)
        ]
        if cell:
            means[i, j] = sum(cell) / len(cell)
    figure = new_figure(2.4 + 1.05 * len(across), 1.5 + 0.55 * len(down))
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(means), cmap="viridis", aspect="auto")
    axes.set_facecolor(GRID)
    axes.set_xticks(range(len(across)), across, color=INK, fontsize=8)
    axes.set_yticks(range(len(down)), down, color=INK, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(columns_key, fontsize=9, color=MUTED)
    axes.set_ylabel(rows_key, fontsize=9, color=MUTED)
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    low, high = np.nanmin(means, initial=np.inf), np.nanmax(means, initial=-np.inf)
    for i, j in itertools.product(range(len(down)), range(len(across))):
        value = means[i, j]
        share = 0.0 if not np.isfinite(value) or high <= low else (value - low) / (high - low)
        digits = 3 if high < 10 else 1
        text = f"{value:.{digits}f}" if np.isfinite(value) else "none"
        color = MUTED if not np.isfinite(value) else INK if share > 0.6 else "white"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
    for side in axes.spines.values():
        side.set_visible(False)
    if high > low:
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
        bar.ax.tick_params(labelsize=7, colors=MUTED, length=0)
        bar.outline.set_visible(False)
    return save_figure(figure, path)


def _values(comparison: Comparison, key: str) -> list[str]:
    """Return the values of a setting: numbers by size, words in order of their rows."""
    values = {_text(row.settings[key]): row.settings[key] for row in comparison.rows}
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values()):
        return sorted(values, key=lambda text: float(values[text]))
    return sorted(values)


def _label(row: Row) -> str:
    text = ", ".join(f"{key.rpartition('.')[2]} {_text(value)}" for key, value in row.settings.items())
    text = text or "all runs"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any) -> str:
    from pixvox.training.comparison import setting_text

    return setting_text(value)

"""Figures without global state: matplotlib's objects on an Agg canvas, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pixvox.files import whole_file

INK = "#22272e"
MUTED = "#6b7480"
GRID = "#dfe3e8"
SERIES = ("#2563eb", "#e8590c", "#2b9a66", "#a03bb5", "#c9a000", "#0e9aa7", "#d6336c", "#6b7480")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def picture_axes(axes: Axes) -> None:
    """Leave nothing of the axes but the picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def chart_axes(axes: Axes, title: str = "", x_label: str = "", y_label: str = "") -> None:
    """Give axes a quiet look: light grid, no box, small grey numbers."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9, color=MUTED)
    axes.set_ylabel(y_label, fontsize=9, color=MUTED)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    for name, side in axes.spines.items():
        side.set_visible(name in ("left", "bottom"))
        side.set_color(GRID)


def save_figure(figure: Figure, path: str | Path, **options: Any) -> Path:
    """Write a figure to a temporary file beside ``path`` and rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix.lstrip(".") or "png", **options)
    return path

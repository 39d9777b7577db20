"""The confusion matrix of a class map as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from pixvox.visualization.figure import GRID, INK, MUTED, new_figure, save_figure

_MOST_NUMBERS = 20
_POINTS = 72  # per inch


def draw_confusion_matrix(
    matrix: Integer[np.ndarray, "classes classes"],
    class_names: Sequence[str],
    path: str | Path,
    title: str = "Confusion matrix",
) -> Path:
    """Write the share of each true class (row) that was predicted as each class (column), in per cent.

    The row of a class without a true pixel is grey: it has no shares. Names stay legible for hundreds of classes.

    Args:
        matrix: Counts, as ``SemanticScores.confusion_matrix`` gives them.
        class_names: Names by class index.
        path: PNG file; its folder is made when missing.
        title: Title of the picture.
    """
    names = list(class_names) or [str(i) for i in range(len(matrix))]
    count = len(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    cell = _cell(count)
    font = min(8.0, 0.8 * cell * _POINTS)
    margin = 0.6 * font / _POINTS * max(map(len, names)) + 0.9
    side = max(cell * count + margin, 4.2)
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    drawn = axes.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_facecolor(GRID)
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel("predicted", fontsize=9, color=MUTED)
    axes.set_ylabel("true", fontsize=9, color=MUTED)
    ticks = range(count)
    axes.set_xticks(
        ticks,
        names,
        rotation=90 if count > _MOST_NUMBERS else 45,
        ha="right",
        rotation_mode="anchor",
        fontsize=font,
        color=INK,
    )
    axes.set_yticks(ticks, names, fontsize=font, color=INK)
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    if count <= _MOST_NUMBERS:
        for row, column in np.argwhere(matrix > 0):
            value = share[row, column]
            text = f"{100 * value:.0f}" if value >= 0.005 else "·"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.55 else INK,
            )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, aspect=20 + count // 4)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0, colors=MUTED)
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    return save_figure(figure, path)


def _cell(count: int) -> float:
    """Return the side of a cell in inches: room for its number, or for a line of a name."""
    return 0.52 if count <= _MOST_NUMBERS else max(0.11, 0.3 - 0.002 * (count - _MOST_NUMBERS))

"""Precision over recall at several IoU thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from pixvox.metrics.precision_recall import PrecisionRecallCurve
from pixvox.visualization.figure import MUTED, chart_axes, new_figure, save_figure


def draw_precision_recall(
    curves: Sequence[PrecisionRecallCurve], path: str | Path, title: str = "Precision and recall"
) -> Path:
    """Write a chart with one line per IoU threshold, as ``Metrics.curves()`` gives them.

    Args:
        curves: Curves; an empty list gives a chart that says so.
        path: PNG file; its folder is made when missing.
        title: Title of the chart.
    """
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    chart_axes(axes, title, "recall", "precision")
    axes.set_xlim(0, 1.005)
    axes.set_ylim(0, 1.02)
    shades = colormaps["viridis"](np.linspace(0.05, 0.9, max(len(curves), 1)))
    for curve, shade in zip(curves, shades, strict=False):
        axes.plot(
            curve.recall,
            curve.precision,
            color=shade,
            linewidth=1.6,
            label=f"IoU {curve.iou_threshold:.2f}   AP {curve.average_precision:.3f}",
        )
    if curves:
        mean = np.mean([curve.average_precision for curve in curves])
        legend = axes.legend(
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            fontsize=8,
            title=f"{curves[0].name}, mean AP {mean:.3f}",
            title_fontsize=8,
        )
        legend.get_title().set_fontweight("bold")
    else:
        axes.text(0.5, 0.5, "no ground truth to compare with", color=MUTED, ha="center", fontsize=9)
    return save_figure(figure, path)

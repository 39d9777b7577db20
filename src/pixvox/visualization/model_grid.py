"""One image as several models see it: backbones down, heads across."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pixvox.structures import Segmentation
from pixvox.visualization.figure import INK, MUTED, new_figure, picture_axes, save_figure
from pixvox.visualization.grids import Ground, cell_sizes
from pixvox.visualization.overlay import add_legend
from pixvox.visualization.views import drawn_instances


def draw_model_grid(
    predictions: Mapping[tuple[str, str], Segmentation], truth: Segmentation, path: str | Path
) -> Path:
    """Write a picture of an image and its truth, and below them a row per backbone with a column per head.

    Objects have the colour of the true ones that they match, and are white where there is none.

    Args:
        predictions: What is to be drawn of each pair of backbone and head, with the scores that count; pairs may be
            missing.
        truth: Ground truth; it or the predictions hold the image.
        path: PNG file; its folder is made when missing.
    """
    down, across = (list(dict.fromkeys(pair[i] for pair in predictions)) for i in (0, 1))
    truth = drawn_instances(truth, None)
    ground = Ground.under(truth, next(iter(predictions.values())))
    width, (height,) = cell_sizes([truth])
    columns = max(2, len(across))
    figure = new_figure(width * columns + 0.3, (height + 0.3) * (1 + len(down)))
    grid = figure.subplots(1 + len(down), columns, squeeze=False)
    for axes in grid.flat:
        picture_axes(axes)
    ground.draw(grid[0, 0], truth, ground.name[-40:])
    ground.paint(grid[0, 1], truth, "ground truth")
    for (backbone, head), found in predictions.items():
        axes = grid[1 + down.index(backbone), across.index(head)]
        ground.paint_against(axes, found, truth, head)
    for i, backbone in enumerate(down):
        grid[1 + i, 0].set_ylabel(backbone, fontsize=10, color=INK)
        for j, head in enumerate(across):
            if (backbone, head) not in predictions:
                axes = grid[1 + i, j]
                axes.text(0.5, 0.5, "not trained", color=MUTED, ha="center", transform=axes.transAxes)
    add_legend(figure, [truth, *predictions.values()])
    return save_figure(figure, path)

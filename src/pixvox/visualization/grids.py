"""Predictions beside their ground truth: the picture that finds label bugs which a loss curve never shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes

from pixvox.metrics.overlaps import element_overlaps, elements
from pixvox.structures import Segmentation
from pixvox.visualization.figure import INK, MUTED, new_figure, picture_axes, save_figure
from pixvox.visualization.overlay import add_captions, add_legend, extent, mosaic, zoom_of
from pixvox.visualization.views import drawn_instances, focus, layer_colors, views

UNMATCHED_COLOR = (255, 255, 255)
_CELL = 3.4


def draw_predictions(
    pairs: Sequence[tuple[Segmentation, Segmentation | None]],
    path: str | Path,
    max_images: int = 4,
    score_threshold: float | None = 0.5,
    title: str = "",
) -> Path:
    """Write a picture with a row per image: original, ground truth, prediction.

    Volumes are cut where the truth has most foreground, in all three columns alike. A predicted object has
    the colour of the true one that it matches, and is white where there is none.

    Args:
        pairs: Prediction and truth, which may be None; one of them holds the image.
        path: PNG file; its folder is made when missing.
        max_images: Number of rows at most.
        score_threshold: Lowest score of a prediction that is drawn; None draws all.
        title: Line above the picture.
    """
    rows = list(pairs)[:max_images]
    with_truth = any(truth is not None for _, truth in rows)
    columns = ["image", *(["ground truth"] if with_truth else []), "prediction"]
    shapes = [_shape(prediction) for prediction, _ in rows] or [(1, 1)]
    width = max(width / height for height, width in shapes)
    cell = min(max(_CELL * width, 2.2), 5.5)
    heights = [cell * min(height / width, 1.6) for height, width in shapes]
    figure = new_figure(cell * len(columns), sum(heights) + 0.3 * len(rows) + 0.3)
    if not rows:
        figure.text(0.5, 0.5, "no images", color=MUTED, horizontalalignment="center")
        return save_figure(figure, path)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    painted: list[Segmentation] = []
    for axes, (prediction, truth) in zip(grid, rows, strict=True):
        painted += _draw_row(list(axes), prediction, truth, score_threshold, with_truth)
    add_legend(figure, painted)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return save_figure(figure, path)


def _shape(segmentation: Segmentation) -> tuple[float, float]:
    """Return height and width of one cell: an image, or the mosaic of a volume."""
    lengths = extent(segmentation)
    if len(lengths) == 2:
        return lengths[0], lengths[1]
    return lengths[1] + lengths[0], 2 * lengths[2] + lengths[0]


def _draw_row(
    axes: Sequence[Axes],
    prediction: Segmentation,
    truth: Segmentation | None,
    score_threshold: float | None,
    with_truth: bool,
) -> list[Segmentation]:
    """Draw one image, its truth and its prediction; return what was painted."""
    prediction = drawn_instances(prediction, score_threshold)
    truth = None if truth is None else drawn_instances(truth, None)
    reference = prediction if truth is None else truth
    image = prediction.image if reference.image is None else reference.image
    zoom = zoom_of(prediction.size)
    position = focus(reference) if reference.spatial_dims == 3 else None
    colors, unmatched = None if truth is None else matched_colors(prediction, truth), 0
    if colors is not None:
        unmatched = int((colors == UNMATCHED_COLOR).all(axis=1).sum())
    name = str(reference.source or prediction.source or "image").rsplit("/", 1)[-1]
    axes[0].imshow(mosaic(views(reference, image, position, paint=False, zoom=zoom)))
    axes[0].set_title(name[-40:], fontsize=9, color=INK)
    cells = [(axes[-1], "prediction", prediction, colors)]
    if truth is not None:
        cells.append((axes[1], "ground truth", truth, None))
    elif with_truth:
        axes[1].text(0.5, 0.5, "no ground truth", color=MUTED, ha="center", transform=axes[1].transAxes)
    for ax, heading, shown, own_colors in cells:
        ax.imshow(mosaic(views(shown, image, position, zoom=zoom, colors=own_colors)))
        count = "" if shown.instances is None else f"  {len(shown.instances)}"
        extra = f", {unmatched} not in the truth (white)" if heading == "prediction" and unmatched else ""
        ax.set_title(heading + count + extra, fontsize=9, color=INK)
        add_captions(ax, shown, zoom, colors=own_colors)
    for ax in axes:
        picture_axes(ax)
    return [shown for _, _, shown, _ in cells]


def matched_colors(prediction: Segmentation, truth: Segmentation) -> UInt8[np.ndarray, "n 3"] | None:
    """Give each predicted object the colour of the true one that it covers with an IoU of at least 0.5."""
    found, true = prediction.instances, truth.instances
    if found is None or true is None or found.masks is None or true.masks is None:
        return None
    table = element_overlaps(elements(found.masks), elements(true.masks), len(found), len(true), truth.size)
    near = np.flatnonzero(table.iou() >= 0.5)
    near = near[np.argsort(table.iou()[near], kind="stable")]  # the best is written last
    colors = np.tile(np.array(UNMATCHED_COLOR, dtype=np.uint8), (len(found), 1))
    colors[table.predicted[near]] = layer_colors(true)[table.true[near]]
    return colors

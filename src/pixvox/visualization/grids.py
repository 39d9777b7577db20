"""Predictions beside their ground truth: the picture that finds label bugs which a loss curve never shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from torch import Tensor

from pixvox.metrics.overlaps import element_overlaps, elements
from pixvox.structures import Segmentation
from pixvox.visualization.figure import INK, MUTED, new_figure, picture_axes, save_figure
from pixvox.visualization.overlay import add_captions, add_legend, extent, mosaic, zoom_of
from pixvox.visualization.views import View, drawn_instances, focus, layer_colors, views

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
    cell, heights = cell_sizes([prediction for prediction, _ in rows])
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


def cell_sizes(shown: Sequence[Segmentation]) -> tuple[float, list[float]]:
    """Return the width that all cells have, and the height of each, in inches."""
    shapes = [_shape(segmentation) for segmentation in shown] or [(1, 1)]
    width = max(width / height for height, width in shapes)
    cell = min(max(_CELL * width, 2.2), 5.5)
    return cell, [cell * min(height / width, 1.6) for height, width in shapes]


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
    ground = Ground.under(reference, prediction)
    ground.draw(axes[0], reference, ground.name[-40:])
    ground.paint_against(axes[-1], prediction, truth, "prediction")
    if truth is not None:
        ground.paint(axes[1], truth, "ground truth")
        return [prediction, truth]
    if with_truth:
        axes[1].text(0.5, 0.5, "no ground truth", color=MUTED, ha="center", transform=axes[1].transAxes)
        picture_axes(axes[1])
    return [prediction]


@dataclass(frozen=True)
class Ground:
    """An image under several segmentations, which are all drawn alike.

    Args:
        name: Of its file.
        image: Un-normalised, ``(channels, *spatial)``.
        position: Index per axis through which a volume is cut.
    """

    name: str
    image: Tensor | None
    position: tuple[int, ...] | None

    @classmethod
    def under(cls, reference: Segmentation, other: Segmentation) -> Ground:
        """Take the image of one of two segmentations, cut where the first has most foreground."""
        name = str(reference.source or other.source or "image").rsplit("/", 1)[-1]
        image = other.image if reference.image is None else reference.image
        return cls(name, image, focus(reference) if reference.spatial_dims == 3 else None)

    def draw(self, axes: Axes, shown: Segmentation, title: str) -> None:
        """Show the image alone."""
        self._show(
            axes, title, views(shown, self.image, self.position, paint=False, zoom=zoom_of(shown.size))
        )

    def paint(
        self, axes: Axes, shown: Segmentation, title: str, colors: UInt8[np.ndarray, "n 3"] | None = None
    ) -> None:
        """Show a segmentation over the image, with the number of its objects."""
        count = "" if shown.instances is None else f"  {len(shown.instances)}"
        unmatched = 0 if colors is None else int((colors == UNMATCHED_COLOR).all(axis=1).sum())
        extra = f", {unmatched} not in the truth (white)" if unmatched else ""
        zoom = zoom_of(shown.size)
        parts = views(shown, self.image, self.position, zoom=zoom, colors=colors)
        self._show(axes, title + count + extra, parts)
        add_captions(axes, shown, zoom, colors=colors)

    def paint_against(
        self, axes: Axes, prediction: Segmentation, truth: Segmentation | None, title: str
    ) -> None:
        """Show a prediction in the colours of the true objects that it matches."""
        self.paint(axes, prediction, title, None if truth is None else matched_colors(prediction, truth))

    def _show(self, axes: Axes, title: str, parts: list[View]) -> None:
        axes.imshow(mosaic(parts))
        axes.set_title(title, fontsize=9, color=INK)
        picture_axes(axes)


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

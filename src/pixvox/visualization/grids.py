"""Predictions beside their ground truth: the picture that finds label bugs which a loss curve never shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from pixvox.structures import Segmentation
from pixvox.visualization.figure import INK, MUTED, new_figure, picture_axes, save_figure
from pixvox.visualization.overlay import add_captions, mosaic, zoom_of
from pixvox.visualization.views import drawn_instances, focus, views

_CELL = 3.4


def draw_predictions(
    pairs: Sequence[tuple[Segmentation, Segmentation | None]],
    path: str | Path,
    max_images: int = 4,
    score_threshold: float | None = 0.5,
    title: str = "",
) -> Path:
    """Write a picture with a row per image: original, ground truth, prediction.

    Volumes are cut where the truth has most foreground, in all three columns alike.

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
    for axes, (prediction, truth) in zip(grid, rows, strict=True):
        _draw_row(axes, prediction, truth, score_threshold, with_truth)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return save_figure(figure, path)


def _shape(segmentation: Segmentation) -> tuple[float, float]:
    """Return height and width of one cell."""
    spacing = segmentation.geometry.spacing if segmentation.geometry is not None else None
    lengths = [
        length * step
        for length, step in zip(segmentation.size, spacing or (1.0,) * len(segmentation.size), strict=True)
    ]
    if len(lengths) == 2:
        return lengths[0], lengths[1]
    return lengths[1] + lengths[0], 2 * lengths[2] + lengths[0]


def _draw_row(
    axes: Sequence[Axes],
    prediction: Segmentation,
    truth: Segmentation | None,
    score_threshold: float | None,
    with_truth: bool,
) -> None:
    """Draw one image, its truth and its prediction."""
    prediction = drawn_instances(prediction, score_threshold)
    truth = None if truth is None else drawn_instances(truth, None)
    reference = truth or prediction
    image = prediction.image if reference.image is None else reference.image
    zoom = zoom_of(prediction.size)
    position = focus(reference) if reference.spatial_dims == 3 else None
    name = str(reference.source or prediction.source or "image").rsplit("/", 1)[-1]
    cells: list[tuple[str, Segmentation | None, bool]] = [(name[-40:], reference, False)]
    if with_truth:
        cells.append(("ground truth", truth, True))
    cells.append(("prediction", prediction, True))
    for ax, (heading, shown, paint) in zip(axes, cells, strict=True):
        picture_axes(ax)
        if shown is None:
            ax.text(0.5, 0.5, "no ground truth", color=MUTED, ha="center", transform=ax.transAxes)
            continue
        ax.imshow(mosaic(views(shown, image, position, paint=paint, zoom=zoom)), interpolation="nearest")
        count = f" ({len(shown.instances)})" if paint and shown.instances is not None else ""
        ax.set_title(heading + count, fontsize=9, color=INK)
        if paint:
            add_captions(ax, shown, zoom)

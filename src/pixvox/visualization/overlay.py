"""Results over their images: as a figure with names and scores, and as a plain RGB array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pixvox.structures import Segmentation, Size
from pixvox.visualization.views import View, drawn_instances, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_INSTANCES = 25
"""Up to so many instances get a box and a caption; more would hide the image."""
_GAP = 4


def overlay(
    segmentation: Segmentation,
    image: Tensor | None = None,
    score_threshold: float | None = None,
    alpha: float = 0.4,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the objects or classes painted over the image, as RGB.

    An image keeps its size. A volume becomes a mosaic: the xy slice with the most foreground, zy to its right
    and xz below, in the right aspect, and beside them the projection along z.

    Args:
        segmentation: What is drawn.
        image: Un-normalised image; by default the segmentation's own, black when it has none.
        score_threshold: Lowest score that is drawn; None draws all instances.
        alpha: Opacity inside the objects, in [0, 1].
    """
    return mosaic(views(drawn_instances(segmentation, score_threshold), image, alpha=alpha))


def mosaic(parts: list[View]) -> UInt8[np.ndarray, "height width 3"]:
    """Join the views of a volume to one picture with square pixels; a single view stays as it is."""
    if len(parts) == 1:
        return parts[0].rgb
    unit = min(min(part.spacing) for part in parts)
    xy, zy, xz, projection = (_square(part, unit) for part in parts)
    height, width = xy.shape[0] + _GAP + xz.shape[0], xy.shape[1] + _GAP + zy.shape[1]
    canvas = np.full((height, width + 2 * _GAP + projection.shape[1], 3), 255, dtype=np.uint8)
    canvas[: xy.shape[0], : xy.shape[1]] = xy
    canvas[: zy.shape[0], xy.shape[1] + _GAP : width] = zy
    canvas[xy.shape[0] + _GAP :, : xz.shape[1]] = xz
    canvas[: projection.shape[0], width + 2 * _GAP :] = projection
    return canvas


def _square(view: View, unit: float) -> UInt8[np.ndarray, "height width 3"]:
    """Repeat rows and columns until pixels are ``unit`` high and wide."""
    index = [
        (np.arange(max(1, round(length * step / unit))) * unit / step).astype(int).clip(0, length - 1)
        for length, step in zip(view.rgb.shape[:2], view.spacing, strict=True)
    ]
    return view.rgb[index[0]][:, index[1]]


def plot(
    segmentation: Segmentation,
    image: Tensor | None = None,
    score_threshold: float | None = None,
    alpha: float = 0.4,
    captions: bool | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a result over its image: an overlay in 2-D, orthogonal slices and a projection in 3-D.

    Args:
        segmentation: What is drawn.
        image: Un-normalised image; by default the segmentation's own, black when it has none.
        score_threshold: Lowest score that is drawn; None draws all instances.
        alpha: Opacity inside the objects, in [0, 1].
        captions: Whether instances of an image get box, class and score; None: when there are few.
        title: Title; by default the name of the source and the number of instances.

    Returns:
        A matplotlib figure, shown by notebooks and written by ``figure.savefig("file.png")``.
    """
    from pixvox.visualization.figure import INK, new_figure, picture_axes

    shown = drawn_instances(segmentation, score_threshold)
    zoom = zoom_of(shown.size)
    parts = views(shown, image, alpha=alpha, zoom=zoom)
    if len(parts) == 1:
        height, width = parts[0].rgb.shape[:2]
        figure = new_figure(
            min(10, max(4, 7 * width / height)), min(10, max(4, 7 * width / height)) * height / width + 0.3
        )
        axes = [figure.add_subplot()]
    else:
        figure = new_figure(11, 6)
        xy, zy = parts[0].rgb.shape, parts[1].rgb.shape
        ratio = parts[1].spacing[1] / parts[0].spacing[1] * zy[1] / xy[1]
        depth = parts[2].rgb.shape[0] * parts[2].spacing[0] / (xy[0] * parts[0].spacing[0])
        grid = figure.add_gridspec(
            2, 3, width_ratios=(1, max(ratio, 0.15), 1), height_ratios=(1, max(depth, 0.15))
        )
        axes = [figure.add_subplot(grid[cell]) for cell in ((0, 0), (0, 1), (1, 0), (0, 2))]
    for ax, part in zip(axes, parts, strict=True):
        ax.imshow(part.rgb, aspect=part.aspect, interpolation="nearest")
        ax.set_title(part.name, fontsize=9, color=INK)
        picture_axes(ax)
    if len(parts) == 1:
        add_captions(axes[0], shown, zoom, captions)
        add_legend(axes[0], shown)
    figure.suptitle(headline(shown) if title is None else title, fontsize=10, color=INK)
    return figure


def zoom_of(size: Size, target: int = 512) -> int:
    """Return how often the pixels of a small image are repeated, so that outlines are thin."""
    return max(1, min(8, target // max(size)))


def headline(segmentation: Segmentation) -> str:
    """Return the name of the source and the number of instances."""
    name = str(segmentation.source or "").rsplit("/", 1)[-1]
    if segmentation.instances is None:
        return name
    count = len(segmentation.instances)
    return f"{name}  {count} instance{'' if count == 1 else 's'}".strip()


def add_captions(axes: Axes, segmentation: Segmentation, zoom: int, captions: bool | None = None) -> None:
    """Draw box, class and score of each instance of a 2-D view."""
    instances = segmentation.instances
    if instances is None or segmentation.spatial_dims != 2 or captions is False:
        return
    if captions is None and len(instances) > FEW_INSTANCES:
        return
    from matplotlib.patches import Rectangle

    from pixvox.visualization.colors import instance_colors

    colors = instance_colors(instances.boxes.double().numpy()) / 255
    several = len(segmentation.class_names) > 1 or bool((instances.labels > 0).any())
    for i, (x0, y0, x1, y1) in enumerate((instances.boxes * zoom - 0.5).tolist()):
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colors[i], linewidth=1.2)
        axes.add_patch(box)
        text = [class_name(segmentation, int(instances.labels[i]))] if several else []
        if instances.scores is not None:
            text.append(f"{float(instances.scores[i]):.2f}")
        if text:
            dark = bool(colors[i] @ np.array([0.299, 0.587, 0.114]) > 0.55)
            axes.text(
                x0,
                y0,
                " ".join(text),
                fontsize=7,
                color="black" if dark else "white",
                verticalalignment="bottom",
                clip_on=True,
                bbox={"facecolor": colors[i], "edgecolor": "none", "pad": 1.0},
            )


def add_legend(axes: Axes, segmentation: Segmentation, most: int = 20) -> None:
    """Name the classes that a class map shows."""
    if segmentation.instances is not None or segmentation.class_map is None:
        return
    from matplotlib.patches import Patch

    from pixvox.visualization.colors import class_colors

    present = [
        int(label) for label in torch.unique(segmentation.class_map) if label != segmentation.ignore_index
    ]
    present = [label for label in present if label >= 0]
    if not present:
        return
    colors, drawn = class_colors(
        segmentation.class_names, max(*present, len(segmentation.class_names) - 1, 0) + 1
    )
    patches = [
        Patch(facecolor=colors[label] / 255, label=class_name(segmentation, label))
        for label in present
        if drawn[label]
    ]
    if patches:
        axes.legend(
            handles=patches[:most], loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8
        )


def class_name(segmentation: Segmentation, label: int) -> str:
    """Return the name of a class, or its number."""
    names = segmentation.class_names
    return names[label] if label < len(names) else str(label)

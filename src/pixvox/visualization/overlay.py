"""Results over their images: as a figure with names and scores, and as a plain RGB array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from torch import Tensor

from pixvox.structures import Segmentation, Size
from pixvox.visualization.colors import IGNORE_COLOR, class_colors
from pixvox.visualization.views import View, drawn_instances, layer_colors, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

FEW_INSTANCES = 25
"""Up to so many instances get a box and a caption; more would hide the image."""
_GAP = 4
_READABLE = 0.09
"""Share of the image that the median instance must be long to get a box and a caption."""


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
    square: npt.NDArray[np.uint8] = view.rgb[index[0]][:, index[1]]
    return square


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
        wide = min(10.0, max(4.0, 7 * width / height))
        figure = new_figure(wide, wide * height / width + 0.35)
        axes = [figure.add_subplot()]
    else:
        depth, height, width = extent(shown)
        wide = min(14.0, max(7.0, 6 * (2 * width + depth) / (height + depth)))
        figure = new_figure(wide, wide * (height + depth) / (2 * width + depth) + 0.6)
        ratios = {"width_ratios": (width, depth, width), "height_ratios": (height, depth)}
        grid = figure.add_gridspec(2, 3, **ratios)
        axes = [figure.add_subplot(grid[cell]) for cell in ((0, 0), (0, 1), (1, 0), (0, 2))]
        notes = figure.add_subplot(grid[1, 2])
        notes.text(0.02, 0.95, describe(shown), fontsize=8, color=INK, va="top", transform=notes.transAxes)
        picture_axes(notes)
    for ax, part in zip(axes, parts, strict=True):
        ax.imshow(part.rgb, aspect=part.aspect, interpolation="nearest")
        ax.set_title(part.name, fontsize=9, color=INK)
        picture_axes(ax)
    if len(parts) == 1:
        add_captions(axes[0], shown, zoom, captions)
    add_legend(figure, [shown])
    figure.suptitle(headline(shown) if title is None else title, fontsize=10, color=INK)
    return figure


def zoom_of(size: Size, target: int = 512) -> int:
    """Return how often the pixels of a small image are repeated, so that outlines are thin."""
    return max(1, min(8, target // max(size)))


def extent(segmentation: Segmentation) -> tuple[float, ...]:
    """Return the lengths of the frame in units of its finest spacing, so that aspects are true."""
    geometry = segmentation.geometry
    steps = (geometry.spacing if geometry is not None else None) or (1.0,) * segmentation.spatial_dims
    return tuple(length * step / min(steps) for length, step in zip(segmentation.size, steps, strict=True))


def describe(segmentation: Segmentation) -> str:
    """Return size and spacing of a volume in words."""
    lines = [" x ".join(map(str, segmentation.size)) + " voxels (z, y, x)"]
    geometry = segmentation.geometry
    if geometry is not None and geometry.spacing is not None:
        unit = "µm" if geometry.unit == "um" else geometry.unit
        lines.append("spacing " + " x ".join(f"{step:g}" for step in geometry.spacing) + f" {unit}")
    return "\n".join(lines)


def headline(segmentation: Segmentation) -> str:
    """Return the name of the source and the number of instances."""
    name = str(segmentation.source or "").rsplit("/", 1)[-1]
    if segmentation.instances is None:
        return name
    count = len(segmentation.instances)
    return f"{name}  {count} instance{'' if count == 1 else 's'}".strip()


def add_captions(
    axes: Axes,
    segmentation: Segmentation,
    zoom: int,
    captions: bool | None = None,
    colors: UInt8[np.ndarray, "n 3"] | None = None,
) -> None:
    """Draw box, class and score of each instance of a 2-D view, if they are few and large enough to read."""
    instances = segmentation.instances
    if instances is None or segmentation.spatial_dims != 2 or captions is False:
        return
    sides = (instances.boxes[:, 2:] - instances.boxes[:, :2]).amax(dim=1)
    if captions is None and (
        not 0 < len(instances) <= FEW_INSTANCES or sides.median() < _READABLE * max(segmentation.size)
    ):
        return
    from matplotlib.patches import Rectangle

    if colors is None:
        colors = layer_colors(instances)
    several = len(segmentation.class_names) > 1 or bool((instances.labels > 0).any())
    for i, (x0, y0, x1, y1) in enumerate((instances.boxes * zoom - 0.5).tolist()):
        color = colors[i] / 255
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1.2)
        axes.add_patch(box)
        text = [class_name(segmentation, int(instances.labels[i]))] if several else []
        if instances.scores is not None:
            text.append(f"{float(instances.scores[i]):.2f}")
        if text:
            bright = bool(color @ np.array([0.299, 0.587, 0.114]) > 0.55)
            axes.text(
                x0,
                y0,
                " ".join(text),
                fontsize=7,
                color="black" if bright else "white",
                verticalalignment="top" if y0 < 0.04 * zoom * segmentation.size[0] else "bottom",
                clip_on=True,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.0},
            )


def add_legend(figure: Figure, segmentations: Sequence[Segmentation], most: int = 40) -> None:
    """Name the classes that class maps show, below the figure."""
    patches = legend_patches(segmentations)[:most]
    if patches:
        columns = max(1, min(len(patches), int(figure.get_figwidth() / 1.3)))
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def legend_patches(segmentations: Sequence[Segmentation]) -> list[Patch]:
    """Return a coloured patch for each class that class maps show, by class index, and one for what is ignored."""
    from matplotlib.patches import Patch

    patches: dict[int, Patch] = {}
    ignored: list[Patch] = []
    for segmentation in segmentations:
        if segmentation.instances is not None or segmentation.class_map is None:
            continue
        labels = torch.unique(segmentation.class_map)
        if not ignored and bool((labels == segmentation.ignore_index).any()):
            red, green, blue = (value / 255 for value in IGNORE_COLOR)
            ignored = [Patch(facecolor=(red, green, blue), label="ignored")]
        present = [int(i) for i in labels if i >= 0 and i != segmentation.ignore_index]
        names = segmentation.class_names
        colors, drawn = class_colors(names, max([len(names), *(label + 1 for label in present)]))
        for label in present:
            if drawn[label]:
                patches[label] = Patch(facecolor=colors[label] / 255, label=class_name(segmentation, label))
    return [patches[label] for label in sorted(patches)] + ignored


def class_name(segmentation: Segmentation, label: int) -> str:
    """Return the name of a class, or its number."""
    names = segmentation.class_names
    return names[label] if label < len(names) else str(label)

"""Flat views of a result: the image itself in 2-D, three orthogonal slices and a projection in 3-D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from pixvox.structures import Instances, Segmentation, Size
from pixvox.visualization.colors import IGNORE_COLOR, class_colors, color_table, instance_colors
from pixvox.visualization.contrast import Contrast


@dataclass(frozen=True)
class View:
    """One flat picture.

    Args:
        name: What is seen, such as ``"xy, z = 12"``; empty for a 2-D image.
        rgb: The picture.
        spacing: Size of a pixel per axis (row, column), for the aspect.
    """

    name: str
    rgb: UInt8[np.ndarray, "height width 3"]
    spacing: tuple[float, float]

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        return self.spacing[0] / self.spacing[1]


@dataclass(frozen=True)
class Layer:
    """What is painted over an image: ids with a colour each.

    Args:
        ids: Label map; 0 is see-through.
        colors: Colour of each id, from 0 on.
    """

    ids: Integer[np.ndarray, "*spatial"]
    colors: Integer[np.ndarray, "entries 3"]


def drawn_instances(segmentation: Segmentation, score_threshold: float | None) -> Segmentation:
    """Return the segmentation with the instances that reach a score, and those that are scored at all."""
    instances = segmentation.instances
    if instances is None:
        return segmentation
    keep = torch.ones(len(instances), dtype=torch.bool, device=instances.boxes.device)
    if score_threshold is not None and instances.scores is not None:
        keep = instances.scores >= score_threshold
    return Segmentation(
        instances=instances[keep].to("cpu"),
        class_map=segmentation.class_map,
        geometry=segmentation.geometry,
        class_names=segmentation.class_names,
        source=segmentation.source,
        image=segmentation.image,
        ignore_index=segmentation.ignore_index,
    )


def paint_layer(segmentation: Segmentation, colors: UInt8[np.ndarray, "n 3"] | None = None) -> Layer:
    """Return the objects, or the classes where there are none, as coloured ids.

    Args:
        segmentation: What is painted.
        colors: A colour per instance; by default such that neighbours differ.
    """
    instances = segmentation.instances
    if instances is not None and instances.masks is not None:
        order = torch.arange(len(instances))
        if instances.scores is not None:
            order = instances.scores.argsort(descending=True, stable=True)
        ids = instances.masks.label_map(order).numpy()
        if colors is None:
            colors = layer_colors(instances)
        return Layer(ids, color_table(colors[order.numpy()], len(instances)))
    if segmentation.class_map is None:
        return Layer(np.zeros(segmentation.size, dtype=np.int64), np.zeros((1, 3), dtype=np.int64))
    class_map = segmentation.class_map.cpu().numpy().astype(np.int64)
    ignored = (class_map == segmentation.ignore_index) | (class_map < 0)
    count = max(len(segmentation.class_names), int(np.where(ignored, 0, class_map).max(initial=0)) + 1)
    by_class, drawn = class_colors(segmentation.class_names, count)
    ids = np.where(ignored, count + 1, class_map + 1)
    ids[np.isin(class_map, np.flatnonzero(~drawn))] = 0
    return Layer(ids, np.concatenate([color_table(by_class, count), [IGNORE_COLOR]]))


def layer_colors(instances: Instances) -> UInt8[np.ndarray, "n 3"]:
    """Return a colour per instance: neighbours differ, ignored ones are grey."""
    colors = instance_colors(instances.boxes.double().numpy())
    colors[instances.ignore.numpy()] = IGNORE_COLOR
    return colors


def blend(
    rgb: UInt8[np.ndarray, "height width 3"],
    ids: Integer[np.ndarray, "height width"],
    colors: Integer[np.ndarray, "entries 3"],
    alpha: float = 0.4,
    contour: bool = True,
) -> UInt8[np.ndarray, "height width 3"]:
    """Paint ids over a picture: see-through inside, opaque at the inner outline."""
    inside = ids > 0
    painted = colors[ids]
    weight = np.where(inside, alpha, 0.0)
    if contour:
        weight[_outline(ids)] = 1.0
    mixed = rgb * (1 - weight[..., None]) + painted * weight[..., None]
    blended: npt.NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return blended


def _outline(ids: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Return the pixels of objects that touch something else to the left, right, top or bottom."""
    edge = np.zeros(ids.shape, dtype=bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:-1] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[:, :-1] |= ids[:, 1:] != ids[:, :-1]
    return edge & (ids > 0)


def focus(segmentation: Segmentation) -> tuple[int, ...]:
    """Return the index per axis of the slice with the most foreground, or the middle where there is none."""
    foreground = paint_layer(segmentation).ids > 0
    if not foreground.any():
        return tuple(length // 2 for length in segmentation.size)
    axes = range(foreground.ndim)
    return tuple(
        int(foreground.sum(axis=tuple(other for other in axes if other != axis)).argmax()) for axis in axes
    )


def views(
    segmentation: Segmentation,
    image: Tensor | None = None,
    position: Size | None = None,
    alpha: float = 0.4,
    paint: bool = True,
    zoom: int = 1,
    colors: UInt8[np.ndarray, "n 3"] | None = None,
) -> list[View]:
    """Return one view of an image; xy, zy and xz slices and a projection along z of a volume.

    Args:
        segmentation: What is painted.
        image: Un-normalised image ``(channels, *spatial)``; by default that of the segmentation, black
            when it has none.
        position: Index per axis through which a volume is cut; by default where most foreground is.
        alpha: Opacity inside the objects, in [0, 1].
        paint: Whether anything is painted; False gives the image alone.
        zoom: Each pixel becomes ``zoom x zoom``, so that outlines stay thin.
        colors: A colour per instance; by default such that neighbours differ.
    """
    image = segmentation.image if image is None else image
    size = segmentation.size
    if image is None:
        image = torch.zeros((1, *size))
    layer = paint_layer(segmentation, colors)
    contrast = Contrast.of(image)
    spacing = tuple(segmentation.geometry.spacing or ()) if segmentation.geometry is not None else ()
    spacing = spacing or (1.0,) * len(size)

    def flat(name: str, picture: Tensor, ids: npt.NDArray[np.integer], axes: tuple[int, int]) -> View:
        rgb, ids = (x.repeat(zoom, 0).repeat(zoom, 1) for x in (contrast.rgb(picture), ids))
        rgb = blend(rgb, ids, layer.colors, alpha) if paint else rgb
        return View(name, rgb, (spacing[axes[0]], spacing[axes[1]]))

    if len(size) == 2:
        return [flat("", image, layer.ids, (0, 1))]
    z, y, x = focus(segmentation) if position is None else position
    slices = [
        flat(f"xy, z = {z}", image[:, z], layer.ids[z], (1, 2)),
        flat(f"zy, x = {x}", image[..., x].transpose(1, 2), layer.ids[..., x].T, (1, 0)),
        flat(f"xz, y = {y}", image[:, :, y], layer.ids[:, y], (0, 2)),
    ]
    first = (layer.ids > 0).argmax(axis=0)[None]
    on_top = np.take_along_axis(layer.ids, first, axis=0)[0]
    return [*slices, flat("projection along z", image.amax(dim=1), on_top, (1, 2))]

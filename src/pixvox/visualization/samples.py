"""What a training really sees: augmented images with their annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pixvox.structures import Batch, Geometry, Instances, Segmentation
from pixvox.visualization.figure import INK, MUTED, new_figure, picture_axes, save_figure
from pixvox.visualization.overlay import add_captions, add_legend, mosaic, zoom_of
from pixvox.visualization.views import focus, views

_CELL = 2.6


def draw_samples(samples: Sequence[Segmentation], path: str | Path, columns: int = 2) -> Path:
    """Write a picture of images, each beside itself with its annotations painted over.

    Args:
        samples: Images with annotations.
        path: PNG file; its folder is made when missing.
        columns: Samples side by side.
    """
    if not samples:
        figure = new_figure(4, 2)
        figure.text(0.5, 0.5, "no images", color=MUTED, horizontalalignment="center")
        return save_figure(figure, path)
    pictures = [_pictures(sample) for sample in samples]
    aspect = max(bare.shape[0] / bare.shape[1] for bare, _ in pictures)
    wide = samples[0].spatial_dims == 3  # several views of a volume stand side by side
    width = _CELL * (1.6 if wide else 1.0)
    rows = -(-len(samples) // columns)
    figure = new_figure(2 * columns * width, rows * (width * min(aspect, 1.6) + 0.3) + 0.3)
    grid = figure.subplots(rows, 2 * columns, squeeze=False).reshape(rows * columns, 2)
    for sample, (bare, painted), (left, right) in zip(samples, pictures, grid, strict=False):
        left.imshow(bare)
        left.set_title(str(sample.source or "image").rsplit("/", 1)[-1][-32:], fontsize=8, color=INK)
        right.imshow(painted)
        right.set_title(_count(sample), fontsize=8, color=INK)
        add_captions(right, sample, zoom_of(sample.size))
    for axes in grid.flat:
        picture_axes(axes)
    for axes in grid[len(samples) :].flat:
        axes.set_visible(False)
    add_legend(figure, list(samples))
    return save_figure(figure, path)


def _pictures(sample: Segmentation) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
    """Return the image alone, and painted over."""
    zoom = zoom_of(sample.size)
    position = focus(sample) if sample.spatial_dims == 3 else None
    bare = mosaic(views(sample, sample.image, position, paint=False, zoom=zoom))
    return bare, mosaic(views(sample, sample.image, position, zoom=zoom))


def _count(sample: Segmentation) -> str:
    size = " x ".join(str(length) for length in sample.size)
    if sample.instances is None:
        return size
    count = len(sample.instances)
    return f"{size}, {count} object{'' if count == 1 else 's'}"


def training_samples(batch: Batch, class_names: tuple[str, ...] = ()) -> list[Segmentation]:
    """Return the images of a training batch with their targets, as the model gets them, padding included.

    Of unlabelled images that is their first strong view.
    """
    size = tuple(batch.images.shape[2:])
    samples = []
    for index, image in enumerate(batch.views[0] if batch.views else batch.images):
        known = batch.geometries[index]
        sample = Segmentation(
            geometry=replace(Geometry.identity(size, known.spacing), unit=known.unit),
            class_names=class_names,
            source=batch.sources[index] if index < len(batch.sources) else "",
            image=image.cpu(),
        )
        if batch.targets is not None:
            target = batch.targets[index].to("cpu")
            if isinstance(target, Instances):
                sample.instances = target
            else:
                sample.class_map = target
        samples.append(sample)
    return samples

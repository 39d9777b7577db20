"""From maps of logits to cropped masks in the original frame, without a canvas per query."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.heads.query_predictions import QueryMasks
from pixvox.ops.boxes import mask_bounds
from pixvox.structures import Geometry, Masks

_CHUNK = 2**22  # elements of the float32 maps that exist at one time: 16 MiB


@dataclass(frozen=True)
class MapFrame:
    """How a grid of logits lies over an original image: from half-pixel centres to half-pixel centres.

    Args:
        grid: Lengths of the grid, array order.
        padded_size: Input pixels that it covers.
        geometry: From input pixels to original ones.
    """

    grid: Sequence[int]
    padded_size: Sequence[int]
    geometry: Geometry

    @property
    def steps(self) -> list[float]:
        """Grid cells per original pixel, per axis."""
        return [
            cells / length / scale
            for cells, length, scale in zip(self.grid, self.padded_size, self.geometry.scale, strict=True)
        ]

    def matrices(self, device: torch.device) -> list[Float[Tensor, "original cells"]]:
        """Return, per axis, the weights of the cells in each original pixel: linear, clamped at the border."""
        found = []
        for step, cells, length in zip(self.steps, self.grid, self.geometry.original_size, strict=True):
            pixel = torch.arange(length, device=device, dtype=torch.float64)
            place = ((pixel + 0.5) * step - 0.5).clamp(0, cells - 1)
            cell = torch.arange(cells, device=device)
            found.append((1 - (place[:, None] - cell).abs()).clamp(min=0).float())
        return found


def masks_from_maps(
    masks: QueryMasks, image: int, queries: Int[Tensor, " chosen"], frame: MapFrame
) -> tuple[Masks, Float[Tensor, " chosen"]]:
    """Return the masks of some queries in the original frame, and the mean probability inside each.

    A pixel is inside where the logit, interpolated once from the grid to the pixel's centre, is positive. Only the
    part of a map around its positive cells is interpolated, a few queries at a time.

    Args:
        masks: Of all images.
        image: Which one.
        queries: Which queries of it.
        frame: From the grid to the original.

    Returns:
        One mask per query, empty where no logit is positive, and its certainty, 0 for an empty one.
    """
    crops: list[Tensor] = []
    origins: list[list[int]] = []
    certainty: list[Tensor] = [torch.zeros(0, device=queries.device)]
    for values, origin in maps_in_original(lambda few: masks.of_image(image, few), queries, frame):
        inside = values > 0
        certainty.append(((values.sigmoid() * inside).sum() / inside.sum().clamp(min=1)).reshape(1))
        crops.append(inside)
        origins.append(origin)
    found = Masks.from_crops(crops, origins, frame.geometry.original_size).to(queries.device)
    return found, torch.cat(certainty)


def maps_in_original(
    read: Callable[[Tensor], Tensor], chosen: Int[Tensor, " chosen"], frame: MapFrame
) -> Iterator[tuple[Tensor, list[int]]]:
    """Give out the maps of some objects in the original frame, each only around its positive cells.

    Args:
        read: Returns the maps ``(few, *grid)`` of a few objects, positive where they are.
        chosen: The objects; they are read a few at a time.
        frame: From the grid to the original.

    Yields:
        The values of one object at original pixels, and where the first of them lies.
    """
    matrices = frame.matrices(chosen.device)
    for few in torch.split(chosen, max(1, _CHUNK // math.prod(frame.grid))):
        maps = read(few)
        low, high = (side.tolist() for side in mask_bounds(maps > 0))
        for values, first, last in zip(maps, low, high, strict=True):
            yield _original_crop(values, first, last, frame, matrices)


def _original_crop(
    values: Tensor, low: Sequence[int], high: Sequence[int], frame: MapFrame, matrices: Sequence[Tensor]
) -> tuple[Tensor, list[int]]:
    """Return the values at the original pixels that positive cells ``low`` to ``high`` can reach, and their origin."""
    if low == high:
        return values.new_zeros((0,) * values.ndim), [0] * values.ndim
    # One cell away from the last positive one every interpolated value is negative: that is the margin.
    cells = [slice(max(0, first - 1), last + 1) for first, last in zip(low, high, strict=True)]
    values, origin = values[tuple(cells)], []
    for axis, (matrix, step, cell) in enumerate(zip(matrices, frame.steps, cells, strict=True)):
        first = max(0, math.floor((low[axis] - 0.5) / step - 0.5))
        last = math.ceil((high[axis] + 0.5) / step + 0.5)
        origin.append(min(first, len(matrix)))
        # The axis in work is the first one, and leaves as the last one.
        values = torch.tensordot(values, matrix[first:last, cell], dims=([0], [1]))
    return values, origin

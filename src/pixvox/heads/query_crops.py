"""From maps of logits to cropped masks in the original frame, without a canvas per query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.heads.query_predictions import QueryMasks
from pixvox.structures import Geometry, Masks

_CHUNK = 2**24  # elements of float32 maps at one time: 64 MiB


@dataclass(frozen=True)
class MapFrame:
    """How a grid of logits lies over an original image.

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


def masks_from_maps(
    masks: QueryMasks, image: int, queries: Int[Tensor, " chosen"], frame: MapFrame
) -> tuple[Masks, Float[Tensor, " chosen"]]:
    """Return the masks of some queries in the original frame, and the mean probability inside each.

    Args:
        masks: Of all images.
        image: Which one.
        queries: Which queries of it.
        frame: From the grid to the original.
    """
    crops: list[Tensor] = []
    origins: list[list[int]] = []
    certainty = torch.zeros(len(queries), device=queries.device)
    size = max(1, _CHUNK // math.prod(frame.grid))
    for start in range(0, len(queries), size):
        maps = masks.of_image(image, queries[start : start + size])
        for offset, logits in enumerate(maps):
            crop, origin = _original_crop(logits, frame)
            inside = crop > 0
            if inside.any():
                certainty[start + offset] = crop[inside].sigmoid().mean()
            crops.append(inside)
            origins.append(origin)
    return Masks.from_crops(crops, origins, frame.geometry.original_size).to(queries.device), certainty


def _original_crop(logits: Tensor, frame: MapFrame) -> tuple[Tensor, list[int]]:
    """Return the logits at the original pixels that positive cells can reach, and where these begin."""
    positive = logits > 0
    origin: list[int] = []
    values = logits
    regions, matrices = [], []
    for axis, (step, length) in enumerate(zip(frame.steps, frame.geometry.original_size, strict=True)):
        others = [other for other in range(logits.ndim) if other != axis]
        cells = positive.any(dim=others).nonzero()[:, 0] if others else positive.nonzero()[:, 0]
        if len(cells) == 0:
            return logits.new_zeros((0,) * logits.ndim), [0] * logits.ndim
        low, high = max(0, int(cells[0]) - 1), min(logits.shape[axis], int(cells[-1]) + 2)
        # Beyond one cell from a positive one every interpolated value is negative.
        first = max(0, math.floor((int(cells[0]) - 0.5) / step - 0.5))
        last = min(length, math.ceil((int(cells[-1]) + 1.5) / step + 0.5))
        pixel = torch.arange(first, max(first, last), device=logits.device, dtype=torch.float64)
        place = ((pixel + 0.5) * step - 0.5).clamp(0, logits.shape[axis] - 1)
        cell = torch.arange(low, high, device=logits.device)
        matrices.append((1 - (place[:, None] - cell).abs()).clamp(min=0).to(logits.dtype))
        regions.append(slice(low, high))
        origin.append(first)
    values = logits[tuple(regions)]
    for matrix in matrices:
        values = torch.tensordot(values, matrix, dims=([0], [1]))
    return values, origin

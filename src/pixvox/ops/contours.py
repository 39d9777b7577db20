"""Masks to polygons, in continuous coordinates that rasterise back to the mask (2-D only)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped
from torch import Tensor


def mask_to_polygons(crop: Shaped[Tensor, "*crop"], origin: Sequence[int]) -> list[list[float]]:
    """Return the outlines of the parts of a mask as COCO polygons ``[x0, y0, x1, y1, ...]``.

    Corners lie on pixel edges: a single pixel ``(x, y)`` is the square from ``(x, y)`` to ``(x+1, y+1)``, so
    that each polygon rasterises back to its part, bit by bit. COCO's polygons know no holes: they are filled.

    Args:
        crop: The mask within its crop ``(height, width)``; non-zero is inside.
        origin: First corner of the crop in array order.

    Raises:
        ValueError: If the mask is not 2-D.

    Example:
        >>> import torch
        >>> mask_to_polygons(torch.tensor([[1, 1]]), origin=(4, 2))
        [[2.0, 4.0, 2.0, 5.0, 4.0, 5.0, 4.0, 4.0]]
    """
    if crop.ndim != 2:
        raise ValueError(f"polygons exist in 2-D only, got a mask of shape {tuple(crop.shape)}")
    if crop.numel() == 0:
        return []
    import cv2

    # At twice the size (minus one), pixel (x, y) is the node (2x+1, 2y+1) of a grid whose even nodes are the
    # pixel edges; OpenCV's outline runs through outermost nodes, which after a growth of one are those edges.
    mask = crop.detach().cpu().numpy().astype(bool)
    height, width = mask.shape
    nodes = np.zeros((2 * height + 1, 2 * width + 1), dtype=np.uint8)
    for i in range(3):
        for j in range(3):
            nodes[i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] |= mask
    contours = cv2.findContours(nodes, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    shift = np.array([int(origin[1]), int(origin[0])], dtype=np.float64)
    polygons = []
    for contour in contours:
        corners = _corners_only(contour[:, 0].astype(np.int64))
        polygons.append((corners / 2 + shift).reshape(-1).tolist())
    return polygons


def _corners_only(points: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Keep the points of a closed outline at which its direction changes."""
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turns: npt.NDArray[np.bool_] = (before != after).any(axis=1)
    return points[turns]

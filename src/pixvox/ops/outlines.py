"""Outlines of masks as a fixed number of points, which begin at one place and run one way round (2-D only)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.masks import Masks
from pixvox.ops.polygons import polygon_area

_Points = npt.NDArray[np.float64]
_QUARTERS = (
    (0, 1),
    (1, 0),
    (0, -1),
    (-1, 0),
)  # below, right, above, left of the centre of the box, as (x, y)


def resample_outline(corners: _Points, count: int) -> _Points:
    """Return ``count`` points on a closed outline that mean the same place on every outline.

    The outline is cut where it lies straight below, right, above and left of the middle of its box (the points whose
    direction from there is nearest), and each quarter gets as many points, equally far apart along it: as "E2EC: An
    End-to-End Contour-based Method for High-Quality High-Speed Instance Segmentation" (Zhang et al., 2022,
    https://arxiv.org/abs/2203.04074) aligns outlines. The first point is the one below, and from there they run to the
    right and up, whatever the direction of the corners.

    Args:
        corners: ``(x, y)`` of the corners, three or more.
        count: Points, a multiple of 4.

    Raises:
        ValueError: If ``count`` is no multiple of 4, or the outline has no area.

    Example:
        >>> square = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])
        >>> resample_outline(square, 8).tolist()
        [[2.0, 4.0], [4.0, 4.0], [4.0, 2.0], [4.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 4.0]]
    """
    if count < 4 or count % 4:
        raise ValueError(f"an outline has a multiple of 4 points, got {count}")
    area = polygon_area(corners.reshape(-1).tolist())
    if len(corners) < 3 or area == 0:
        raise ValueError(f"an outline needs three corners that enclose an area, got {corners.tolist()}")
    corners = np.asarray(corners, dtype=np.float64)
    if area > 0:  # from below to the right is against the sense from x to y
        corners = corners[::-1]
    lengths = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    starts = _quarters(corners, ends)
    places = []
    for begin, end in zip(starts, starts[1:] + starts[:1], strict=True):
        span = (end - begin) % ends[-1] or ends[-1]
        places.append(begin + span * np.arange(count // 4) / (count // 4))
    return _at(corners, ends, np.concatenate(places))


def _quarters(corners: _Points, ends: _Points) -> list[float]:
    """Return how far along the outline it lies straight below, right, above and left of the middle of its box.

    A ray from the middle that meets the outline gives its outermost crossing; else the corner in the nearest direction.
    """
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    here = corners - middle
    there = np.roll(here, -1, axis=0)
    found = []
    for x, y in _QUARTERS:
        across = np.stack([here @ (-y, x), there @ (-y, x)])  # signed distance from the ray's line
        along = np.stack([here @ (x, y), there @ (x, y)])
        crosses = (across[0] <= 0) != (across[1] <= 0)
        share = np.divide(across[0], across[0] - across[1], out=np.zeros(len(here)), where=crosses)
        reach = np.where(crosses, along[0] + share * (along[1] - along[0]), -np.inf)
        edge = int(reach.argmax())
        if reach[edge] > 0:
            found.append(ends[edge] + share[edge] * (ends[edge + 1] - ends[edge]))
        else:
            cosine = along[0] / np.maximum(np.linalg.norm(here, axis=1), 1e-12)
            found.append(ends[int(cosine.argmax())])
    return found


def _at(corners: _Points, ends: _Points, places: _Points) -> _Points:
    """Return the points that lie a way along a closed outline."""
    closed = np.concatenate([corners, corners[:1]])
    places = places % ends[-1]
    return np.stack([np.interp(places, ends, closed[:, axis]) for axis in (0, 1)], axis=1)


def outlines_of(masks: Masks, count: int) -> tuple[Float[Tensor, "n count 2"], Float[Tensor, " n"]]:
    """Return the outline of each mask as points ``(x, y)`` in pixels, and the share of the mask it encloses.

    An outline is one closed line: of a mask in several parts it is that of the largest, and holes are filled. The share
    is intersection over union of the mask and what the outline encloses, below 1 in both cases.

    Args:
        masks: Of an image.
        count: Points, a multiple of 4.

    Raises:
        ValueError: If the masks are volumes.

    Example:
        >>> masks = Masks.from_dense(torch.ones(1, 2, 4, dtype=torch.bool))
        >>> points, share = outlines_of(masks, 4)
        >>> points.tolist(), share.tolist()
        ([[[2.0, 2.0], [4.0, 1.0], [2.0, 0.0], [0.0, 1.0]]], [1.0])
    """
    if len(masks.size) != 2:
        raise ValueError(f"outlines exist in 2-D only, these masks have {len(masks.size)} axes")
    points = torch.zeros(len(masks), count, 2)
    shares = torch.zeros(len(masks))
    areas = masks.areas().tolist()
    for i, parts in enumerate(masks.polygons()):
        if parts:
            largest = max(parts, key=lambda part: abs(polygon_area(part)))
            points[i] = torch.from_numpy(resample_outline(np.array(largest).reshape(-1, 2), count))
            shares[i] = _share(masks, i, largest, areas[i])
    return points.to(masks.device), shares.to(masks.device)


def _share(masks: Masks, i: int, outline: Sequence[float], area: int) -> float:
    """Return intersection over union of a mask and one of its outlines."""
    inside = Masks.from_polygons([[list(outline)]], masks.size)
    enclosed = int(inside.areas()[0])
    crop, region = masks.crop(i), masks.region(i)
    canvas = torch.zeros(crop.shape, dtype=torch.bool)
    part = inside.crop(0)
    # A mask's outline never leaves its crop.
    offset = [
        slice(int(o) - r.start, int(o) - r.start + n)
        for o, r, n in zip(inside.origins[0], region, part.shape, strict=True)
    ]
    canvas[tuple(offset)] = part
    shared = int((canvas & crop.cpu()).sum())
    return shared / max(1, area + enclosed - shared)

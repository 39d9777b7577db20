"""Boxes of any number of dimensions: ``[x0, y0, (z0,) x1, y1, (z1)]``, absolute and half-open.

Lengths of a canvas are in array order (``[z,] y, x``), coordinates in ``(x, y[, z])`` order, as everywhere.
In 2-D every function equals torchvision's of the same name, but for ``masks_to_boxes``, whose boxes are
half-open here (torchvision gives the last pixel inside).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

_EPSILON = 1e-7  # torchvision's, in the denominators of distance and complete IoU


def box_volume(boxes: Shaped[Tensor, "*batch sides"]) -> Float[Tensor, "*batch"]:
    """Return the area or volume of each box, in pixels or voxels.

    Example:
        >>> box_volume(torch.tensor([[0.0, 0, 0, 2, 3, 4]])).tolist()
        [24.0]
    """
    low, high = _corners(boxes)
    return (high - low).prod(dim=-1)


def box_iou(
    boxes1: Shaped[Tensor, "n sides"], boxes2: Shaped[Tensor, "m _"], paired: bool = False
) -> Float[Tensor, "..."]:
    """Return the intersection over union of each box with each other box.

    Args:
        boxes1: Boxes ``[x0, y0, (z0,) x1, y1, (z1)]``.
        boxes2: Boxes of the same number of dimensions.
        paired: Compare box ``i`` with box ``i`` only, as losses do.

    Returns:
        IoU in [0, 1]: ``(n, m)``, or ``(n,)`` when paired. Two boxes without volume have IoU 0.

    Raises:
        ValueError: If the boxes have different numbers of dimensions, or paired boxes different numbers.

    Example:
        >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [5, 5, 6, 6]])).tolist()
        [[0.3333333432674408, 0.0]]
    """
    low1, high1, low2, high2 = _pair(boxes1, boxes2, paired)
    return _iou_union(low1, high1, low2, high2)[0]


def generalized_box_iou(
    boxes1: Shaped[Tensor, "n sides"], boxes2: Shaped[Tensor, "m _"], paired: bool = False
) -> Float[Tensor, "..."]:
    """Return the generalised IoU, in [-1, 1]: the IoU less the part of the enclosing box that neither fills.

    "Generalized Intersection over Union" (Rezatofighi et al., 2019, https://arxiv.org/abs/1902.09630).

    Args:
        boxes1: Boxes ``[x0, y0, (z0,) x1, y1, (z1)]``.
        boxes2: Boxes of the same number of dimensions.
        paired: Compare box ``i`` with box ``i`` only.
    """
    low1, high1, low2, high2 = _pair(boxes1, boxes2, paired)
    iou, union = _iou_union(low1, high1, low2, high2)
    enclosing = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).clamp(min=0).prod(dim=-1)
    return iou - _divide(enclosing - union, enclosing)


def distance_box_iou(
    boxes1: Shaped[Tensor, "n sides"], boxes2: Shaped[Tensor, "m _"], paired: bool = False
) -> Float[Tensor, "..."]:
    """Return the distance IoU: the IoU less the squared distance of centres over the enclosing diagonal.

    "Distance-IoU Loss" (Zheng et al., 2020, https://arxiv.org/abs/1911.08287).

    Args:
        boxes1: Boxes ``[x0, y0, (z0,) x1, y1, (z1)]``.
        boxes2: Boxes of the same number of dimensions.
        paired: Compare box ``i`` with box ``i`` only.
    """
    low1, high1, low2, high2 = _pair(boxes1, boxes2, paired)
    return _distance_iou(low1, high1, low2, high2)[0]


def complete_box_iou(
    boxes1: Shaped[Tensor, "n sides"], boxes2: Shaped[Tensor, "m _"], paired: bool = False
) -> Float[Tensor, "..."]:
    """Return the complete IoU: the distance IoU less a term for the difference of aspect ratios.

    "Distance-IoU Loss" (Zheng et al., 2020, https://arxiv.org/abs/1911.08287). A volume has three aspect
    ratios, one for each pair of axes; their terms are averaged, which leaves the 2-D formula as it is.

    Args:
        boxes1: Boxes ``[x0, y0, (z0,) x1, y1, (z1)]``.
        boxes2: Boxes of the same number of dimensions.
        paired: Compare box ``i`` with box ``i`` only.
    """
    low1, high1, low2, high2 = _pair(boxes1, boxes2, paired)
    distance_iou, iou = _distance_iou(low1, high1, low2, high2)
    sides1, sides2 = high1 - low1, high2 - low2
    terms = [
        (torch.atan(sides1[..., i] / sides1[..., j]) - torch.atan(sides2[..., i] / sides2[..., j])).square()
        for i, j in itertools.combinations(range(sides1.shape[-1]), 2)
    ]
    aspect = 4 / math.pi**2 * torch.stack(terms).mean(dim=0)
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect + _EPSILON)
    return distance_iou - trade_off * aspect


def box_convert(
    boxes: Shaped[Tensor, "*batch sides"], in_format: str, out_format: str
) -> Shaped[Tensor, "*batch sides"]:
    """Convert boxes between ``"xyxy"`` (two corners), ``"cxcywh"`` (centre, size), ``"xywh"`` (corner, size).

    The names are torchvision's; a volume's boxes have their z beside y in each half.

    Raises:
        ValueError: If a format is none of the three.

    Example:
        >>> box_convert(torch.tensor([0.0, 0, 0, 2, 4, 6]), "xyxy", "cxcywh").tolist()
        [1.0, 2.0, 3.0, 2.0, 4.0, 6.0]
    """
    for name in (in_format, out_format):
        if name not in ("xyxy", "cxcywh", "xywh"):
            raise ValueError(f'box formats are "xyxy", "cxcywh" and "xywh", got {name!r}')
    if in_format == out_format:
        return boxes.clone()
    first, second = _corners(boxes)
    if in_format == "xywh":
        first, second = first, first + second
    elif in_format == "cxcywh":
        first, second = first - second / 2, first + second / 2
    if out_format == "xywh":
        first, second = first, second - first
    elif out_format == "cxcywh":
        first, second = (first + second) / 2, second - first
    return torch.cat([first, second], dim=-1)


def clip_boxes(boxes: Shaped[Tensor, "*batch sides"], size: Sequence[int]) -> Shaped[Tensor, "*batch sides"]:
    """Clip boxes to a canvas of ``size`` (array order).

    Example:
        >>> clip_boxes(torch.tensor([[-1.0, 2, 9, 9]]), size=(4, 6)).tolist()
        [[0.0, 2.0, 6.0, 4.0]]
    """
    limit = torch.as_tensor(list(size)[::-1] * 2, dtype=boxes.dtype, device=boxes.device)
    if limit.numel() != boxes.shape[-1]:
        raise ValueError(
            f"boxes with {boxes.shape[-1]} coordinates cannot be clipped to a size {tuple(size)}"
        )
    return torch.minimum(boxes.clamp(min=0), limit)


def remove_small_boxes(boxes: Shaped[Tensor, "n sides"], min_size: float) -> Int[Tensor, " kept"]:
    """Return the indices of the boxes whose sides are all at least ``min_size`` pixels or voxels long."""
    low, high = _corners(boxes)
    return ((high - low) >= min_size).all(dim=-1).nonzero()[:, 0]


def masks_to_boxes(masks: Shaped[Tensor, "n *spatial"]) -> Float[Tensor, "n sides"]:
    """Return the tight half-open box of each mask; an empty mask gets a box of zeros.

    Example:
        >>> masks_to_boxes(torch.tensor([[[0, 1, 1], [0, 0, 0]]])).tolist()
        [[1.0, 0.0, 3.0, 1.0]]
    """
    low, high = mask_bounds(masks != 0)
    return torch.cat([low.flip(1), high.flip(1)], dim=1).to(torch.float32)


def mask_bounds(
    masks: Bool[Tensor, "n *spatial"],
) -> tuple[Int[Tensor, "n dims"], Int[Tensor, "n dims"]]:
    """Return the first and one past the last index in each mask, in array order; zeros when it is empty."""
    dims = masks.ndim - 1
    low = torch.zeros((masks.shape[0], dims), dtype=torch.int64, device=masks.device)
    high = torch.zeros_like(low)
    if masks.numel() == 0:
        return low, high
    for axis in range(dims):
        others = [1 + other for other in range(dims) if other != axis]
        line = (masks.any(dim=others) if others else masks).to(torch.uint8)
        inside = line.amax(dim=1)
        low[:, axis] = line.argmax(dim=1) * inside
        high[:, axis] = (line.shape[1] - line.flip(1).argmax(dim=1)) * inside
    return low, high


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Split boxes into their two halves; half precision and integers become float32, as products overflow."""
    if boxes.shape[-1] % 2 or boxes.shape[-1] == 0:
        raise ValueError(f"boxes have 2 coordinates per axis, got tensors of shape {tuple(boxes.shape)}")
    if not boxes.is_floating_point() or boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    half = boxes.shape[-1] // 2
    return boxes[..., :half], boxes[..., half:]


def _pair(boxes1: Tensor, boxes2: Tensor, paired: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the corners of both sets, broadcast against each other unless they are paired."""
    if boxes1.shape[-1] != boxes2.shape[-1] or (paired and boxes1.shape[0] != boxes2.shape[0]):
        kind = "pairs of boxes" if paired else "boxes"
        raise ValueError(f"{kind} of shapes {tuple(boxes1.shape)} and {tuple(boxes2.shape)} do not compare")
    (low1, high1), (low2, high2) = _corners(boxes1), _corners(boxes2)
    if not paired:
        low1, high1 = low1[:, None], high1[:, None]
    return low1, high1, low2, high2


def _divide(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, and 0 with gradient 0 where ``whole`` is 0."""
    empty = whole == 0
    return torch.where(
        empty, torch.zeros_like(part), part / torch.where(empty, torch.ones_like(whole), whole)
    )


def _iou_union(low1: Tensor, high1: Tensor, low2: Tensor, high2: Tensor) -> tuple[Tensor, Tensor]:
    overlap = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(dim=-1)
    union = (high1 - low1).prod(dim=-1) + (high2 - low2).prod(dim=-1) - overlap
    return _divide(overlap, union), union


def _distance_iou(low1: Tensor, high1: Tensor, low2: Tensor, high2: Tensor) -> tuple[Tensor, Tensor]:
    iou = _iou_union(low1, high1, low2, high2)[0]
    sides = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).clamp(min=0)
    diagonal = sides.square().sum(dim=-1) + _EPSILON
    centres = ((low1 + high1) / 2 - (low2 + high2) / 2).square().sum(dim=-1)
    return iou - centres / diagonal, iou

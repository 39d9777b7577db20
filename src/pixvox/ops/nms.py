"""Non-maximum suppression for any number of dimensions: exact, stable, and of bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from pixvox.ops.sampling import has_numba

_BLOCK = 1024  # boxes settled at once by the pure torch form; 4 MB per matrix of float32


def nms(
    boxes: Shaped[Tensor, "n sides"],
    scores: Shaped[Tensor, " _"],
    iou_threshold: float,
    backend: str = "auto",
) -> Int[Tensor, " kept"]:
    """Keep the best box, drop those that overlap it too much, and so on with the next best.

    Args:
        boxes: ``[x0, y0, (z0,) x1, y1, (z1)]``.
        scores: Score of each box; equal scores keep their order.
        iou_threshold: Boxes whose IoU with a better kept box is greater are dropped.
        backend: ``"torchvision"`` (2-D), ``"numba"`` (CPU), ``"torch"`` (anywhere), or ``"auto"``: the first
            of them that works here.

    Returns:
        Indices of the kept boxes by falling score.

    Raises:
        ValueError: If a score is NaN, the numbers of boxes and scores differ, or the backend does not fit.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 0, 4, 4, 5], [8, 8, 8, 9, 9, 9]])
        >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), iou_threshold=0.5).tolist()
        [1, 2]
    """
    boxes, scores = _checked(boxes, scores)
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    suppress = _backend(backend, boxes)
    order = scores.argsort(descending=True, stable=True)
    return order[suppress(boxes[order], iou_threshold)]


def batched_nms(
    boxes: Shaped[Tensor, "n sides"],
    scores: Shaped[Tensor, " _"],
    idxs: Int[Tensor, " _"],
    iou_threshold: float,
    backend: str = "auto",
) -> Int[Tensor, " kept"]:
    """Suppress within each group only (class, level, image), exactly.

    Groups are suppressed one by one. The usual trick of moving each group to coordinates of its own rounds
    the boxes of large images and volumes, and with them the result.

    Args:
        boxes: ``[x0, y0, (z0,) x1, y1, (z1)]``.
        scores: Score of each box; equal scores keep their order.
        idxs: Group of each box.
        iou_threshold: As for ``nms``.
        backend: As for ``nms``.

    Returns:
        Indices of the kept boxes by falling score.
    """
    boxes, scores = _checked(boxes, scores)
    if idxs.shape != scores.shape:
        raise ValueError(f"{len(scores)} boxes need as many group indices, got the shape {tuple(idxs.shape)}")
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    suppress = _backend(backend, boxes)
    order = scores.argsort(descending=True, stable=True)
    # Sorting the groups last keeps each of them in the order of its scores.
    order = order[idxs[order].argsort(stable=True)]
    sizes = torch.unique_consecutive(idxs[order], return_counts=True)[1].tolist()
    keep = torch.cat([group[suppress(boxes[group], iou_threshold)] for group in torch.split(order, sizes)])
    keep = keep.sort()[0]
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _checked(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes and scores, detached, in at least float32, or say what is wrong with them."""
    if boxes.ndim != 2 or boxes.shape[1] % 2 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            "boxes are (n, 4) or (n, 6) and scores (n,), "
            f"got the shapes {tuple(boxes.shape)} and {tuple(scores.shape)}"
        )
    if scores.is_floating_point() and bool(scores.isnan().any()):
        raise ValueError(
            f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN, so the boxes have no order; "
            "the network has diverged, or the scores come from 0 / 0"
        )
    boxes = boxes.detach()
    return boxes if boxes.dtype == torch.float64 else boxes.float(), scores.detach()


def _backend(name: str, boxes: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Return the function ``(boxes sorted by score, threshold) -> kept positions``."""
    planar, on_cpu = boxes.shape[1] == 4, boxes.device.type == "cpu"
    if name == "auto":
        name = "torchvision" if planar else "numba" if on_cpu and has_numba() else "torch"
    if name == "torch":
        return _suppress
    if name == "torchvision" and planar:
        return _suppress_torchvision
    if name == "numba" and on_cpu and has_numba():
        from pixvox.ops.kernels.cpu import nms as suppress_numba

        return lambda boxes, threshold: suppress_numba(boxes.contiguous(), threshold)
    raise ValueError(
        f'backend is "auto", "torch", "torchvision" (2-D) or "numba" (CPU, when installed); got {name!r} for '
        f"{boxes.shape[1] // 2}-D boxes on {boxes.device}"
    )


def _suppress_torchvision(boxes: Tensor, iou_threshold: float) -> Tensor:
    from torchvision.ops import nms as torchvision_nms

    falling = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    kept: Tensor = torchvision_nms(boxes, falling, iou_threshold)
    return kept


def _suppress(boxes: Float[Tensor, "n sides"], iou_threshold: float) -> Int[Tensor, " kept"]:
    """Greedy suppression of sorted boxes as a fixed point, block by block: no loop over boxes."""
    kept = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    for first in range(0, len(boxes), _BLOCK):
        alive = torch.arange(first, min(first + _BLOCK, len(boxes)), device=boxes.device)
        for earlier in torch.split(kept, _BLOCK):
            alive = alive[~_overlaps(boxes[earlier], boxes[alive], iou_threshold).any(dim=0)]
        # Row i drops column j. "Kept = not dropped by a kept one" has one solution, for a box depends on
        # better ones only; each pass settles at least one box more, in practice nearly all of them.
        drops = _overlaps(boxes[alive], boxes[alive], iou_threshold).triu(diagonal=1).float()
        keep = torch.ones(len(alive), device=boxes.device)
        while True:
            settled = (keep @ drops == 0).float()
            if torch.equal(settled, keep):
                break
            keep = settled
        kept = torch.cat([kept, alive[keep.bool()]])
    return kept


def _overlaps(
    better: Float[Tensor, "n sides"], worse: Float[Tensor, "m sides"], threshold: float
) -> Bool[Tensor, "n m"]:
    """Tell which pairs have an IoU above the threshold; compared in float64, as torchvision does."""
    dims = better.shape[1] // 2
    overlap = better.new_ones(())
    for axis in range(dims):
        end = torch.minimum(better[:, None, dims + axis], worse[:, dims + axis])
        begin = torch.maximum(better[:, None, axis], worse[:, axis])
        overlap = overlap * (end - begin).clamp(min=0)
    volumes = [(boxes[:, dims:] - boxes[:, :dims]).prod(dim=1) for boxes in (better, worse)]
    return (overlap / (volumes[0][:, None] + volumes[1] - overlap)).double() > threshold

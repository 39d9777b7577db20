"""Matrix NMS: masks that lie on better masks of their class lose score instead of being removed."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CELLS = 2**24  # elements of the float32 copies that exist at one time: 64 MiB


def matrix_nms(
    masks: Bool[Tensor, "n *grid"],
    scores: Float[Tensor, " _"],
    labels: Int[Tensor, " _"],
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
) -> Float[Tensor, " n"]:
    """Return the scores, each lowered by the better mask of its class that makes it most likely a double.

    "SOLOv2: Dynamic and Fast Instance Segmentation" (Wang et al., 2020, https://arxiv.org/abs/2003.10152), section 3.4:
    with the overlap ``iou`` of a mask and a better one, and the largest overlap ``other`` of that better one with those
    better still, the factor is ``f(iou) / f(other)``; the smallest of these counts. Everything is decided at once, by
    one matrix of overlaps.

    Args:
        masks: On one grid, of images or volumes.
        scores: Of each mask, in [0, 1].
        labels: Class of each mask; classes do not touch each other.
        kernel: ``"gaussian"``: ``f(x) = exp(-sigma * x^2)``; ``"linear"``: ``f(x) = 1 - x``.
        sigma: Of the Gaussian.

    Raises:
        ValueError: If the kernel is none of these, or the lengths differ.

    Example:
        >>> masks = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
        >>> matrix_nms(masks, torch.tensor([0.5, 0.9, 0.3]), torch.zeros(3, dtype=torch.int64), "linear").tolist()
        [0.0, 0.8999999761581421, 0.30000001192092896]
    """
    if not len(masks) == len(scores) == len(labels):
        raise ValueError(
            f"every mask needs a score and a label; got {len(masks)} masks, {len(scores)} scores and "
            f"{len(labels)} labels"
        )
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f'kernel must be "gaussian" or "linear", got {kernel!r}')
    if len(masks) == 0:
        return scores.clone()
    order = scores.argsort(descending=True, stable=True)
    labels = labels[order]
    rivals = (labels[:, None] == labels).triu(diagonal=1)  # row: the better one, column: the worse one
    iou = _overlaps(masks[order].flatten(1)) * rivals
    covered = iou.amax(dim=0)[:, None]
    if kernel == "gaussian":
        factors = torch.exp(sigma * (covered**2 - iou**2))
    else:
        # A better one that is a perfect double itself takes nothing; and nothing is left of a double of it.
        factors = (1 - iou) / (1 - covered).clamp(min=torch.finfo(iou.dtype).tiny)
    decayed = torch.empty_like(scores)
    decayed[order] = scores[order] * factors.amin(dim=0).to(scores.dtype)
    return decayed


def _overlaps(masks: Bool[Tensor, "n cells"]) -> Float[Tensor, "n n"]:
    """Return the IoU of all pairs, a few cells at a time."""
    shared = torch.zeros((len(masks), len(masks)), device=masks.device)
    with torch.autocast(masks.device.type, enabled=False):  # counts need float32
        for part in torch.split(masks, max(1, _CELLS // len(masks)), dim=1):
            values = part.float()
            shared += values @ values.T
    area = shared.diagonal()
    return shared / (area[:, None] + area - shared).clamp(min=1)

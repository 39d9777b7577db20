"""Suppression of masks that lie on better masks of their class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.masks import Masks


def mask_nms(
    masks: Masks, scores: Float[Tensor, " n"], labels: Int[Tensor, " n"], iou_threshold: float
) -> Int[Tensor, " kept"]:
    """Return the masks, best first, that overlap no better mask of their class by more than a threshold.

    Only pairs whose boxes leave room for such an overlap are compared, within the crops.

    Args:
        masks: Of one image.
        scores: Of each mask.
        labels: Class of each mask.
        iou_threshold: Largest IoU of two masks that both stay, in [0, 1].

    Example:
        >>> masks = Masks.from_dense(torch.tensor([[[1, 1, 1, 0]], [[1, 1, 0, 0]], [[0, 0, 0, 1]]]))
        >>> mask_nms(masks, torch.tensor([0.5, 0.9, 0.1]), torch.zeros(3, dtype=torch.int64), 0.6).tolist()
        [1, 2]
    """
    device = scores.device
    masks, scores, labels = masks.to("cpu"), scores.cpu(), labels.cpu()  # one decision at a time
    order = scores.argsort(descending=True, stable=True)
    areas = masks.areas().to(torch.float32)
    low, high = masks.origins, masks.origins + masks.shapes
    removed = torch.zeros(len(masks), dtype=torch.bool)
    kept = []
    for rank, i in enumerate(order.tolist()):
        if removed[i]:
            continue
        kept.append(i)
        rest = order[rank + 1 :]
        first, last = torch.maximum(low[i], low[rest]), torch.minimum(high[i], high[rest])
        room = torch.minimum((last - first).clamp(min=0).prod(dim=1).float(), areas[rest])
        close = (labels[rest] == labels[i]) & (room > iou_threshold * (areas[i] + areas[rest] - room))
        for j in rest[close].tolist():
            if not removed[j]:
                shared = _intersection(masks, i, j)
                removed[j] = shared > iou_threshold * (areas[i] + areas[j] - shared)
    return torch.tensor(kept, dtype=torch.int64, device=device)


def _intersection(masks: Masks, i: int, j: int) -> Tensor:
    """Return how many pixels two masks share."""
    origins, ends = masks.origins[[i, j]], (masks.origins + masks.shapes)[[i, j]]
    low, high = origins.amax(dim=0), ends.amin(dim=0)
    parts = [
        masks.crop(k)[
            tuple(slice(a, b) for a, b in zip((low - o).tolist(), (high - o).tolist(), strict=True))
        ]
        for k, o in ((i, origins[0]), (j, origins[1]))
    ]
    return (parts[0] & parts[1]).sum()

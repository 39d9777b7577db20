"""Boundary loss over class maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixvox.distributed.world import world_mean
from pixvox.losses.class_factors import class_counts
from pixvox.structures import IGNORE_INDEX


class Boundary(nn.Module):
    """Probability of each class times the signed distance to its true boundary, negative inside.

    "Boundary loss for highly unbalanced segmentation" (Kervadec et al., 2019, https://arxiv.org/abs/1812.07032). It
    says how far from its place a region is, which no term of areas does, and is used beside one, with a small weight:
    the paper begins with 0.01. The best value is below 0. A class that an image does not show, or shows everywhere,
    has no boundary there and adds nothing. Distances are found on the CPU.

    Args:
        weight: Factor of the term.
        spacing: Size of a pixel or voxel per axis in array order, in any unit: ratios alone count, and distances are
            in pixels of the finest axis. None for equal ones.
        include_background: Count class 0.
        ignore_index: Label left out.

    Raises:
        ValueError: If ``spacing`` is not positive.

    Example:
        >>> labels = torch.tensor([[[0, 0, 0, 1, 1]]])
        >>> certain = 99.0 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
        >>> round(float(Boundary()(certain, labels)), 4)  # one of five pixels lies one pixel inside
        -0.2
    """

    def __init__(
        self,
        weight: float = 1.0,
        spacing: Sequence[float] | None = None,
        include_background: bool = False,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        if spacing is not None and not all(step > 0 for step in spacing):
            raise ValueError(f"spacing must be above 0 on every axis, got {list(spacing)}")
        self.weight = weight
        self.spacing = None if spacing is None else [step / min(spacing) for step in spacing]
        self.include_background = include_background
        self.ignore_index = ignore_index

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the mean over pixels and classes, in all processes that share a step."""
        first = 0 if self.include_background else 1
        spacing = self.spacing or [1.0] * (labels.dim() - 1)
        if len(spacing) != labels.dim() - 1:
            raise ValueError(
                f"spacing has {len(spacing)} values for {labels.dim() - 1} axes; give one per axis"
            )
        classes = range(first, logits.shape[1])
        maps = [
            signed_distances(label_map, classes, self.ignore_index, spacing)
            for label_map in labels.cpu().numpy()
        ]
        distances = torch.from_numpy(np.stack(maps)).to(logits.device)
        loss = (logits.float().softmax(dim=1)[:, first:] * distances).sum()
        counts = class_counts(labels, logits.shape[1], self.ignore_index)
        return self.weight * loss / world_mean(counts.sum() * len(classes))


def signed_distances(
    label_map: np.ndarray, classes: Sequence[int], ignore_index: int, spacing: Sequence[float]
) -> np.ndarray:
    """Return for each class how far each pixel is from it, or from its edge inside; 0 where it is ignored.

    A pixel outside has the distance to the nearest pixel of the class, one inside minus the distance to the nearest
    pixel that is known to be another, less 1: at the edge it is 0.

    Args:
        label_map: Classes of one image.
        classes: Those that are asked for.
        ignore_index: Label of unknown pixels.
        spacing: Size of a pixel per axis, 1 on the finest.

    Example:
        >>> signed_distances(np.array([[0, 0, 1, 1, 1]]), [1], 255, [1.0, 1.0])[0]
        array([[ 2.,  1.,  0., -1., -2.]], dtype=float32)
    """
    distances = np.zeros((len(classes), *label_map.shape), np.float32)
    known = label_map != ignore_index
    for place, label in enumerate(classes):
        inside = known & (label_map == label)
        others = known & ~inside
        if inside.any() and others.any():
            np.copyto(distances[place], _distance_to(inside, spacing), where=others)
            np.copyto(distances[place], 1 - _distance_to(others, spacing), where=inside)
    return distances


def _distance_to(region: Bool[np.ndarray, "*spatial"], spacing: Sequence[float]) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~region, sampling=spacing), np.float32)

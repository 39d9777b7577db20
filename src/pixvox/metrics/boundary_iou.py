"""IoU of the bands along the boundaries of classes: what mIoU hardly sees in large regions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from pixvox.errors import ConfigError
from pixvox.metrics.metric import Metric, defined_mean, gather, ratio
from pixvox.metrics.semantic import class_maps, names_of_classes, scored_pixels, scores_by_class
from pixvox.structures import IGNORE_INDEX, Geometry, Segmentation


class BoundaryIoU(Metric):
    """IoU of boundary bands, over all pixels of all images.

    "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (Cheng et al., 2021,
    https://arxiv.org/abs/2103.16562), of classes instead of objects. The band of a class holds its pixels from which
    another class, or the outside of the image, is at most ``dilation`` steps away, diagonal steps included. The score
    is the IoU of the true and the predicted band. Ignored pixels belong to no band, and no band runs along them.

    ``boundary_mIoU`` is the mean over the classes that appear; ``boundary_IoU/<class>`` those of each class.

    Args:
        num_classes: Number of classes.
        class_names: Names by index.
        ignore_index: Label of true pixels that are not scored; values outside the classes are not either.
        dilation_ratio: Width of the band as a share of the diagonal of each image, in (0, 1). Where the spacing is
            known both are measured in its unit, so that a band is as wide across the slices of a volume as within.
        dilation: Width in pixels or voxels along every axis instead.
        per_class: Add the scores of each class.

    Example:
        >>> import torch
        >>> metric = BoundaryIoU(num_classes=2, dilation=1)
        >>> truth = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]]).expand(5, 10)
        >>> found = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]).expand(5, 10)
        >>> metric.update([Segmentation(class_map=found)], [Segmentation(class_map=truth)])
        >>> round(metric.compute()["boundary_IoU/1"], 3)  # 13 pixels of 21 in one band or the other
        0.619
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] = (),
        ignore_index: int = IGNORE_INDEX,
        dilation_ratio: float = 0.02,
        dilation: int | None = None,
        per_class: bool = True,
    ) -> None:
        if not 0 < dilation_ratio < 1:
            raise ConfigError(
                f"dilation_ratio is a share of the diagonal between 0 and 1, such as 0.02; got {dilation_ratio}"
            )
        if dilation is not None and dilation < 1:
            raise ConfigError(f"dilation is a number of pixels from 1 on, got {dilation}")
        self.num_classes = num_classes
        self.class_names = names_of_classes(num_classes, class_names)
        self.ignore_index = ignore_index
        self.dilation_ratio, self.dilation = dilation_ratio, dilation
        self.per_class = per_class
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts = np.zeros((3, self.num_classes), dtype=np.int64)

    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""
        maps = class_maps(prediction, truth, self.num_classes, self.ignore_index)
        known = scored_pixels(maps[1], self.num_classes, self.ignore_index)
        # What a prediction abstained from is a class of its own; small numbers are fast to compare.
        predicted, true = (
            labels.clamp(max=self.num_classes).cpu().numpy().astype(np.int16) for labels in maps
        )
        steps = self._steps(truth.size, truth.geometry or prediction.geometry)
        true_band, found_band = (band(labels, known, steps) for labels in (true, predicted))
        both = true_band & found_band & (true == predicted)
        self._counts += np.stack([
            np.bincount(labels[chosen], minlength=self.num_classes + 1)[: self.num_classes]
            for labels, chosen in ((true, both), (true, true_band), (predicted, found_band))
        ])  # fmt: skip

    def _steps(self, size: Sequence[int], geometry: Geometry | None) -> tuple[int, ...]:
        """Return the width of the band along each axis, in pixels or voxels."""
        if self.dilation is not None:
            return (self.dilation,) * len(size)
        spacing = (geometry.spacing if geometry is not None else None) or (1.0,) * len(size)
        diagonal = math.hypot(*(length * step for length, step in zip(size, spacing, strict=True)))
        return tuple(max(1, round(self.dilation_ratio * diagonal / step)) for step in spacing)

    def class_columns(self) -> dict[str, Float[np.ndarray, " classes"]]:
        """Return the boundary IoU of each class."""
        both, true, predicted = np.sum(gather([self._counts]), axis=0)
        return {"boundary IoU": ratio(both, true + predicted - both)}

    def compute(self) -> dict[str, float]:
        """Return the scores of all images so far."""
        (iou,) = self.class_columns().values()
        results = {"boundary_mIoU": defined_mean(iou)}
        if self.per_class:
            results |= scores_by_class("boundary_IoU", self.class_names, iou)
        return results


def band(
    labels: Int[np.ndarray, "*spatial"], known: Bool[np.ndarray, "*spatial"], steps: Sequence[int]
) -> Bool[np.ndarray, "*spatial"]:
    """Return the known pixels that have another known class, or the outside of the image, within ``steps``.

    For one class this is its mask without the mask's erosion by a box; looking for windows with more than one label
    finds the bands of all classes at once.

    Args:
        labels: Class of each pixel or voxel.
        known: False where the class is not known.
        steps: Half lengths of the box, per axis in array order.

    Example:
        >>> band(np.array([0, 0, 0, 0, 1, 1, 1]), np.ones(7, dtype=bool), [1]).astype(int).tolist()
        [1, 0, 0, 1, 1, 0, 1]
    """
    outside: npt.NDArray[np.bool_] = np.zeros(labels.shape, dtype=bool)
    above = labels.max(initial=0) + 1
    lowest, highest = np.where(known, labels, above), np.where(known, labels, -1)
    for axis, reach in enumerate(steps):
        lowest = _in_windows(np.minimum, lowest, reach, axis)
        highest = _in_windows(np.maximum, highest, reach, axis)
        near_end = np.moveaxis(outside, axis, 0)
        near_end[:reach] = near_end[max(0, len(near_end) - reach) :] = True
    result: npt.NDArray[np.bool_] = known & (outside | (lowest != highest))
    return result


def _in_windows(
    extreme: np.ufunc, values: Int[np.ndarray, "*spatial"], reach: int, axis: int
) -> Int[np.ndarray, "*spatial"]:
    """Return the minimum or maximum of what lies at most ``reach`` steps away along an axis.

    Windows double their length until two of them cover the wanted one, so a wide window costs hardly more than a
    narrow one.
    """
    lines = np.moveaxis(values, axis, 0)
    covered = np.pad(lines, [(reach, reach), *[(0, 0)] * (lines.ndim - 1)], mode="edge")
    window, length = 2 * reach + 1, 1
    while 2 * length <= window:
        covered = extreme(covered[:-length], covered[length:])
        length *= 2
    rest = window - length
    found = extreme(covered[: len(lines)], covered[rest : rest + len(lines)])
    result: npt.NDArray[np.integer] = np.moveaxis(found, 0, axis)
    return result

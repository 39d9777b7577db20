"""Scores of class maps, all from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from pixvox.errors import ConfigError, DataError
from pixvox.metrics.metric import Metric, defined_mean, gather, ratio
from pixvox.structures import IGNORE_INDEX, Segmentation


def confusion_counts(
    predicted: Integer[Tensor, "*spatial"],
    true: Integer[Tensor, "*spatial"],
    num_classes: int,
    ignore_index: int,
) -> Int[Tensor, "classes columns"]:
    """Count pixels or voxels by true class (row) and predicted class (column) with one bincount.

    What is ignored goes to a spare row that is dropped, which is faster than picking the rest out. The last
    column counts pixels for which a prediction abstained with ``ignore_index``: they are wrong for their
    true class.

    Example:
        >>> confusion_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 255]), 2, 255).tolist()
        [[1, 0, 0], [0, 1, 0]]
    """
    width = num_classes + 1
    rows = torch.where((true == ignore_index) | (true < 0) | (true >= num_classes), num_classes, true.long())
    columns = torch.where(predicted == ignore_index, num_classes, predicted.long())
    counts = torch.bincount((rows * width + columns).reshape(-1), minlength=width * width)
    return counts.reshape(width, width)[:num_classes]


class SemanticScores(Metric):
    """Accuracy, IoU and Dice of class maps, over all pixels of all images.

    ``acc`` is the share of right pixels, ``macc`` the mean over classes of TP / (TP + FN), ``mIoU`` of
    TP / (TP + FP + FN), ``mDice`` of 2 TP / (2 TP + FP + FN); ``fwIoU`` weighs the IoU of each class by its
    true pixels. ``mDice_foreground`` leaves class 0 out and is given when class 0 is called background.
    A class that is neither true nor predicted anywhere has no score and is left out of means.

    Args:
        num_classes: Number of classes.
        class_names: Names by index, for the scores per class.
        ignore_index: Label of true pixels that are not scored; values outside the classes are not either.
        absent_as_zero: Count classes that appear nowhere as 0 in the means, as some tools do.
        per_class: Add ``IoU/<class>`` and ``Dice/<class>`` to the results.

    Example:
        >>> metric = SemanticScores(num_classes=2)
        >>> truth = Segmentation(class_map=torch.tensor([[0, 0, 1, 255]]))
        >>> metric.update([Segmentation(class_map=torch.tensor([[0, 1, 1, 1]]))], [truth])
        >>> round(metric.compute()["mIoU"], 2), metric.confusion_matrix.tolist()
        (0.5, [[1, 1], [0, 1]])
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] = (),
        ignore_index: int = IGNORE_INDEX,
        absent_as_zero: bool = False,
        per_class: bool = True,
    ) -> None:
        if class_names and len(class_names) != num_classes:
            raise ConfigError(f"{len(class_names)} class names were given for num_classes={num_classes}")
        self.num_classes = num_classes
        self.class_names = tuple(class_names) or tuple(str(index) for index in range(num_classes))
        self.ignore_index = ignore_index
        self.absent_as_zero = absent_as_zero
        self.per_class = per_class
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts = torch.zeros((self.num_classes, self.num_classes + 1), dtype=torch.int64)

    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""
        if prediction.class_map is None or truth.class_map is None:
            raise ConfigError(
                f"{truth.source or 'an image'} has no class map to score; instances are scored by "
                "LabelMapScores and CocoAveragePrecision"
            )
        true = truth.class_map
        predicted = prediction.class_map.to(true.device)
        wrong = (predicted != self.ignore_index) & ((predicted < 0) | (predicted >= self.num_classes))
        if wrong.any():
            raise DataError(
                f"the prediction for {truth.source or 'an image'} holds class {int(predicted[wrong][0])}, "
                f"but there are {self.num_classes} classes (0..{self.num_classes - 1}); "
                "set num_classes to that of the model"
            )
        self._counts += confusion_counts(predicted, true, self.num_classes, self.ignore_index).cpu()

    def _gathered(self) -> npt.NDArray[np.float64]:
        total: npt.NDArray[np.int64] = torch.stack(gather([self._counts])).sum(dim=0).numpy()
        return total.astype(np.float64)

    @property
    def confusion_matrix(self) -> Int[np.ndarray, "classes classes"]:
        """Pixels by true class (row) and predicted class (column): a collective under torch.distributed."""
        return self._gathered()[:, :-1].astype(np.int64)

    def compute(self) -> dict[str, float]:
        """Return the scores of all images so far."""
        counts = self._gathered()
        right = counts.diagonal()
        true, predicted = counts.sum(axis=1), counts[:, :-1].sum(axis=0)
        union = true + predicted - right
        iou = ratio(right, union)
        dice = ratio(2 * right, true + predicted)
        results = {
            "acc": float(ratio(right.sum(), true.sum())),
            "macc": self._mean(ratio(right, true)),
            "mIoU": self._mean(iou),
            "fwIoU": float(ratio((true * np.nan_to_num(iou)).sum(), true.sum())),
            "mDice": self._mean(dice),
        }
        if self.num_classes > 1 and self.class_names[0].lower() in ("background", "_background_", "bg"):
            results["mDice_foreground"] = self._mean(dice[1:])
        if self.per_class:
            for name, values in (("IoU", iou), ("Dice", dice)):
                results |= {
                    f"{name}/{label}": float(value)
                    for label, value in zip(self.class_names, values, strict=True)
                }
        return results

    def _mean(self, values: npt.NDArray[np.float64]) -> float:
        """Return the mean over the classes that appear."""
        if self.absent_as_zero:
            return float(np.nan_to_num(values).mean())
        # A class that is predicted but never true has IoU 0 and counts; its recall is not defined.
        return defined_mean(values)

"""Scores of class maps, all from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, Int32, Integer
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
    column counts pixels for which a prediction abstained with ``ignore_index``, or that lie outside the classes: they
    are wrong for their true class.

    Example:
        >>> confusion_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 255]), 2, 255).tolist()
        [[1, 0, 0], [0, 1, 0]]
    """
    width = num_classes + 1
    rows, columns = (_with_spare(labels, num_classes, ignore_index) for labels in (true, predicted))
    counts = torch.bincount(torch.add(columns, rows, alpha=width).reshape(-1), minlength=width * width)
    return counts.reshape(width, width)[:num_classes]


def _with_spare(
    labels: Integer[Tensor, "*spatial"], num_classes: int, ignore_index: int
) -> Int32[Tensor, "*spatial"]:
    """Return the classes, and ``num_classes`` for whatever is none of them."""
    # Half the bytes are half the time; clamping comes first, so that nothing wraps.
    small = labels.clamp(max=min(num_classes, torch.iinfo(labels.dtype).max)).to(torch.int32)
    if small.numel() and bool(small.amin() < 0):
        small = small.where(small >= 0, num_classes)
    if 0 <= ignore_index < num_classes:
        small = small.where(small != ignore_index, num_classes)
    return small


def class_maps(
    prediction: Segmentation, truth: Segmentation, num_classes: int, ignore_index: int
) -> tuple[Integer[Tensor, "*spatial"], Integer[Tensor, "*spatial"]]:
    """Return the predicted and the true class map of an image, on one device.

    Raises:
        ConfigError: If one of them has none.
        DataError: If a prediction holds what is no class and is not ``ignore_index``.
    """
    if prediction.class_map is None or truth.class_map is None:
        raise ConfigError(
            f"{truth.source or 'an image'} has no class map to score; instances are scored by "
            "LabelMapScores and CocoAveragePrecision"
        )
    true = truth.class_map
    predicted = prediction.class_map.to(true.device)
    if predicted.numel():
        low, high = (int(value) for value in predicted.aminmax())
        if low < 0 or high >= num_classes:
            _check_classes(predicted, num_classes, ignore_index, truth.source or "an image")
    return predicted, true


def scored_pixels(
    true: Integer[Tensor, "*spatial"], num_classes: int, ignore_index: int
) -> Bool[np.ndarray, "*spatial"]:
    """Return where the truth is one of the classes."""
    scored: npt.NDArray[np.bool_] = (
        ((true != ignore_index) & (true >= 0) & (true < num_classes)).cpu().numpy()
    )
    return scored


def _check_classes(
    predicted: Integer[Tensor, "*spatial"], num_classes: int, ignore_index: int, name: str
) -> None:
    wrong = (predicted != ignore_index) & ((predicted < 0) | (predicted >= num_classes))
    if wrong.any():
        raise DataError(
            f"the prediction for {name} holds class {int(predicted[wrong][0])}, "
            f"but there are {num_classes} classes (0..{num_classes - 1}); "
            "set num_classes to that of the model"
        )


def is_background(class_name: str) -> bool:
    """Return whether a class is what is left of an image, by its name.

    Example:
        >>> is_background("_background_"), is_background("sky")
        (True, False)
    """
    return class_name.lower().strip("_") in ("background", "bg")


def names_of_classes(num_classes: int, class_names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a name for each class, its number where none is given.

    Raises:
        ConfigError: If there are more or fewer names than classes.
    """
    if class_names and len(class_names) != num_classes:
        raise ConfigError(f"{len(class_names)} class names were given for num_classes={num_classes}")
    return tuple(class_names) or tuple(str(index) for index in range(num_classes))


def scores_by_class(
    name: str, class_names: Sequence[str], values: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Return ``name/<class>`` of each class."""
    return {f"{name}/{label}": float(value) for label, value in zip(class_names, values, strict=True)}


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
        self.num_classes = num_classes
        self.class_names = names_of_classes(num_classes, class_names)
        self.ignore_index = ignore_index
        self.absent_as_zero = absent_as_zero
        self.per_class = per_class
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts = torch.zeros((self.num_classes, self.num_classes + 1), dtype=torch.int64)

    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""
        predicted, true = class_maps(prediction, truth, self.num_classes, self.ignore_index)
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
        right, true = counts.diagonal(), counts.sum(axis=1)
        columns = _columns(counts)
        iou, dice = columns["IoU"], columns["Dice"]
        results = {
            "acc": float(ratio(right.sum(), true.sum())),
            "macc": self._mean(columns["recall"]),
            "mIoU": self._mean(iou),
            "fwIoU": float(ratio((true * np.nan_to_num(iou)).sum(), true.sum())),
            "mDice": self._mean(dice),
        }
        if self.num_classes > 1 and is_background(self.class_names[0]):
            results["mDice_foreground"] = self._mean(dice[1:])
        if self.per_class:
            results |= scores_by_class("IoU", self.class_names, iou)
            results |= scores_by_class("Dice", self.class_names, dice)
        return results

    def class_columns(self) -> dict[str, Float[np.ndarray, " classes"]]:
        """Return the scores of each class, and its share of the pixels that are scored."""
        return _columns(self._gathered())

    def _mean(self, values: npt.NDArray[np.float64]) -> float:
        """Return the mean over the classes that appear."""
        if self.absent_as_zero:
            return float(np.nan_to_num(values).mean())
        # A class that is predicted but never true has IoU 0 and counts; its recall is not defined.
        return defined_mean(values)


def _columns(counts: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the scores of each class from counts by true and predicted class, abstentions last."""
    right = counts.diagonal()
    true, predicted = counts.sum(axis=1), counts[:, :-1].sum(axis=0)
    return {
        "IoU": ratio(right, true + predicted - right),
        "Dice": ratio(2 * right, true + predicted),
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "share": ratio(true, true.sum()),
    }

"""What every metric offers, and how its parts on several processes come together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pixvox.distributed.world import gather_objects
from pixvox.errors import DataError
from pixvox.structures import Instances, Segmentation

Item = TypeVar("Item")


class Metric(ABC):
    """Scores predictions against truths, image by image, in the original frame.

    Under ``torch.distributed`` every process updates its own metric with its own images and all processes
    call ``compute`` together. Each image must be given to one process only: use a sampler that does not pad.
    """

    def update(self, predictions: Sequence[Segmentation], truths: Sequence[Segmentation]) -> None:
        """Add images; ``predictions[i]`` belongs to ``truths[i]``.

        Raises:
            DataError: If the two lists, or the frames of a pair, have different sizes.
        """
        if len(predictions) != len(truths):
            raise DataError(
                f"{len(predictions)} predictions were given for {len(truths)} truths; "
                "every image needs both, with empty instances where nothing was found"
            )
        for prediction, truth in zip(predictions, truths, strict=True):
            if prediction.size != truth.size:
                raise DataError(
                    f"prediction of size {prediction.size} and truth of size {truth.size} "
                    f"({truth.source or 'unnamed image'}) are not in one frame; "
                    "post-process with the image's geometry to score in its original frame"
                )
            self.update_one(prediction, truth)

    @abstractmethod
    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the scores of all images so far, by name; NaN where a score is not defined."""

    def class_columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return what a table of classes shows, one value per class by name of the column; nothing by default.

        Like ``compute`` it is called by all processes together.
        """
        return {}

    @abstractmethod
    def reset(self) -> None:
        """Forget all images."""


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all processes, one of each in turn: a collective that every rank joins.

    Samplers deal images out in turn, so this is the order of a single process, and equal scores rank alike.
    """
    parts = gather_objects(items)
    rounds = range(max(map(len, parts)))
    return [part[turn] for turn in rounds for part in parts if turn < len(part)]


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Divide, with NaN where there is nothing to divide by."""
    whole = np.asarray(whole, dtype=np.float64)
    result: npt.NDArray[np.float64] = np.full(np.broadcast_shapes(np.shape(part), whole.shape), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def defined_mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of what is not NaN; NaN when nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def finite_scores(instances: Instances, what: str) -> npt.NDArray[np.float64] | None:
    """Return the scores to rank by, None when there are none.

    Raises:
        DataError: If a score is NaN or infinite: evaluators take it for a perfect one.
    """
    if instances.scores is None:
        return None
    scores = instances.scores.double().numpy()
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(scores)} scores of the {what} are NaN or infinite; "
            "the network has diverged, or its post-processing divides by zero"
        )
    return scores

"""How far the surfaces of predicted and true classes are apart, in physical units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Integer

from pixvox.errors import ConfigError
from pixvox.metrics.metric import Metric, defined_mean, gather, ratio
from pixvox.metrics.semantic import (
    class_maps,
    is_background,
    names_of_classes,
    scored_pixels,
    scores_by_class,
)
from pixvox.structures import IGNORE_INDEX, Segmentation

_DISTANCES = ("HD95", "ASSD")


class SurfaceDistances(Metric):
    """Hausdorff distance, average symmetric surface distance and surface Dice of each class, means over images.

    The surface of a class are its pixels or voxels that share a face with another class or with the outside of the
    image; ignored ones make no surface. Of each of them the distance to the nearest one of the other surface is
    taken, in the unit of the spacing, or in pixels where it is unknown.

    - ``HD95``: the 95th percentile of the distances, of the two directions the larger.
    - ``ASSD``: the mean of the distances of both directions.
    - ``NSD``: the share of both surfaces that is at most ``tolerance`` from the other ("Clinically Applicable
      Segmentation of Head and Neck Anatomy", Nikolov et al., 2018, https://arxiv.org/abs/1809.04430), with the number
      of voxels as the area of a surface.
    - ``surface_found``: of the classes that an image shows or is said to show, the share that is in both. A class
      that is in one alone has no distances; its ``NSD`` is 0.

    A score of a class is the mean over the images that have one, the score without a class the mean over classes.
    A background class at index 0 is left out.

    Args:
        num_classes: Number of classes.
        class_names: Names by index; class 0 is left out when it is called background.
        ignore_index: Label of true pixels that are not scored; values outside the classes are not either.
        tolerance: Distance in the unit of the spacing up to which a surface is right, at least 0.
        per_class: Add ``HD95/<class>``, ``ASSD/<class>`` and ``NSD/<class>``.

    Example:
        >>> import torch
        >>> truth = torch.zeros(1, 20, dtype=torch.int64)
        >>> truth[0, 5:12] = 1
        >>> metric = SurfaceDistances(2, ("background", "cell"), tolerance=1.0)
        >>> metric.update([Segmentation(class_map=truth.roll(2, 1))], [Segmentation(class_map=truth)])
        >>> {name: round(value, 3) for name, value in metric.compute().items() if "/" not in name}
        {'HD95': 1.7, 'ASSD': 0.429, 'NSD': 0.857, 'surface_found': 1.0}
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] = (),
        ignore_index: int = IGNORE_INDEX,
        tolerance: float = 1.0,
        per_class: bool = True,
    ) -> None:
        if not tolerance >= 0:
            raise ConfigError(
                f"tolerance is a distance from 0 on, in the unit of the spacing; got {tolerance}"
            )
        self.num_classes = num_classes
        self.class_names = names_of_classes(num_classes, class_names)
        self.ignore_index = ignore_index
        self.tolerance = tolerance
        self.per_class = per_class
        self.first = int(num_classes > 1 and is_background(self.class_names[0]))
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[Float[np.ndarray, "scores classes"]] = []

    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""
        maps = class_maps(prediction, truth, self.num_classes, self.ignore_index)
        known = scored_pixels(maps[1], self.num_classes, self.ignore_index)
        geometry = truth.geometry or prediction.geometry
        spacing = (geometry.spacing if geometry is not None else None) or (1.0,) * known.ndim
        found_surface, true_surface = (
            _by_class(labels, surface(labels, known), spacing)
            for labels in (each.cpu().numpy() for each in maps)
        )
        scores = np.full((3, self.num_classes), np.nan)
        for label in range(self.first, self.num_classes):
            if label in found_surface and label in true_surface:
                scores[:, label] = surface_scores(found_surface[label], true_surface[label], self.tolerance)
            elif label in found_surface or label in true_surface:
                scores[2, label] = 0.0
        self._images.append(scores)

    def class_columns(self) -> dict[str, Float[np.ndarray, " classes"]]:
        """Return the means over images of each class."""
        return self._means(self._stacked())

    def compute(self) -> dict[str, float]:
        """Return the scores of all images so far."""
        images = self._stacked()
        columns = self._means(images)
        results = {name: defined_mean(values) for name, values in columns.items()}
        both, either = (~np.isnan(images[:, row]) for row in (0, 2))
        results["surface_found"] = float(ratio(both.sum(), either.sum()))
        if self.per_class:
            for name, values in columns.items():
                results |= scores_by_class(name, self.class_names[self.first :], values[self.first :])
        return results

    def _stacked(self) -> Float[np.ndarray, "images scores classes"]:
        empty = np.zeros((0, 3, self.num_classes))
        return np.stack(images) if (images := gather(self._images)) else empty

    def _means(self, images: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        means = ratio(np.nansum(images, axis=0), (~np.isnan(images)).sum(axis=0))
        return dict(zip((*_DISTANCES, "NSD"), means, strict=True))


def surface_scores(
    first: Float[np.ndarray, "n axes"], second: Float[np.ndarray, "m axes"], tolerance: float
) -> tuple[float, float, float]:
    """Return HD95, ASSD and NSD of two surfaces that are given as points.

    Args:
        first: Coordinates, at least one point.
        second: Coordinates in the same unit, at least one point.
        tolerance: Distance up to which a point is right.
    """
    from scipy.spatial import KDTree

    # Each tree answers once: splitting in the middle builds it faster than at the median.
    trees = [KDTree(points, leafsize=32, balanced_tree=False) for points in (second, first)]
    there, back = trees[0].query(first)[0], trees[1].query(second)[0]
    distances = np.concatenate([there, back])
    hausdorff = max(float(np.percentile(part, 95)) for part in (there, back))
    # Distances are sums of rounded squares: a surface at exactly the tolerance is still right.
    near = distances <= tolerance * (1 + 1e-9)
    return hausdorff, float(distances.mean()), float(near.mean())


def surface(
    labels: Integer[np.ndarray, "*spatial"], known: Bool[np.ndarray, "*spatial"]
) -> Bool[np.ndarray, "*spatial"]:
    """Return the known pixels that share a face with another known class or with the outside of the image.

    Example:
        >>> surface(np.array([0, 0, 0, 1, 1, 1, 1]), np.ones(7, dtype=bool)).astype(int).tolist()
        [1, 0, 1, 1, 0, 0, 1]
    """
    result: npt.NDArray[np.bool_] = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        values, seen, marks = (np.moveaxis(array, axis, 0) for array in (labels, known, result))
        steps = (values[1:] != values[:-1]) & seen[1:] & seen[:-1]
        marks[1:] |= steps
        marks[:-1] |= steps
        marks[0] = marks[-1] = True
    result &= known
    return result


def _by_class(
    labels: Int[np.ndarray, "*spatial"], marks: Bool[np.ndarray, "*spatial"], spacing: Sequence[float]
) -> dict[int, npt.NDArray[np.float64]]:
    """Return the physical coordinates of marked pixels, by class."""
    places = np.argwhere(marks)
    classes = labels[marks]
    order = np.argsort(classes, kind="stable")
    values, starts = np.unique(classes[order], return_index=True)
    parts = np.split(places[order] * np.asarray(spacing, dtype=np.float64), starts[1:])
    return dict(zip(values.tolist(), parts, strict=True))

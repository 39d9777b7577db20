"""Metrics by name, the sets that suit a task, and the rule that says which epoch is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from pixvox.errors import ConfigError
from pixvox.metrics.boundary_iou import BoundaryIoU
from pixvox.metrics.class_table import ClassTable
from pixvox.metrics.coco import CocoAveragePrecision
from pixvox.metrics.matching import COCO_THRESHOLDS, LabelMapScores
from pixvox.metrics.metric import Metric
from pixvox.metrics.precision_recall import PrecisionRecallCurve
from pixvox.metrics.semantic import SemanticScores
from pixvox.metrics.surface_distances import SurfaceDistances
from pixvox.metrics.volume_scores import VolumeScores
from pixvox.structures import Segmentation

if TYPE_CHECKING:
    from pixvox.data.metadata import Metadata


def parse_best_by(rule: str) -> tuple[str, str]:
    """Split a rule such as ``"max:mask_AP"`` or ``"min:val_loss"`` into mode and name of the score.

    Raises:
        ConfigError: If the rule has another form.

    Example:
        >>> parse_best_by("max:mIoU")
        ('max', 'mIoU')
    """
    mode, _, name = rule.partition(":")
    if mode not in ("max", "min") or not name:
        raise ConfigError(f"best_by must be 'max:<score>' or 'min:<score>', such as 'max:AP50'; got {rule!r}")
    return mode, name


class Metrics:
    """Several metrics that see the same images and answer as one.

    Args:
        metrics: Metrics by name; the names of their scores must differ.
        best_by: ``"max:<score>"`` or ``"min:<score>"``: what tells the best epoch.

    Example:
        >>> import torch
        >>> metrics = Metrics({"semantic": SemanticScores(2, per_class=False)}, best_by="max:mIoU")
        >>> truth = Segmentation(class_map=torch.tensor([[0, 1]]))
        >>> metrics.update([truth], [truth])
        >>> metrics.compute()["mIoU"], metrics.is_better(0.9, than=0.8)
        (1.0, True)
    """

    def __init__(self, metrics: Mapping[str, Metric], best_by: str) -> None:
        self.metrics = dict(metrics)
        self.best_by = best_by
        self.mode, self.monitor = parse_best_by(best_by)

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[name]

    def update(self, predictions: Sequence[Segmentation], truths: Sequence[Segmentation]) -> None:
        """Add images to every metric."""
        for metric in self.metrics.values():
            metric.update(predictions, truths)

    def compute(self) -> dict[str, float]:
        """Return the scores of all metrics by name; every process of a distributed run must call it."""
        results: dict[str, float] = {}
        for name, metric in self.metrics.items():
            scores = metric.compute()
            if twice := sorted(results.keys() & scores.keys()):
                raise ConfigError(f"metric {name!r} gives scores that another gives too: {', '.join(twice)}")
            results |= scores
        return results

    def reset(self) -> None:
        """Forget all images."""
        for metric in self.metrics.values():
            metric.reset()

    def is_better(self, score: float, than: float) -> bool:
        """Return whether a score is better than another by the rule; NaN is worse than anything."""
        if score != score:
            return False
        return than != than or (score > than if self.mode == "max" else score < than)

    def curves(self) -> list[PrecisionRecallCurve]:
        """Return precision-recall curves, empty for semantic tasks; every process must call it."""
        for metric in self.metrics.values():
            if isinstance(metric, CocoAveragePrecision | LabelMapScores):
                return metric.curves()
        return []

    def confusion_matrix(self) -> Int[np.ndarray, "classes classes"] | None:
        """Return counts of class maps by true and predicted class, None for other tasks; every process must call it."""
        counting = (metric for metric in self.metrics.values() if isinstance(metric, SemanticScores))
        return next((metric.confusion_matrix for metric in counting), None)

    def class_table(self) -> ClassTable | None:
        """Return the scores of each class of class maps, None for other tasks; every process must call it."""
        columns = {
            name: values
            for metric in self.metrics.values()
            for name, values in metric.class_columns().items()
        }
        names = next(
            (tuple(m.class_names) for m in self.metrics.values() if isinstance(m, SemanticScores)), None
        )
        return ClassTable(names, columns) if columns and names is not None else None


def default_metrics(
    metadata: Metadata,
    best_by: str | None = None,
    score_threshold: float | None = None,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    max_detections: int | None = None,
    per_class: bool | None = None,
    iou_types: Sequence[str] = ("bbox", "segm"),
    boundary_iou: bool = False,
    surface_distances: bool = False,
    tolerance: float = 1.0,
    field: bool = False,
) -> Metrics:
    """Return the metrics that suit a dataset, by its task and dimensions.

    Semantic: ``SemanticScores``, and by choice ``BoundaryIoU`` and ``SurfaceDistances``. Panoptic:
    ``LabelMapScores``, of things and of stuff. Instances: ``LabelMapScores`` in 2-D and 3-D, and in 2-D
    ``CocoAveragePrecision`` as well; of boxes alone the latter.

    Args:
        metadata: Tells task, dimensions, classes and ignore index.
        best_by: Rule of the best epoch; None for ``max:mIoU`` (semantic), ``max:PQ`` (panoptic) or ``max:AP``
            (instances).
        score_threshold: Score from which a prediction is painted into the label map, in [0, 1]; None is 0.5.
        thresholds: IoU thresholds of matched scores.
        max_detections: Detections per image and class of the dense COCO scores; None for all.
        per_class: Add the scores of each class: ``IoU/<class>`` and ``Dice/<class>``, ``mask_AP/<class>`` and
            ``box_AP/<class>``; None adds those of class maps alone.
        iou_types: What instances are scored by; ``["bbox"]`` for models that predict no masks.
        boundary_iou: Add the IoU of the boundaries of class maps.
        surface_distances: Add HD95, ASSD and surface Dice of class maps, in the unit of the spacing.
        tolerance: Distance up to which the surface Dice takes a surface for right, and centroids are matched, in that
            unit.
        field: Add ``VolumeScores`` of instances, each name with ``field_`` before it.

    Raises:
        ConfigError: For a task without metrics, boxes of volumes alone, or scores of another task.
    """
    metrics: dict[str, Metric]
    if field and metadata.task != "instance":
        raise ConfigError(
            f"metrics.field scores instances, but the task is {metadata.task!r}; leave it false"
        )
    if metadata.task == "semantic":
        return _class_map_metrics(
            metadata, best_by, per_class is not False, boundary_iou, tolerance if surface_distances else None
        )
    if boundary_iou or surface_distances:
        raise ConfigError(
            "metrics.boundary_iou and metrics.surface_distances are scores of class maps, but the task is "
            f"{metadata.task!r}; leave them false"
        )
    if metadata.task == "panoptic":
        # Segments do not overlap and are all shown: no threshold, and no ranking but the segments' own.
        panoptic = LabelMapScores(
            thresholds, 0.0, num_classes=len(metadata.class_names), is_thing=metadata.is_thing
        )
        return Metrics({"label_map": panoptic}, best_by or "max:PQ")
    if metadata.task != "instance":
        raise ConfigError(
            f"no metrics are known for task {metadata.task!r}; it is 'instance', 'semantic' or 'panoptic'"
        )
    if "segm" not in iou_types:
        if field:
            raise ConfigError(
                "metrics.field scores masks; leave it false for models that predict boxes alone"
            )
        return _box_metrics(metadata, iou_types, best_by, max_detections, per_class is True)
    shown_from = 0.5 if score_threshold is None else score_threshold
    metrics = {"label_map": LabelMapScores(thresholds, shown_from, num_classes=len(metadata.class_names))}
    if field:
        metrics["field"] = VolumeScores(shown_from, distance=tolerance, prefix="field_")
    if metadata.spatial_dims == 2:
        metrics = {
            "coco": CocoAveragePrecision(iou_types, max_detections, per_class is True, metadata.class_names)
        } | metrics
    return Metrics(metrics, best_by or "max:AP")


def _class_map_metrics(
    metadata: Metadata, best_by: str | None, per_class: bool, boundary_iou: bool, tolerance: float | None
) -> Metrics:
    """Return the metrics of class maps; those of surfaces where a tolerance is given."""
    classes = (len(metadata.class_names), metadata.class_names, metadata.ignore_index)
    metrics: dict[str, Metric] = {"semantic": SemanticScores(*classes, per_class=per_class)}
    if boundary_iou:
        metrics["boundary"] = BoundaryIoU(*classes, per_class=per_class)
    if tolerance is not None:
        metrics["surface"] = SurfaceDistances(*classes, tolerance=tolerance, per_class=per_class)
    return Metrics(metrics, best_by or "max:mIoU")


def _box_metrics(
    metadata: Metadata,
    iou_types: Sequence[str],
    best_by: str | None,
    max_detections: int | None,
    per_class: bool,
) -> Metrics:
    """Return the metrics of models that predict no masks."""
    if metadata.spatial_dims != 2:
        raise ConfigError(
            "boxes of volumes have no scores of their own yet; train with masks, as with head.masks=true, or leave "
            "metrics.iou_types as it is"
        )
    coco = CocoAveragePrecision(iou_types, max_detections, per_class, metadata.class_names)
    return Metrics({"coco": coco}, best_by or "max:box_AP")

"""COCO's average precision of boxes and masks, by faster-coco-eval from our own run-length encodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from pixvox.errors import ConfigError, DataError
from pixvox.metrics.metric import Metric, defined_mean, finite_scores, gather
from pixvox.metrics.precision_recall import RECALLS, PrecisionRecallCurve
from pixvox.structures import Instances, Segmentation

PREFIXES = {"bbox": "box", "segm": "mask"}
AREAS = ("all", "s", "m", "l")
COCO_CAPS = (1, 10, 100)


@dataclass(frozen=True)
class _ImageRecord:
    """Truth and predictions of one image as COCO dictionaries without ids."""

    size: tuple[int, ...]
    truths: list[dict[str, Any]]
    predictions: list[dict[str, Any]]


class CocoAveragePrecision(Metric):
    """Average precision and recall as COCO defines them, for boxes and masks of 2-D images.

    "Microsoft COCO: Common Objects in Context" (Lin et al., 2014, https://arxiv.org/abs/1405.0312) and its
    evaluation code (https://cocodataset.org/#detection-eval). The twelve numbers of COCO look at the 100 best
    detections per image and class: ``mask_AP``, ``mask_AP50``, ``mask_AP75``, ``mask_APs``, ``mask_APm``,
    ``mask_APl``, ``mask_AR1``, ``mask_AR10``, ``mask_AR100``, ``mask_ARs``, ``mask_ARm``, ``mask_ARl``, and
    the same with ``box_``. That starves images with thousands of objects, so ``AP_dense``, ``AP50_dense``,
    ``AP75_dense`` and ``AR_dense`` look at ``max_detections``, by default at all.

    Small, medium and large are COCO's 32 and 96 pixels squared, by mask area where there are masks, and by
    box area otherwise. Ignored instances count as crowds. A score is NaN where COCO prints -1: no truth.

    Args:
        iou_types: ``"bbox"``, ``"segm"`` or both.
        max_detections: Best detections per image and class that the dense scores look at; None for all.
        per_class: Add ``mask_AP/<class>`` (COCO's AP by class) to the results.
        class_names: Names by class index, for ``per_class``.

    Raises:
        ConfigError: For volumes, or for masks that are missing though ``"segm"`` is asked for.
    """

    def __init__(
        self,
        iou_types: Sequence[str] = ("bbox", "segm"),
        max_detections: int | None = None,
        per_class: bool = False,
        class_names: Sequence[str] = (),
    ) -> None:
        if not iou_types or set(iou_types) - set(PREFIXES):
            raise ConfigError(f"iou_types must be 'bbox', 'segm' or both, got {list(iou_types)}")
        if max_detections is not None and max_detections < 1:
            raise ConfigError(f"max_detections must be at least 1, or null for all; got {max_detections}")
        self.iou_types = tuple(iou_types)
        self.max_detections = max_detections
        self.per_class = per_class
        self.class_names = tuple(class_names)
        self._images: list[_ImageRecord] = []

    def reset(self) -> None:
        """Forget all images."""
        self._images = []

    def update_one(self, prediction: Segmentation, truth: Segmentation) -> None:
        """Add one image."""
        if truth.spatial_dims != 2:
            raise ConfigError(
                f"COCO's scores are for images, got a volume of size {truth.size}; "
                "LabelMapScores gives AP, matched AP and PQ of volumes"
            )
        name = truth.source or "an image"
        self._images.append(
            _ImageRecord(
                truth.size,
                self._annotations(truth.instances, f"truth of {name}"),
                self._annotations(prediction.instances, f"prediction for {name}", scored=True),
            )
        )

    def _annotations(
        self, instances: Instances | None, what: str, scored: bool = False
    ) -> list[dict[str, Any]]:
        """Turn instances into COCO dictionaries."""
        if instances is None:
            raise ConfigError(f"the {what} holds no instances; class maps are scored by SemanticScores")
        if scored and instances.scores is None and len(instances):
            raise DataError(f"the {what} has no scores to rank by; set Instances.scores")
        instances = instances.to("cpu")
        if instances.masks is None and "segm" in self.iou_types:
            raise ConfigError(f"the {what} holds boxes without masks; score it with metrics.iou_types=[bbox]")
        corners = instances.boxes.double().numpy()
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        rles = instances.masks.rle() if instances.masks is not None and "segm" in self.iou_types else None
        areas = boxes[:, 2] * boxes[:, 3] if instances.masks is None else instances.masks.areas().numpy()
        scores = finite_scores(instances, what) if scored else None
        annotations = []
        for i in range(len(instances)):
            annotation = {
                "category_id": int(instances.labels[i]) + 1,
                "bbox": boxes[i].tolist(),
                "area": float(areas[i]),
                "iscrowd": int(instances.ignore[i]),
            }
            if rles is not None:
                annotation["segmentation"] = rles[i]
            if scores is not None:
                annotation |= {"score": float(scores[i]), "iscrowd": 0}
            annotations.append(annotation)
        return annotations

    def compute(self) -> dict[str, float]:
        """Return the scores of all images so far."""
        images = gather(self._images)
        results: dict[str, float] = {}
        for iou_type in self.iou_types:
            results |= self._summarize(PREFIXES[iou_type], *self._evaluate(images, iou_type))
        return results

    def _summarize(
        self, prefix: str, precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]
    ) -> dict[str, float]:
        """Read COCO's numbers off arrays by threshold, recall (precision only), class, area and cap."""
        coco, dense = 2, 3
        results = {
            "AP": precision[..., 0, coco],
            "AP50": precision[0, ..., 0, coco],
            "AP75": precision[5, ..., 0, coco],
        }
        results |= {f"AP{AREAS[area]}": precision[..., area, coco] for area in (1, 2, 3)}
        results |= {f"AR{cap}": recall[..., 0, i] for i, cap in enumerate(COCO_CAPS)}
        results |= {f"AR{AREAS[area]}": recall[..., area, coco] for area in (1, 2, 3)}
        results |= {
            "AP_dense": precision[..., 0, dense],
            "AP50_dense": precision[0, ..., 0, dense],
            "AP75_dense": precision[5, ..., 0, dense],
            "AR_dense": recall[..., 0, dense],
        }
        if self.per_class:
            for label in range(precision.shape[2]):
                name = self.class_names[label] if label < len(self.class_names) else str(label)
                results[f"AP/{name}"] = precision[:, :, label, 0, coco]
        return {f"{prefix}_{name}": defined_mean(values) for name, values in results.items()}

    def curves(self) -> list[PrecisionRecallCurve]:
        """Return curves at COCO's ten IoU thresholds with ``max_detections``, of masks or else of boxes."""
        iou_type = "segm" if "segm" in self.iou_types else "bbox"
        precision, _ = self._evaluate(gather(self._images), iou_type)
        precision = precision[:, :, :, 0, 3]
        precision = precision[:, :, ~np.isnan(precision[0, 0])]
        if precision.shape[2] == 0:
            return []
        return [
            PrecisionRecallCurve(0.5 + 0.05 * i, RECALLS, row.mean(axis=-1), PREFIXES[iou_type])
            for i, row in enumerate(precision)
        ]

    def _evaluate(
        self, images: list[_ImageRecord], iou_type: str
    ) -> tuple[Float[np.ndarray, "10 101 classes 4 4"], Float[np.ndarray, "10 classes 4 4"]]:
        """Run the evaluator; return precision and recall with NaN where nothing is defined."""
        truths = [annotation["category_id"] for image in images for annotation in image.truths]
        predictions = [annotation["category_id"] for image in images for annotation in image.predictions]
        num_classes = max([len(self.class_names), *truths, *predictions, 1])
        if not truths:
            return np.full((10, 101, num_classes, 4, 4), np.nan), np.full((10, num_classes, 4, 4), np.nan)
        from faster_coco_eval.core.coco import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster

        evaluator = COCOeval_faster(
            COCO(_dataset(images, "truths", iou_type, num_classes)),
            COCO(_dataset(images, "predictions", iou_type, num_classes)),
            iou_type,
            print_function=lambda *_: None,
        )
        most = max(len(image.predictions) for image in images)
        dense = max(1, most if self.max_detections is None else self.max_detections)
        caps = sorted({*COCO_CAPS, dense})
        evaluator.params.maxDets = caps
        evaluator.evaluate()
        evaluator.accumulate()
        shape = (10, 101, num_classes, 4, len(caps))
        picked = [caps.index(cap) for cap in (*COCO_CAPS, dense)]
        precision = np.asarray(evaluator.eval["precision"]).reshape(shape)[..., picked]
        recall = np.asarray(evaluator.eval["recall"]).reshape(shape[:1] + shape[2:])[..., picked]
        return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def _dataset(images: list[_ImageRecord], which: str, iou_type: str, num_classes: int) -> dict[str, Any]:
    """Number everything from 1: an annotation of id 0 would count as not found."""
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, 1):
        for annotation in getattr(image, which):
            numbered = annotation | {"id": len(annotations) + 1, "image_id": image_id}
            if which == "predictions" and iou_type == "bbox":
                numbered["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            annotations.append(numbered)
    return {
        "images": [
            {"id": i, "height": image.size[0], "width": image.size[1]} for i, image in enumerate(images, 1)
        ],
        "categories": [{"id": i, "name": str(i)} for i in range(1, num_classes + 1)],
        "annotations": annotations,
    }

import contextlib
import io
import math

import numpy as np
import pytest
import torch

from pixvox.errors import ConfigError, DataError
from pixvox.metrics.coco import CocoAveragePrecision
from pixvox.metrics.matching import LabelMapScores
from pixvox.structures import Instances, Masks, Segmentation

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def random_image(generator, num_classes, size=(150, 131), crowds=True, most=14):
    """Truth of rectangles of all three area ranges, and predictions shifted, doubled and spurious."""
    masks, labels, ignore, found, found_labels = [], [], [], [], []
    for _ in range(int(generator.integers(0, most))):
        side = generator.integers(3, 120, 2)
        corner = [int(generator.integers(0, max(1, length - 3))) for length in size]
        mask = np.zeros(size, dtype=bool)
        mask[corner[0] : corner[0] + side[0], corner[1] : corner[1] + side[1]] = True
        masks.append(mask)
        labels.append(int(generator.integers(num_classes)))
        ignore.append(bool(crowds and generator.random() < 0.2))
        for _ in range(int(generator.integers(0, 3))):
            found.append(np.roll(mask, generator.integers(-4, 5, 2), (0, 1)))
            found_labels.append(
                labels[-1] if generator.random() < 0.8 else int(generator.integers(num_classes))
            )
    shape = (0, *size)
    truth = Instances(
        masks=torch.from_numpy(np.stack(masks) if masks else np.zeros(shape, dtype=bool)),
        labels=torch.tensor(labels, dtype=torch.int64),
        ignore=torch.tensor(ignore, dtype=torch.bool),
    )
    scores = torch.from_numpy(generator.integers(1, 60, len(found)) / 60).float()  # with ties
    prediction = Instances(
        masks=torch.from_numpy(np.stack(found) if found else np.zeros(shape, dtype=bool)),
        labels=torch.tensor(found_labels, dtype=torch.int64),
        scores=scores,
    )
    return Segmentation(prediction), Segmentation(truth)


def random_images(seed, num_images, num_classes, **options):
    generator = np.random.default_rng(seed)
    pairs = [random_image(generator, num_classes, **options) for _ in range(num_images)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def pycocotools_stats(predictions, truths, iou_type, num_classes, caps=(1, 10, 100)):
    from pycocotools import mask as mask_tools
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(results, scored):
        rows = []
        for image_id, result in enumerate(results, 1):
            instances = result.instances
            for i in range(len(instances)):
                x0, y0, x1, y1 = instances.boxes[i].tolist()
                dense = np.asfortranarray(instances.masks[[i]].dense()[0].numpy().astype(np.uint8))
                mask_area = float(dense.sum())
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": image_id,
                        "category_id": int(instances.labels[i]) + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "segmentation": mask_tools.encode(dense),
                        "area": (x1 - x0) * (y1 - y0) if scored and iou_type == "bbox" else mask_area,
                        "iscrowd": 0 if scored else int(instances.ignore[i]),
                    }
                    | ({"score": float(instances.scores[i])} if scored else {})
                )
        return rows

    def dataset(rows):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": t.size[0], "width": t.size[1]} for i, t in enumerate(truths, 1)],
            "categories": [{"id": i + 1, "name": str(i)} for i in range(num_classes)],
            "annotations": rows,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(
            dataset(annotations(truths, False)), dataset(annotations(predictions, True)), iou_type
        )
        evaluator.params.maxDets = list(caps)
        evaluator.evaluate()
        evaluator.accumulate()
        if len(caps) > 3:
            precision = evaluator.eval["precision"][..., 0, -1]
            return precision[precision > -1].mean()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize(
    ("seed", "num_images", "num_classes", "options"),
    [
        (0, 6, 1, {}),
        (1, 8, 7, {}),
        (2, 5, 60, {"crowds": False}),
        (3, 3, 2, {"size": (40, 33)}),
        (4, 2, 1, {"most": 80}),
    ],
)
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_twelve_numbers_equal_pycocotools(seed, num_images, num_classes, options, iou_type):
    predictions, truths = random_images(seed, num_images, num_classes, **options)
    expected = pycocotools_stats(predictions, truths, iou_type, num_classes)
    metric = CocoAveragePrecision(iou_types=[iou_type])
    metric.update(predictions, truths)
    results = metric.compute()
    prefix = {"segm": "mask", "bbox": "box"}[iou_type]
    ours = np.array([results[f"{prefix}_{name}"] for name in COCO_NAMES])
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1.0), expected, rtol=0, atol=1e-9)
    assert expected[0] > 0.05


def test_dense_scores_have_no_hidden_cap():
    """130 perfect detections in one image: COCO sees 100, the dense scores all or as many as asked."""
    label_map = torch.zeros(27, 41, dtype=torch.int32)
    label_map[::2, ::2] = torch.arange(1, 14 * 21 + 1).reshape(14, 21)
    truth = Segmentation(Instances(masks=label_map)[:130])
    found = Instances(masks=label_map)[:130]
    found.scores = torch.linspace(0.9, 0.1, 130)
    results = {}
    for cap in (None, 120, 50):
        metric = CocoAveragePrecision(max_detections=cap)
        metric.update([Segmentation(found)], [truth])
        results[cap] = metric.compute()
    assert results[None]["mask_AP_dense"] == results[None]["box_AP_dense"] == 1.0
    assert results[None]["mask_AR_dense"] == 1.0
    assert results[None]["mask_AP"] == results[50]["mask_AP"] == pytest.approx(77 / 101)
    assert results[120]["mask_AR_dense"] == pytest.approx(120 / 130)
    assert results[50]["mask_AR_dense"] == pytest.approx(50 / 130)
    assert pycocotools_stats([Segmentation(found)], [truth], "segm", 1, (1, 10, 100, 120)) == pytest.approx(
        results[120]["mask_AP_dense"], abs=1e-12
    )


def test_empty_predictions_images_and_truths_are_safe():
    size = (9, 14)
    nothing = Segmentation(Instances.empty(size, scores=True))
    truth = Segmentation(Instances(masks=torch.ones(1, *size, dtype=torch.bool)))
    metric = CocoAveragePrecision()
    metric.update([nothing, nothing], [truth, Segmentation(Instances.empty(size))])
    results = metric.compute()
    assert results["mask_AP"] == results["box_AP"] == results["mask_AR100"] == 0
    assert math.isnan(results["mask_APl"])  # COCO prints -1: no large truth
    metric.reset()
    metric.update([nothing], [Segmentation(Instances.empty(size))])
    assert all(math.isnan(value) for value in metric.compute().values())
    assert metric.curves() == []
    metric.reset()
    assert math.isnan(metric.compute()["mask_AP"])


def test_first_annotation_counts():
    """Ids are renumbered from 1: an annotation of id 0 would make a perfect prediction score 0 (fault 17)."""
    perfect = Instances(masks=torch.tensor([[1, 1, 0], [0, 0, 0]]), scores=torch.ones(1))
    metric = CocoAveragePrecision()
    metric.update([Segmentation(perfect)], [Segmentation(perfect)])
    assert metric.compute()["mask_AP"] == metric.compute()["box_AP"] == 1.0


def test_crowd_excuses_detections_in_it():
    """Fault 12: a detection inside a crowd is neither right nor wrong."""
    label_map = torch.tensor([[1, 1, 0, 2, 2, 2, 2]])
    truth = Instances(masks=label_map, ignore=torch.tensor([False, True]))
    found = Instances(masks=torch.tensor([[1, 1, 0, 2, 0, 0, 3]]), scores=torch.tensor([0.5, 0.9, 0.8]))
    metric = CocoAveragePrecision()
    metric.update([Segmentation(found)], [Segmentation(truth)])
    assert metric.compute()["mask_AP"] == 1.0
    truth.ignore[:] = False
    metric.reset()
    metric.update([Segmentation(found)], [Segmentation(truth)])
    assert metric.compute()["mask_AP50"] < 0.5


@pytest.mark.parametrize(("seed", "num_classes"), [(5, 1), (6, 4)])
def test_curves_and_classes_agree_with_the_means(seed, num_classes):
    predictions, truths = random_images(seed, 5, num_classes)
    names = [f"kind{i}" for i in range(num_classes)]
    metric = CocoAveragePrecision(per_class=True, class_names=names)
    metric.update(predictions, truths)
    results, curves = metric.compute(), metric.curves()
    assert [curve.iou_threshold for curve in curves] == pytest.approx(np.linspace(0.5, 0.95, 10))
    assert np.mean([curve.average_precision for curve in curves]) == pytest.approx(results["mask_AP_dense"])
    assert curves[0].average_precision == pytest.approx(results["mask_AP50_dense"])
    by_class = [results[f"mask_AP/{name}"] for name in names]
    assert np.nanmean(by_class) == pytest.approx(results["mask_AP"])


def test_ranked_ap_of_label_map_scores_equals_coco():
    predictions, truths = random_images(8, 7, 3)
    coco, ours = CocoAveragePrecision(["segm"]), LabelMapScores()
    coco.update(predictions, truths)
    ours.update(predictions, truths)
    expected, results = coco.compute(), ours.compute()
    for name in ("AP", "AP50", "AP75"):
        assert results[name] == pytest.approx(expected[f"mask_{name}_dense"], abs=1e-9)
    for curve, other in zip(coco.curves(), ours.curves(), strict=True):
        np.testing.assert_allclose(curve.precision, other.precision, atol=1e-9)


def test_wrong_inputs_are_named():
    size = (6, 7)
    boxes_only = Segmentation(
        Instances(boxes=torch.tensor([[0.0, 0, 3, 4]]), scores=torch.tensor([0.5]), size=size)
    )
    with pytest.raises(ConfigError, match="boxes without masks"):
        CocoAveragePrecision().update([boxes_only], [boxes_only])
    metric = CocoAveragePrecision(["bbox"])
    metric.update([boxes_only], [boxes_only])
    assert metric.compute()["box_AP"] == 1.0
    nan = Segmentation(
        Instances(masks=torch.ones(1, *size, dtype=torch.bool), scores=torch.tensor([math.nan]))
    )
    with pytest.raises(DataError, match=r"1 of 1 scores .* NaN"):
        CocoAveragePrecision().update([nan], [nan])
    unscored = Segmentation(Instances(masks=torch.ones(1, *size, dtype=torch.bool)))
    with pytest.raises(DataError, match="no scores"):
        CocoAveragePrecision().update([unscored], [unscored])
    volume = Segmentation(Instances.empty((2, 3, 4), scores=True))
    with pytest.raises(ConfigError, match="LabelMapScores"):
        CocoAveragePrecision().update([volume], [volume])
    with pytest.raises(DataError, match="not in one frame"):
        CocoAveragePrecision().update([Segmentation(Instances.empty((5, 6), scores=True))], [unscored])
    with pytest.raises(DataError, match="1 predictions were given for 2 truths"):
        CocoAveragePrecision().update([nan], [nan, nan])
    with pytest.raises(ConfigError, match="iou_types"):
        CocoAveragePrecision(["mask"])
    with pytest.raises(ConfigError, match="max_detections"):
        CocoAveragePrecision(max_detections=0)
    assert isinstance(unscored.instances.masks, Masks)

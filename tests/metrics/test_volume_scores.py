import math

import numpy as np
import pytest
import torch

from noisy_objects import noisy_label_maps
from pixvox.data.metadata import Metadata
from pixvox.errors import ConfigError
from pixvox.metrics.collection import default_metrics
from pixvox.metrics.contingency import ContingencyCounter
from pixvox.metrics.volume_scores import VolumeScores, volume_scores
from pixvox.structures import Geometry, Instances, Segmentation

SIZES = [(15, 22), (7, 9, 11)]


def segmentation(labels, spacing=None, **fields):
    instances = Instances(masks=torch.from_numpy(labels), **fields)
    return Segmentation(instances, geometry=Geometry.identity(labels.shape, spacing))


def table_of(predicted, true, **options):
    counter = ContingencyCounter(**options)
    counter.add(predicted, true)
    return counter.table()


@pytest.mark.parametrize("size", SIZES)
def test_segmentations_score_as_their_label_maps(size):
    spacing = (2.0, 0.5, 1.0)[-len(size) :]
    pairs = [noisy_label_maps(seed, size, 12) for seed in range(2)]
    metric = VolumeScores(distance=2.0, size_edges=(4,))
    metric.update([segmentation(p) for p, _ in pairs], [segmentation(t, spacing) for _, t in pairs])
    tables = [table_of(*pair, spacing=spacing) for pair in pairs]
    expected = volume_scores(tables, distance=2.0, size_edges=(4,))
    assert metric.compute() == pytest.approx(expected)
    assert 0 < expected["centroid_F1"] < 1 and 0 < expected["recall_size_from_4"] < 1


def test_objects_are_pooled_and_partitions_averaged():
    pairs = [noisy_label_maps(seed, (15, 22), count) for seed, count in ((0, 4), (1, 14))]
    tables = [table_of(*pair) for pair in pairs]
    first, second = (volume_scores([table], distance=2.0) for table in tables)
    both = volume_scores(tables, distance=2.0)
    true = first["true_objects"], second["true_objects"]
    assert both["true_objects"] == sum(true)
    for name in ("SEG", "recall_10", "centroid_recall"):
        assert both[name] == pytest.approx((first[name] * true[0] + second[name] * true[1]) / sum(true))
    for name in ("AJI", "AJI_plus", "ARAND", "VOI_merge"):
        assert both[name] == pytest.approx((first[name] + second[name]) / 2)


def test_what_scores_too_low_is_not_in_the_label_map():
    labels = np.array([[1, 1, 0, 2]])
    found = segmentation(labels, scores=torch.tensor([0.4, 0.9]))
    for threshold, recall in ((0.5, 0.5), (0.3, 1.0)):
        metric = VolumeScores(threshold)
        metric.update([found], [segmentation(labels)])
        assert metric.compute()["recall_90"] == recall


def test_an_object_within_a_crowd_keeps_its_voxels():
    crowd, cell = torch.ones(1, 6, dtype=torch.bool), torch.tensor([[0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    truth = Segmentation(Instances(masks=torch.stack([crowd, cell]), ignore=torch.tensor([True, False])))
    metric = VolumeScores()
    metric.update([segmentation(np.array([[1, 0, 2, 2, 0, 3]]))], [truth])
    scores = metric.compute()
    assert (scores["matched_AP90"], scores["AJI"], scores["SEG"], scores["VOI"]) == (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 2, 0)])
def test_axes_do_not_matter(axes):
    predicted, true = noisy_label_maps(2, (7, 9, 11), 9)
    spacing = (2.0, 0.5, 1.0)
    plain = volume_scores([table_of(predicted, true, spacing=spacing)], distance=2.0)
    turned = [x.transpose(axes) for x in (predicted, true)]
    table = table_of(*turned, spacing=[spacing[axis] for axis in axes])
    assert volume_scores([table], distance=2.0) == pytest.approx(plain)


def test_one_slice_equals_2d():
    predicted, true = noisy_label_maps(5, (15, 22), 9)
    flat, slab = table_of(predicted, true), table_of(predicted[None], true[None])
    assert volume_scores([slab], distance=2.0) == volume_scores([flat], distance=2.0)


def test_no_image_has_no_score():
    scores = VolumeScores(distance=1.0).compute()
    assert {name for name, value in scores.items() if not math.isnan(value)} == {
        "true_objects",
        "predicted_objects",
    }


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_evaluations_add_them_on_request(spatial_dims):
    cells = Metadata("instance", spatial_dims, ("cell",), in_channels=1)
    labels = np.zeros((2, 5, 6)[-spatial_dims:], dtype=np.int64)
    labels[..., 1:3, 2:5] = 1
    result = segmentation(labels, scores=torch.tensor([0.7]))
    metrics = default_metrics(cells, field=True, score_threshold=0.6, tolerance=0.1)
    metrics.update([result], [result])
    scores = metrics.compute()
    assert scores["field_matched_AP10"] == scores["field_centroid_F1"] == scores["matched_AP"] == 1.0
    assert "field" not in default_metrics(cells).metrics


def test_other_tasks_are_told():
    with pytest.raises(ConfigError, match="metrics.field scores instances, but the task is 'semantic'"):
        default_metrics(Metadata("semantic", 2, ("cell",), in_channels=1), field=True)
    with pytest.raises(ConfigError, match="metrics.field scores masks"):
        default_metrics(Metadata("instance", 2, ("cell",), in_channels=1), iou_types=["bbox"], field=True)
    class_map = Segmentation(class_map=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no instance masks"):
        VolumeScores().update([class_map], [class_map])

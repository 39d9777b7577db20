import csv

import pytest
import torch

from class_maps import blobs
from pixvox.data.metadata import Metadata
from pixvox.errors import ConfigError
from pixvox.metrics import boundary_iou, surface_distances
from pixvox.metrics.boundary_iou import BoundaryIoU
from pixvox.metrics.collection import default_metrics
from pixvox.metrics.surface_distances import SurfaceDistances
from pixvox.structures import Geometry, Instances, Segmentation


def scored(spatial_dims=2, **options):
    metadata = Metadata("semantic", spatial_dims, ("background", "cell", "wall"), in_channels=1)
    metrics = default_metrics(metadata, **options)
    true = torch.zeros((2, 6, 9)[-spatial_dims:], dtype=torch.int64)
    true[..., 2:5] = 1
    found = Segmentation(class_map=true.roll(1, -1), geometry=Geometry.identity(true.shape))
    metrics.update([found], [Segmentation(class_map=true, geometry=Geometry.identity(true.shape))])
    return metrics


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_columns_of_all_metrics_stand_in_one_table(spatial_dims):
    metrics = scored(spatial_dims, boundary_iou=True, surface_distances=True, tolerance=2.0)
    table = metrics.class_table()
    assert table.header == [
        "class", "IoU", "Dice", "precision", "recall", "share", "boundary IoU", "HD95", "ASSD", "NSD",
    ]  # fmt: skip
    rows = {row["class"]: row for row in table.records()}
    assert rows["cell"]["IoU"] == pytest.approx(0.5)
    assert rows["cell"]["NSD"] == 1.0  # moved by 1, and 2 is allowed
    scores = metrics.compute()
    assert scores["boundary_IoU/cell"] == rows["cell"]["boundary IoU"]
    assert scores["HD95/cell"] == rows["cell"]["HD95"] == 1.0


def test_costly_scores_are_off_by_default():
    assert not any("boundary" in name or "HD95" in name for name in scored().compute())


def test_table_is_written_with_gaps_where_a_score_is_not_defined(tmp_path):
    table = scored().class_table()
    assert table.cells()[1] == ["cell", "0.500", "0.667", "0.667", "0.667", "33.3%"]
    assert table.cells()[2] == ["wall", "", "", "", "", "0.0%"]
    with table.save(tmp_path / "new" / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["background", "cell", "wall"]
    assert float(rows[1]["precision"]) == pytest.approx(2 / 3)
    assert rows[2]["IoU"] == ""


def test_other_tasks_have_no_table_of_classes_and_no_scores_of_class_maps():
    metadata = Metadata("instance", 2, ("cell",), in_channels=1)
    metrics = default_metrics(metadata)
    empty = Segmentation(Instances.empty((3, 4), scores=True))
    metrics.update([empty], [empty])
    assert metrics.class_table() is None
    with pytest.raises(ConfigError, match="scores of class maps, but the task is 'instance'"):
        default_metrics(metadata, boundary_iou=True)


@pytest.mark.parametrize(
    ("module", "metric", "kept"),
    [(boundary_iou, BoundaryIoU, "_counts"), (surface_distances, SurfaceDistances, "_images")],
)
def test_parts_of_two_processes_give_the_scores_of_one(module, metric, kept, monkeypatch):
    images = [
        [Segmentation(class_map=blobs(seed + part, (12, 17), 3)) for part in (0, 1)] for seed in (0, 2, 4)
    ]
    together, first, second = metric(3), metric(3), metric(3)
    for index, (found, truth) in enumerate(images):
        together.update([found], [truth])
        (second if index == 1 else first).update([found], [truth])
    expected = together.compute()
    others = getattr(second, kept)
    monkeypatch.setattr(module, "gather", lambda items: items + (others if kept == "_images" else [others]))
    assert first.compute() == pytest.approx(expected)

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.data.images import read_image, read_labels
from pixvox.errors import DataError
from pixvox.inference.results import save, save_labels, smallest_type, table, to_coco
from pixvox.metrics.coco import CocoAveragePrecision
from pixvox.structures import Geometry, Instances, Segmentation

LABELS = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 0, 2, 0], [0, 0, 0, 2, 0], [0, 0, 0, 0, 0]])


def cells(**options):
    instances = Instances(masks=LABELS, labels=torch.tensor([1, 0]), scores=torch.tensor([0.6, 0.9]))
    return Segmentation(instances, class_names=("cell", "dust"), source="some/folder/img.0.png", **options)


def test_coco_results_read_back():
    rows = to_coco(cells(), image_id=7, category_ids=[4, 9])
    assert [row["category_id"] for row in rows] == [9, 4]
    assert [row["bbox"] for row in rows] == [[0, 0, 2, 2], [3, 1, 1, 2]]
    assert [row["area"] for row in rows] == [4, 2]
    assert [row["image_id"] for row in rows] == [7, 7]
    assert [row["score"] for row in rows] == pytest.approx([0.6, 0.9])
    json.dumps(rows)
    back = Instances(masks=[row["segmentation"] for row in rows])
    assert torch.equal(back.masks.label_map(), LABELS.int())


def test_coco_of_a_volume_has_boxes_in_xyz_order():
    label_map = torch.zeros(2, 3, 5, dtype=torch.int64)
    label_map[1:, 0:2, 3:5] = 1
    row = to_coco(Segmentation(Instances(masks=label_map)))[0]
    assert row["bbox"] == [3, 0, 1, 2, 2, 1]
    assert row["iscrowd"] == 0


def test_saved_coco_file_of_a_perfect_prediction_scores_one(tmp_path):
    """Fault 17: ids are numbered from 1, so that COCO's tools count the first annotation too."""
    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    save(cells(), tmp_path)
    truth = json.loads((tmp_path / "img.0_coco.json").read_text())
    evaluator = COCOeval_faster(COCO(truth), COCO(truth).loadRes(to_coco(cells())), "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[0] == 1.0
    assert truth["categories"] == [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]
    assert truth["images"][0]["file_name"] == "img.0.png"


def test_unknown_categories_are_refused():
    with pytest.raises(DataError, match="1 category ids were given, but an instance has class 1"):
        to_coco(cells(), category_ids=[3])
    with pytest.raises(DataError, match="no instances"):
        to_coco(Segmentation(class_map=LABELS))


def test_table_worked_by_hand():
    geometry = Geometry.identity(LABELS.shape, spacing=(2.0, 0.5))
    image = torch.arange(20.0).reshape(1, 4, 5)
    first, second = table(cells(geometry=geometry, image=image))
    assert (first["id"], first["class"], second["class"]) == (1, "cell", "dust")  # the best score first
    assert (first["size"], first["size_um2"]) == (2, 2.0)
    assert (first["centroid_x"], first["centroid_y"]) == (3.5, 2.0)
    assert (first["centroid_x_um"], first["centroid_y_um"]) == (1.75, 4.0)
    assert [first[side] for side in ("x0", "y0", "x1", "y1")] == [3, 1, 4, 3]
    assert (first["touches_border"], second["touches_border"]) == (False, True)
    assert first["mean_intensity"] == (8 + 13) / 2


def test_table_ids_are_those_of_the_label_map():
    result = cells()
    label_map = result.label_map()
    for row in table(result):
        assert int((label_map == row["id"]).sum()) == row["size"]


def test_table_of_a_volume_has_physical_volumes():
    label_map = torch.zeros(3, 4, 5, dtype=torch.int64)
    label_map[1, 1:3, 2] = 1
    geometry = Geometry.identity((3, 4, 5), spacing=(3.0, 0.5, 0.25))
    row = table(Segmentation(Instances(masks=label_map), geometry=geometry))[0]
    assert (row["centroid_x"], row["centroid_y"], row["centroid_z"]) == (2.5, 2.0, 1.5)
    assert (row["centroid_z_um"], row["size_um3"]) == (4.5, 2 * 3 * 0.5 * 0.25)
    assert row["z0"] == 1
    assert not row["touches_border"]


def test_table_of_boxes_and_of_several_channels():
    boxes = Instances(boxes=torch.tensor([[1.0, 0.0, 3.0, 4.0]]), size=(4, 5))
    row = table(Segmentation(boxes, image=torch.zeros(1, 4, 5)))[0]
    assert (row["size"], row["centroid_x"], row["touches_border"]) == (8, 2.0, True)
    row = table(cells(image=torch.stack([torch.ones(4, 5), torch.full((4, 5), 5.0)])))[0]
    assert (row["mean_intensity_0"], row["mean_intensity_1"]) == (1, 5)


def test_table_of_classes_leaves_ignored_pixels_out():
    result = Segmentation(
        class_map=torch.tensor([[0, 0, 0, 1, 255]]),
        class_names=("background", "vessel", "lumen"),
        geometry=Geometry.identity((1, 5), spacing=(2.0, 2.0)),
    )
    rows = table(result)
    assert [row["size"] for row in rows] == [3, 1, 0]
    assert [row["share"] for row in rows] == [0.75, 0.25, 0]
    assert rows[1]["size_um2"] == 4


def test_saved_files_read_back(tmp_path):
    files = save(cells(image=torch.rand(3, 4, 5) * 255), tmp_path / "new")
    assert [file.name for file in files] == [
        "img.0_labels.png", "img.0_table.csv", "img.0_coco.json", "img.0_overlay.png",
    ]  # fmt: skip
    labels = read_labels(files[0])
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, cells().label_map().numpy())
    with files[1].open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["cell", "dust"]
    assert np.array(Image.open(files[3])).shape == (4, 5, 3)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(file.name for file in files)


def test_saved_volume_keeps_ids_and_spacing(tmp_path):
    label_map = torch.zeros(3, 6, 5, dtype=torch.int64)
    label_map[1, 1:3, 2] = 1
    label_map[2, 4:, 3] = 2
    geometry = Geometry.identity((3, 6, 5), spacing=(3.0, 0.5, 0.25))
    files = save(
        Segmentation(Instances(masks=label_map), geometry=geometry, source="brain.ome.tif"), tmp_path
    )
    assert [file.name for file in files] == ["brain_labels.ome.tif", "brain_table.csv", "brain_overlay.png"]
    image = read_image(files[0])
    assert np.array_equal(image.data[0], label_map.numpy())
    assert image.spacing == pytest.approx((3.0, 0.5, 0.25))


def test_class_map_is_saved_as_a_palette_picture(tmp_path):
    class_map = torch.tensor([[0, 1, 255], [2, 1, 0]])
    files = save(Segmentation(class_map=class_map, class_names=("a", "b", "c")), tmp_path, name="x")
    assert [file.name for file in files] == ["x_labels.png", "x_table.csv", "x_overlay.png"]
    assert Image.open(files[0]).mode == "P"
    assert np.array_equal(read_labels(files[0]), class_map.numpy())


def test_ids_never_wrap(tmp_path):
    """Fault 20: more than 65535 instances are written as 32 bit."""
    count = 65_540
    label_map = torch.arange(1, count + 1).reshape(2, -1)
    path = save(Segmentation(class_map=label_map, ignore_index=-1), tmp_path, name="many")[0]
    written = read_labels(path)
    assert path.suffix == ".tif"
    assert written.dtype == np.uint32
    assert np.array_equal(written, label_map.numpy())


def test_instances_of_a_volume_beyond_16_bit_are_written_as_32_bit(tmp_path, monkeypatch):
    """Fault 20."""
    label_map = torch.arange(1, 65_537, dtype=torch.int32).reshape(4, 128, 128)
    few = Segmentation(Instances(masks=label_map % 2))  # so many objects would take a minute
    monkeypatch.setattr(Segmentation, "label_map", lambda self: label_map)
    written = read_labels(save_labels(few, tmp_path, "many"))
    assert written.dtype == np.uint32 and np.array_equal(written, label_map.numpy())


def test_smallest_type_holds_every_value():
    """Fault 20: what does not fit is refused."""
    assert smallest_type(np.array([0, 255])) == np.uint8
    assert smallest_type(np.array([0, 255]), at_least_16_bit=True) == np.uint16
    assert smallest_type(np.array([0, 65_536]), at_least_16_bit=True) == np.uint32
    assert smallest_type(np.zeros(0, dtype=np.int64)) == np.uint8
    for wrong in ([-1, 3], [2**32]):
        with pytest.raises(OverflowError, match="renumber"):
            smallest_type(np.array(wrong))


@pytest.mark.parametrize("size", [(6, 7), (3, 4, 5)])
def test_empty_result_is_saved_drawn_and_scored(size, tmp_path):
    """Fault 48: no detection is a result like any other."""
    empty = Segmentation(Instances.empty(size, scores=True), source="blank.png")
    assert table(empty) == []
    assert to_coco(empty) == []
    files = save(empty, tmp_path)
    assert all(file.stat().st_size > 0 for file in files)
    assert not read_labels(files[0], spatial_dims=len(size)).any()
    empty.plot()
    if len(size) == 2:
        metric = CocoAveragePrecision()
        metric.update([empty], [Segmentation(Instances(masks=torch.ones(1, *size, dtype=torch.bool)))])
        assert metric.compute()["mask_AP"] == 0


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save(cells(), tmp_path)
    assert list(tmp_path.iterdir()) == []

"""Panoptic COCO files: ids of three bytes, things and stuff, crowds, what has no segment, and what is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from pixvox.data.datasets.coco_panoptic import CocoPanoptic
from pixvox.errors import DataError

_IDS = np.array([[70000, 70000, 5, 5], [70000, 0, 5, 300]])


def _write(folder, ids=_IDS, segments=((70000, 7, 0), (5, 21, 0), (300, 7, 1)), size=(2, 4)):
    (folder / "images").mkdir(exist_ok=True)
    (folder / "panoptic").mkdir(exist_ok=True)
    Image.fromarray(np.full((*size, 3), 9, np.uint8)).save(folder / "images" / "a.png")
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "panoptic" / "a.png")
    content = {
        "images": [{"id": 3, "file_name": "a.png"}],
        "categories": [{"id": 21, "name": "sky", "isthing": 0}, {"id": 7, "name": "bird", "isthing": 1}],
        "annotations": [
            {
                "image_id": 3, "file_name": "a.png",
                "segments_info": [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments],
            }
        ],
    }  # fmt: skip
    (folder / "panoptic.json").write_text(json.dumps(content))
    return CocoPanoptic(folder / "images", folder / "panoptic.json")


def test_segments_become_instances_of_things_and_stuff(tmp_path):
    dataset = _write(tmp_path)
    assert dataset.metadata.class_names == ("bird", "sky")
    assert (dataset.metadata.task, dataset.metadata.is_thing) == ("panoptic", (True, False))
    assert (len(dataset), dataset.classes_in(0)) == (1, {0, 1})
    instances = dataset[0].instances()
    found = {
        (label, ignored): mask.int().tolist()
        for label, ignored, mask in zip(
            instances.labels.tolist(), instances.ignore.tolist(), instances.masks.dense(), strict=True
        )
        if not ignored
    }
    assert found == {(0, False): [[1, 1, 0, 0], [1, 0, 0, 0]], (1, False): [[0, 0, 1, 1], [0, 0, 1, 0]]}
    # The crowd, and the pixel without a segment.
    ignored = instances.masks.dense()[instances.ignore].any(dim=0)
    assert ignored.int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": ((70000, 7, 0), (5, 21, 0))}, r"segment ids \[300\] are not in .*panoptic.json"),
        ({"segments": ((70000, 8, 0),)}, "8 is missing or unknown"),
        ({"size": (3, 4)}, r"is \(3, 4\) \(height, width\), its segments .* are \(2, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        _write(tmp_path, **change)[0]


def test_missing_pictures_are_named(tmp_path):
    _write(tmp_path)
    (tmp_path / "panoptic" / "a.png").unlink()
    with pytest.raises(DataError, match=r"1 pictures are not there, first .*panoptic.a\.png"):
        CocoPanoptic(tmp_path / "images", tmp_path / "panoptic.json")

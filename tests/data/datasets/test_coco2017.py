import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from pixvox.configuration import compose, instantiate
from pixvox.data.datasets import coco2017 as module
from pixvox.data.datasets.coco2017 import ARCHIVES, coco2017
from pixvox.errors import DataError
from web import serve

# 91 names by category id, "N/A" where the published annotations have a gap.
NAMES = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
IDS = [identity for identity, name in enumerate(NAMES) if identity > 0 and name != "N/A"]
COUNTS = {"train2017": 3, "val2017": 2, "test2017": 5, "unlabeled2017": 4}


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), 128, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def archive(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def annotations(split):
    images = [
        {"id": i + 1, "file_name": f"{i:012d}.jpg", "height": 20, "width": 24} for i in range(COUNTS[split])
    ]
    square = [[2, 2, 10, 2, 10, 10, 2, 10]]
    objects = [
        {"id": i, "image_id": 1, "category_id": identity, "segmentation": square, "iscrowd": 0}
        for i, identity in enumerate((90, 1, 13), 1)
    ]
    categories = [{"id": identity, "name": NAMES[identity]} for identity in reversed(IDS)]
    return json.dumps({"images": images, "annotations": objects, "categories": categories})


@pytest.fixture
def web(monkeypatch):
    files = {
        f"/zips/{name}.zip": archive({f"{name}/{i:012d}.jpg": picture() for i in range(count)})
        for name, count in COUNTS.items()
    }
    files["/annotations/annotations_trainval2017.zip"] = archive({
        **{f"annotations/instances_{split}.json": annotations(split) for split in ("train2017", "val2017")},
        "annotations/captions_val2017.json": "{}",
    })  # fmt: skip
    sums = {
        name: (path, "md5:" + hashlib.md5(files["/" + path]).hexdigest())
        for name, (path, _) in ARCHIVES.items()
    }
    monkeypatch.setattr(module, "ARCHIVES", sums)
    with serve(files) as server:
        yield server


def test_the_configuration_fetches_what_is_missing_once(web, tmp_path):
    overrides = [
        "data=coco2017", f"data.train.root={tmp_path}", f"data.train.base_urls=[{web.url}]", "image_size=32",
    ]  # fmt: skip
    for _ in range(2):
        data = instantiate(compose("train", overrides).data, "data")
        assert (len(data.train), len(data.val)) == (3, 2)
    assert sorted(path for path, _ in web.asked) == [
        "/annotations/annotations_trainval2017.zip", "/zips/train2017.zip", "/zips/val2017.zip",
    ]  # fmt: skip
    kept = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert kept == {"annotations", "train2017", "val2017"}


def test_category_ids_with_gaps_become_80_labels_in_the_published_order(web, tmp_path):
    dataset = coco2017(tmp_path, "train", base_urls=[web.url])
    assert len(IDS) == 80 and IDS[-1] == 90
    assert list(dataset.metadata.class_names) == [NAMES[identity] for identity in IDS]
    labels = sorted(dataset[0].labels.tolist())
    assert labels == [0, 11, 79]
    assert [dataset.metadata.class_names[label] for label in labels] == ["person", "stop sign", "toothbrush"]


def test_test2017_is_halved_by_seed_into_test_and_unlabelled(web, tmp_path):
    halves = [
        coco2017(tmp_path, split, unlabelled_from="test2017", base_urls=[web.url])
        for split in ("test", "unlabelled")
    ]
    names = [{half.source(i) for i in range(len(half))} for half in halves]
    assert (len(names[0]), len(names[1])) == (2, 3)
    assert not names[0] & names[1]
    assert halves[1].unlabelled_indices() == [0, 1, 2]
    assert len(coco2017(tmp_path, "test", base_urls=[web.url])) == 5


def test_unlabelled_images_join_the_training(web, tmp_path):
    overrides = [
        "data=coco2017_unlabelled", f"data.train.root={tmp_path}", f"data.train.base_urls=[{web.url}]",
        "num_labeled_images=2", "image_size=32", "batch_size=1",
    ]  # fmt: skip
    data = instantiate(compose("train", overrides).data, "data")
    assert (len(data.train), len(data.unlabelled)) == (2, 1 + 4)
    assert next(iter(data.unlabelled_dataloader())).targets is None


def test_folders_that_are_there_are_used_wherever_they_are(web, tmp_path):
    coco2017(tmp_path, "val", base_urls=[web.url])
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
    web.asked.clear()
    assert len(coco2017(tmp_path, "val", download=False)) == 2
    assert not web.asked


def test_missing_files_are_an_error_when_nothing_may_be_fetched(tmp_path):
    with pytest.raises(
        DataError, match=r"holds no annotations; set download=true, or unpack annotations_trainval2017"
    ):
        coco2017(tmp_path, "train", download=False)


def test_another_file_than_the_published_is_never_unpacked(web, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ARCHIVES", ARCHIVES)
    with pytest.raises(DataError, match="another md5 sum than f4bbac642086de4f52a3fdda2de5fa2c"):
        coco2017(tmp_path, "val", base_urls=[web.url])
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]

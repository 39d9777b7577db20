"""What disks, downloads and annotation tools do to datasets."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.configuration import compose, instantiate
from pixvox.data.check import check_dataset
from pixvox.data.datamodule import DataModule
from pixvox.data.datasets.coco import CocoDataset
from pixvox.data.datasets.open import open_dataset
from pixvox.data.make import make_dataset
from pixvox.errors import DataError
from pixvox.metrics.coco import CocoAveragePrecision
from pixvox.overrides import data_overrides

STRANGE = "my data, v=1 (größe) 日本's"


def picture(path, suffix=".jpg", size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path.with_suffix(suffix))
    return path.with_suffix(suffix)


def coco_folder(root, count=4, names=None):
    """A COCO dataset of ``count`` pictures with one square on each; annotation ids begin at 0."""
    names = names or [f"{i}.jpg" for i in range(count)]
    images = [{"id": i, "file_name": name, "height": 40, "width": 48} for i, name in enumerate(names)]
    square = [[4, 4, 20, 4, 20, 20, 4, 20]]
    objects = [
        {"id": i, "image_id": i, "category_id": 3, "segmentation": square, "iscrowd": 0} for i in range(count)
    ]
    (root / "annotations").mkdir(parents=True)
    content = {"images": images, "annotations": objects, "categories": [{"id": 3, "name": "cell"}]}
    (root / "annotations" / "instances.json").write_text(json.dumps(content))
    for name in names:
        picture(root / "images" / name)
    return root


@pytest.mark.parametrize("damage", ["cut off", "empty", "text"])
def test_a_damaged_picture_is_found_beforehand_named_in_training_and_skipped_when_asked(tmp_path, damage):
    root = coco_folder(tmp_path / "d")
    victim = root / "images" / "2.jpg"
    content = {"cut off": victim.read_bytes()[:600], "empty": b"", "text": b"<html>404</html>"}[damage]
    victim.write_bytes(content)
    report = check_dataset(root)
    assert not report.ok
    assert any("2.jpg" in error for error in report.errors)
    dataset = open_dataset(root, "train", val_fraction=0.01)
    whole = CocoDataset(root / "images", root / "annotations" / "instances.json")
    with pytest.raises(DataError, match=r"image 2: .*2\.jpg"):
        list(DataModule(whole, batch_size=2).train_dataloader())
    skipping = DataModule(whole, batch_size=2, on_bad_sample="skip")
    seen = [index for batch in skipping.train_dataloader() for index in batch.indices]
    assert sorted(seen) == [0, 1, 3, 3]
    assert "2.jpg" in skipping.bad_samples()[0]
    assert len(dataset) == 3


def test_empty_files_are_said_at_start(tmp_path, caplog):
    root = coco_folder(tmp_path / "d")
    (root / "images" / "1.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        CocoDataset(root / "images", root / "annotations" / "instances.json")
    assert "1 images are empty files, the first: " in caplog.text


def test_annotations_numbered_from_zero_score_perfectly_when_predicted_perfectly(tmp_path):
    root = coco_folder(tmp_path / "d")
    dataset = CocoDataset(root / "images", root / "annotations" / "instances.json")
    metrics = CocoAveragePrecision()
    for index in range(len(dataset)):
        truth = dataset[index].truth(dataset.metadata.class_names)
        prediction = dataset[index].truth(dataset.metadata.class_names)
        prediction.instances.scores = torch.ones(len(prediction.instances))
        metrics.update([prediction], [truth])
    assert metrics.compute()["mask_AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["coco", "labels"])
def test_paths_with_spaces_signs_and_letters_of_all_kinds_work(tmp_path, kind):
    root = tmp_path / STRANGE
    if kind == "coco":
        coco_folder(root, 3, [f"{STRANGE} {i}.jpg" for i in range(3)])
    else:
        make_dataset("shapes", root, 3, 1, image_size=40, radius=(5, 9), task="semantic")
    config = compose("train", [*data_overrides(root), "image_size=32", "batch_size=1"])
    data = instantiate(config.data, "data")
    assert len(data.train) >= 2
    assert next(iter(data.train_dataloader())).images.shape[2:] == (32, 32)
    assert check_dataset(root).ok


def test_links_that_lead_in_circles_do_not_hold_anybody_up(tmp_path):
    make_dataset("shapes", tmp_path / "d", 3, 1, image_size=40, radius=(5, 9), task="semantic")
    (tmp_path / "d" / "images" / "train" / "loop").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "labels" / "train" / "self").symlink_to("self")
    assert len(open_dataset(tmp_path / "d", "train")) == 3


def test_images_behind_a_linked_folder_belong_to_the_dataset_once(tmp_path):
    make_dataset("shapes", tmp_path / "d", 3, 1, image_size=40, radius=(5, 9), task="semantic")
    for kind in ("images", "labels"):
        elsewhere = tmp_path / "elsewhere" / kind
        elsewhere.parent.mkdir(exist_ok=True)
        (tmp_path / "d" / kind / "train").rename(elsewhere)
        (tmp_path / "d" / kind / "train").mkdir()
        (tmp_path / "d" / kind / "train" / "site").symlink_to(elsewhere)
        (elsewhere / "back").symlink_to(tmp_path / "d" / kind / "train")
    dataset = open_dataset(tmp_path / "d", "train")
    assert [dataset.source(i)[-15:] for i in range(len(dataset))] == [f"site/00000{i}.png" for i in range(3)]
    assert dataset.unlabelled_indices() == []


def state(root):
    """Every write shows in the time of change of a folder, even if the file is gone again."""
    return {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_a_folder_for_reading_only_is_checked_trained_on_and_cached_elsewhere(tmp_path, monkeypatch, task):
    root = make_dataset("shapes", tmp_path / "d", 3, 1, image_size=40, radius=(5, 9), task=task)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = state(root)
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert check_dataset(root).ok
        config = compose("train", [*data_overrides(root), "image_size=32", "batch_size=1", "data.cache=true"])
        data = instantiate(config.data, "data")
        assert len(list(data.train_dataloader())) == 3
        assert len(list(data.val_dataloader())) == 1
        assert state(root) == before
        assert len(list((tmp_path / "cache").rglob("*.pixvox"))) == 2
    finally:
        for path in before:
            path.chmod(0o755)


def test_a_dataset_may_be_a_link_and_a_link_into_nothing_is_named(tmp_path):
    make_dataset("shapes", tmp_path / "d", 3, 1, image_size=40, radius=(5, 9), task="semantic")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    dataset = open_dataset(tmp_path / "link", "train")
    assert len(dataset) == 3
    picture = tmp_path / "d" / "images" / "train" / "000001.png"
    picture.unlink()
    picture.symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"000001\.png does not exist"):
        dataset[1]


@pytest.mark.parametrize("name", ["../outside.jpg", "a/../../outside.jpg", "/etc/outside.jpg"])
def test_an_entry_that_leaves_the_folder_is_refused(tmp_path, name):
    root = coco_folder(tmp_path / "d", 2)
    index = root / "annotations" / "instances.json"
    content = json.loads(index.read_text())
    content["images"][1]["file_name"] = name
    index.write_text(json.dumps(content))
    picture(root / "outside.jpg")
    with pytest.raises(DataError, match="leaves the image folder"):
        CocoDataset(root / "images", index)
    assert any("leaves the image folder" in error for error in check_dataset(root).errors)

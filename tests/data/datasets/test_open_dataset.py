import json
import logging

import numpy as np
import pytest
from PIL import Image

from pixvox.data.datasets.layout import find_layout, split_names
from pixvox.data.datasets.open import open_dataset
from pixvox.errors import DataError

CELLS = np.array([[1, 1, 0, 0], [0, 0, 2, 2], [0, 3, 0, 0]], np.uint8)


def picture(path, array=CELLS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def coco(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i + 1, "file_name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    path.write_text(json.dumps(content))


LABEL_LAYOUTS = {
    "images/split": ("images/train/{}", "labels/train/{}"),
    "split/images": ("train/images/{}", "train/masks/{}"),
    "no splits": ("images/{}", "masks/{}"),
}
COCO_LAYOUTS = {
    "coco": ("images/train/{}", "annotations/instances_train.json"),
    "coco 2017": ("train2017/{}", "annotations/instances_train2017.json"),
    "beside": ("train/{}", "train/_annotations.coco.json"),
    "single": ("images/{}", "labels.json"),
}


@pytest.mark.parametrize(("images", "labels"), LABEL_LAYOUTS.values(), ids=LABEL_LAYOUTS)
def test_label_folders_are_found(tmp_path, images, labels):
    for i in range(5):
        picture(tmp_path / images.format(f"{i}.png"))
        picture(tmp_path / labels.format(f"{i}.png"))
    train, val = (open_dataset(tmp_path, split, task="instance") for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 1)
    assert len(train[0].targets()) == 3


@pytest.mark.parametrize(("images", "file"), COCO_LAYOUTS.values(), ids=COCO_LAYOUTS)
def test_coco_files_are_found(tmp_path, images, file):
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        picture(tmp_path / images.format(name))
    coco(tmp_path / file, names)
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert (len(train), len(val)) == (4, 1)
    assert train.metadata.class_names == ("cell",)


def test_a_coco_file_itself_can_be_opened(tmp_path):
    names = ["0.png", "1.png"]
    for name in names:
        picture(tmp_path / name)
    coco(tmp_path / "my.json", names)
    assert len(open_dataset(tmp_path / "my.json")) == 1


def test_drawn_val_split_is_deterministic_disjoint_and_complete(tmp_path):
    for i in range(10):
        picture(tmp_path / "images" / f"{i}.png")
        picture(tmp_path / "labels" / f"{i}.png")
    options = {"task": "instance", "val_fraction": 0.3}

    def names(split, **more):
        dataset = open_dataset(tmp_path, split, **options, **more)
        return {dataset.source(i) for i in range(len(dataset))}

    train, val = names("train"), names("val")
    assert len(val) == 3
    assert not train & val
    assert len(train | val) == 10
    assert val == names("val")
    assert val != names("val", seed=1)


def test_given_splits_are_left_as_they_are(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            picture(tmp_path / "images" / split / f"{i}.png")
            picture(tmp_path / "labels" / split / f"{i}.png")
    assert split_names(tmp_path) == ("train", "val", "test")
    sizes = [len(open_dataset(tmp_path, split, task="instance")) for split in ("train", "val", "test")]
    assert sizes == [3, 2, 1]


@pytest.mark.parametrize("kind", ["coco", "labels"])
def test_folder_of_unlabelled_images_is_found(tmp_path, kind):
    for i in range(2):
        picture(tmp_path / "images" / "train" / f"{i}.png")
        picture(tmp_path / "images" / "unlabelled" / f"{i}.png")
        if kind == "labels":
            picture(tmp_path / "labels" / "train" / f"{i}.png")
    if kind == "coco":
        coco(tmp_path / "annotations" / "train.json", ["0.png", "1.png"])
    assert "unlabelled" in split_names(tmp_path)
    dataset = open_dataset(tmp_path, "unlabelled", task="instance")
    assert dataset.unlabelled_indices() == [0, 1]
    assert not dataset[0].annotated


def test_images_without_labels_never_get_into_evaluation(tmp_path):
    for i in range(6):
        picture(tmp_path / "images" / f"{i}.png")
        if i < 4:
            picture(tmp_path / "labels" / f"{i}.png")
    val, train = (open_dataset(tmp_path, split, task="instance") for split in ("val", "train"))
    assert all(val[i].annotated for i in range(len(val)))
    assert len(train.unlabelled_indices()) == 2


def test_description_is_followed_and_options_win(tmp_path):
    picture(tmp_path / "images" / "train" / "a.png")
    picture(tmp_path / "labels" / "train" / "a.png")
    picture(tmp_path / "images" / "val" / "a.png")
    picture(tmp_path / "labels" / "val" / "a.png")
    described = {
        "name": "x",
        "task": "semantic",
        "classes": list("abcd"),
        "ignore_index": 3,
        "voxel_size_um": [2, 1],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    dataset = open_dataset(tmp_path)
    assert dataset.metadata.task == "semantic"
    assert dataset.metadata.class_names == tuple("abcd")
    assert dataset.metadata.spacing == (2, 1)
    assert dataset[0].class_map.unique().tolist() == [0, 1, 2, 255]
    assert open_dataset(tmp_path, task="instance", classes=["cell"]).metadata.class_names == ("cell",)


GUESSES = {
    "object ids": ([CELLS, np.array([[1, 2, 3, 4], [5, 6, 7, 0], [0, 0, 0, 0]])], "instance", ("object",)),
    "classes": ([CELLS % 3, CELLS % 2, CELLS % 3], "semantic", ("background", "class_1", "class_2")),
    "binary": ([CELLS.clip(0, 1) * 255], "semantic", ("background", "foreground")),
    "void": ([np.where(CELLS > 2, 255, CELLS)], "semantic", ("background", "class_1", "class_2")),
}


@pytest.mark.parametrize(("maps", "task", "names"), GUESSES.values(), ids=GUESSES)
def test_task_and_classes_are_guessed_and_said(tmp_path, maps, task, names, caplog):
    for split in ("train", "val"):
        for i, label in enumerate(maps):
            picture(tmp_path / "images" / split / f"{i}.png")
            picture(tmp_path / "labels" / split / f"{i}.png", label)
    with caplog.at_level(logging.INFO):
        dataset = open_dataset(tmp_path)
    assert dataset.metadata.task == task
    assert dataset.metadata.class_names == names
    assert "taken for" in caplog.text
    assert dataset[0].annotated


def test_what_was_found_is_logged(tmp_path, caplog):
    picture(tmp_path / "images" / "train" / "a.png")
    picture(tmp_path / "labels" / "train" / "a.png")
    with caplog.at_level(logging.INFO), pytest.raises(DataError, match="at least 2 are needed"):
        open_dataset(tmp_path, task="instance")
    assert "1 images with annotations in" in caplog.text


def test_images_without_labels_are_not_counted_as_annotated(tmp_path, caplog):
    for name in "abc":
        picture(tmp_path / "images" / "train" / f"{name}.png")
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "a.png")
        picture(tmp_path / "labels" / split / "a.png")
    with caplog.at_level(logging.INFO):
        open_dataset(tmp_path, task="instance")
    assert "3 images, 1 of them with annotations in" in caplog.text


def test_unknown_layout_names_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "stuff").mkdir()
    with pytest.raises(DataError, match=r"annotations/\*\.json.*labels/train.*found stuff"):
        find_layout(tmp_path)


def test_missing_path_split_and_description_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "gone")
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "labels" / "a.png")
    with pytest.raises(DataError, match="no split 'test'"):
        open_dataset(tmp_path, "test")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json is not valid JSON"):
        open_dataset(tmp_path)

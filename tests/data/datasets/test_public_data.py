"""The six public datasets, where they are at hand: PIXVOX_TEST_DATA, or shared/data beside the repository."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pixvox.data.datamodule import DataModule
from pixvox.data.datasets.open import open_dataset

ROOT = Path(os.environ.get("PIXVOX_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))

EXPECTED = {
    "camvid": (367, 101, "semantic", 2, 11, 3),
    "nuclei_dsb2018": (323, 82, "instance", 2, 1, 1),
    "balloon": (45, 10, "instance", 2, 1, 3),
    "coco_mini": (135, 34, "instance", 2, 80, 3),
    "embryo3d_bbbc050": (35, 10, "instance", 3, 1, 1),
    "hippocampus_msd": (156, 39, "semantic", 3, 3, 1),
}


def path_of(name):
    if not (ROOT / name).is_dir():
        pytest.skip(f"{name} is not below {ROOT}")
    if name == "hippocampus_msd":
        pytest.importorskip("nibabel")
    return ROOT / name


@pytest.mark.parametrize("name", EXPECTED)
def test_dataset_is_found_and_read(name):
    train_count, val_count, task, dims, classes, channels = EXPECTED[name]
    train, val = open_dataset(path_of(name), "train"), open_dataset(path_of(name), "val")
    assert (len(train), len(val)) == (train_count, val_count)
    data = train.metadata
    assert (data.task, data.spatial_dims, data.num_classes, data.in_channels) == (
        task,
        dims,
        classes,
        channels,
    )
    assert val.metadata.class_names == data.class_names
    for index in range(0, len(train), len(train) // 4):
        sample = train[index]
        assert sample.image.shape[0] == channels
        assert sample.image.isfinite().all()
        targets = sample.targets()
        assert (targets.max() if torch.is_tensor(targets) else len(targets)) > 0


@pytest.mark.parametrize("name", EXPECTED)
def test_dataset_makes_batches(name):
    datamodule = DataModule(path=path_of(name), batch_size=2)
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        assert torch.isfinite(next(iter(loader)).images).all()


def test_crowds_of_coco_are_ignored_and_counted():
    dataset = open_dataset(path_of("coco_mini"), "val")
    crowds = sum(annotation.crowd for entry in dataset.entries for annotation in entry.annotations)
    assert crowds == 6
    index = next(i for i, entry in enumerate(dataset.entries) if any(a.crowd for a in entry.annotations))
    assert dataset[index].instances().ignore.sum() >= 1


@pytest.mark.parametrize("name", ["coco_mini", "balloon"])
def test_masks_and_classes_equal_those_of_pycocotools(name):
    coco_tools = pytest.importorskip("pycocotools.coco")
    dataset = open_dataset(path_of(name), "val")
    reference = coco_tools.COCO(str(dataset.file))
    names = {category["id"]: category["name"] for category in reference.dataset["categories"]}
    by_file = {image["file_name"]: image["id"] for image in reference.dataset["images"]}
    for index in range(0, len(dataset), 3):
        instances = dataset[index].instances()
        identity = by_file[Path(dataset.source(index)).name]
        annotations = sorted(reference.imgToAnns[identity], key=lambda one: one.get("iscrowd", 0))
        assert len(instances) == len(annotations)
        for annotation, mask, label in zip(
            annotations, instances.masks.dense().numpy(), instances.labels.tolist(), strict=True
        ):
            assert dataset.metadata.class_names[label] == names[annotation["category_id"]]
            assert np.array_equal(mask, reference.annToMask(annotation).astype(bool))


def test_spacing_comes_from_the_description_or_the_file():
    assert open_dataset(path_of("embryo3d_bbbc050"))[0].spacing == (1.75, 0.8, 0.8)
    hippocampus = open_dataset(path_of("hippocampus_msd"))[0]
    assert (hippocampus.spacing, hippocampus.unit) == ((1.0, 1.0, 1.0), "mm")

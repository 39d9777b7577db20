"""Predictions written as a dataset that training takes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import pixvox
from parity import randomise
from pixvox import create_model
from pixvox.data.datamodule import DataModule
from pixvox.data.datasets.coco import CocoDataset
from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.data.datasets.open import open_dataset
from pixvox.errors import ConfigError, DataError
from pixvox.inference.label_dataset import LabelDataset, confident
from pixvox.prediction import predict_labels
from pixvox.structures import Instances, Segmentation
from pixvox.weights.checkpoint import save_safetensors

SMALL = {"backbone__channels": [8, 8], "backbone__strides": [2, 4], "backbone__norm": "group"}
CELLS = {
    "num_grids": [4, 3],
    "channels": 8,
    "num_convs": 1,
    "neck__out_channels": 8,
    "neck__extra_level": False,
}


def _saved(folder, head, dims=2, classes=2, **options):
    torch.manual_seed(0)
    names = tuple("abc"[:classes])
    model = create_model(head, "simple", num_classes=classes, in_channels=1, spatial_dims=dims, class_names=names,
                         **SMALL, **options)  # fmt: skip
    randomise(model.head)
    return save_safetensors(model, folder / "model.safetensors")


def _pictures(folder, count=3):
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (24, 32), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def _coco(folder):
    return CocoDataset(folder / "images" / "train", folder / "annotations" / "instances_train.json")


def _found(scores, labels=None, size=(6, 8)):
    masks = torch.zeros(len(scores), *size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[..., 0:2, 2 * i : 2 * i + 2] = True
    labels = torch.tensor(labels or [0] * len(scores), dtype=torch.int64)
    return Segmentation(
        instances=Instances(masks=masks, labels=labels, scores=torch.tensor(scores), size=size)
    )


MODEL = ("instance", 2, ("a", "b"))


def test_what_is_less_sure_is_left_out():
    assert confident(_found([0.9, 0.2, 0.5]), 0.5).instances.scores.tolist() == pytest.approx([0.9, 0.5])
    probabilities = torch.tensor([[[0.9, 0.4]], [[0.1, 0.6]]])
    result = Segmentation(class_map=probabilities.argmax(0), probabilities=probabilities)
    assert confident(result, 0.7).class_map.tolist() == [[0, 255]]


def test_objects_of_images_become_a_coco_dataset(tmp_path):
    pictures = _pictures(tmp_path / "pictures")
    with LabelDataset(tmp_path / "out", *MODEL) as dataset:
        for i, (scores, labels) in enumerate([([0.9, 0.8], [1, 0]), ([], []), ([0.7], [1])]):
            assert dataset.add(_found(scores, labels, (24, 32)), pictures / f"{i}.png") == bool(scores)
        assert not (tmp_path / "out").exists()
    train = _coco(tmp_path / "out")
    assert len(train) == 2 and train.metadata.class_names == ("a", "b")
    assert train[0].labels.tolist() == [1, 0] and train[0].layers.shape == (1, 24, 32)
    assert torch.equal(
        train[0].layers[0], torch.as_tensor(_found([0.9, 0.8], size=(24, 32)).instances.masks.label_map())
    )
    unlabelled = open_dataset(tmp_path / "out", "unlabelled")
    assert [path.name for path in (tmp_path / "out" / "images" / "unlabelled").iterdir()] == ["1.png"]
    assert len(unlabelled) == 1
    coco = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert "score" not in coco["annotations"][0]
    module = DataModule(path=tmp_path / "out", options={"val_fraction": 0.5}, num_unlabeled_images=-1)
    assert len(module.unlabelled) == 1


def test_objects_of_volumes_become_label_maps(tmp_path):
    import tifffile

    volume = np.random.default_rng(0).integers(0, 9000, (4, 24, 32), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "v.tif", volume, metadata={"axes": "ZYX"})
    with LabelDataset(tmp_path / "out", "instance", 3, ("nucleus",)) as dataset:
        assert dataset.add(_found([0.9, 0.8], size=(4, 24, 32)), tmp_path / "v.tif")
    train = LabelFolder(*(tmp_path / "out" / kind / "train" for kind in ("images", "labels")), spatial_dims=3)
    assert len(train[0].labels) == 2
    assert torch.equal(train[0].image[0], torch.from_numpy(volume.astype(np.float32)))


def test_images_of_two_folders_with_one_name_both_stay(tmp_path):
    first, second = _pictures(tmp_path / "a", 1), _pictures(tmp_path / "b", 1)
    with LabelDataset(tmp_path / "out", *MODEL) as dataset:
        for folder in (first, second):
            dataset.add(_found([0.9], size=(24, 32)), folder / "0.png")
    assert sorted(path.name for path in (tmp_path / "out" / "images" / "train").iterdir()) == [
        "0.png",
        "0_2.png",
    ]
    assert len(_coco(tmp_path / "out")) == 2


def _fail(dataset, picture):
    with dataset:
        dataset.add(_found([0.9], size=(24, 32)), picture)
        raise RuntimeError("in the middle")


def test_a_failure_leaves_nothing_behind(tmp_path):
    pictures = _pictures(tmp_path / "pictures", 1)
    with pytest.raises(RuntimeError, match="in the middle"):
        _fail(LabelDataset(tmp_path / "out", *MODEL), pictures / "0.png")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="objects of 2 classes in volumes"):
        LabelDataset(tmp_path / "out", "instance", 3, ("a", "b"))
    with pytest.raises(ConfigError, match="panoptic"):
        LabelDataset(tmp_path / "out", "panoptic", 2, ("a", "b"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match="exists already"):
        LabelDataset(tmp_path / "full", *MODEL)


@pytest.mark.parametrize("head", ["solov2", "fcn"])
def test_a_model_writes_labels_that_a_training_takes(head, tmp_path):
    pictures = _pictures(tmp_path / "pictures")
    own = {**CELLS, "mask_channels": 8, "kernel_channels": 4} if head == "solov2" else {}
    file = _saved(tmp_path, head, **own)
    (pictures / "broken.png").write_bytes(b"no picture")
    rows = predict_labels(file, [pictures], tmp_path / "out", threshold=0.2)
    assert sorted("error" in row for row in rows) == [False] * 3 + [True]
    train = open_dataset(tmp_path / "out", "train")
    assert train.metadata.task == ("semantic" if head == "fcn" else "instance")
    assert train.metadata.class_names == ("a", "b")
    found = pixvox.load(file).predict(pictures / "0.png")
    sample = next(
        sample for sample in (train[i] for i in range(len(train))) if sample.source.endswith("0.png")
    )
    if head == "fcn":
        sure = sample.class_map != 255
        assert torch.equal(sample.class_map[sure], found.class_map[sure])
    else:
        kept = found.instances.scores >= 0.2
        assert sample.labels.tolist() == found.instances.labels[kept].tolist()

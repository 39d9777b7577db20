import logging
from functools import partial

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image

from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.errors import DataError

IMAGE = np.random.default_rng(0).integers(0, 4000, (6, 8), dtype=np.uint16)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()

    def add(name, image=IMAGE, label=None, suffix=".tif", label_name=None):
        tifffile.imwrite(tmp_path / "images" / f"{name}{suffix}", image)
        if label is not None:
            tifffile.imwrite(tmp_path / "labels" / f"{label_name or name}{suffix}", np.asarray(label))

    def make(**options):
        return LabelFolder(tmp_path / "images", tmp_path / "labels", **options)

    add.make = make
    return add


def test_pairs_are_made_by_name_and_not_by_order(folder):
    for name, value in (("b10", 3), ("a2", 2), ("b9", 5)):
        folder(name, IMAGE * 0 + value, np.full((6, 8), value, np.uint8))
    dataset = folder.make(task="semantic", class_names=[str(i) for i in range(6)])
    assert len(dataset) == 3
    for sample in (dataset[i] for i in range(3)):
        assert (sample.image[0] == sample.class_map).all()


@pytest.mark.parametrize("size", [(6, 8), (3, 6, 8)])
def test_ids_that_are_not_consecutive_are_renumbered(folder, size):
    label = np.zeros(size, np.uint32)
    label[..., 0, :2] = 70_000
    label[..., 4, 4:] = 9
    folder("a", np.zeros(size, np.uint16), label)
    sample = folder.make(spatial_dims=len(size))[0]
    assert sample.layers.unique().tolist() == [0, 1, 2]
    assert len(sample.targets()) == 2


def test_label_of_another_size_is_refused_with_both_sizes_and_the_file(folder):
    folder("odd", label=np.zeros((6, 9), np.uint8))
    with pytest.raises(DataError, match=r"odd\.tif has the size 6 x 8, .* 6 x 9"):
        folder.make()[0]


def test_label_outside_the_classes_is_refused_with_value_and_file(folder):
    label = np.zeros((6, 8), np.uint8)
    label[0, :3] = 7
    folder("bad", label=label)
    with pytest.raises(DataError, match=r"bad\.tif: label value 7 \(3 pixels\).*0\.\.1.*ignore_value=7"):
        folder.make(task="semantic", class_names=["a", "b"])[0]


def test_ignored_value_becomes_that_of_the_metadata(folder):
    label = np.zeros((6, 8), np.uint8)
    label[0, :3] = 11
    folder("a", label=label)
    dataset = folder.make(task="semantic", class_names=["a", "b"], ignore_value=11)
    assert (dataset[0].class_map == dataset.metadata.ignore_index).sum() == 3


def test_values_map_files_to_classes(folder):
    folder("a", label=(np.arange(48).reshape(6, 8) % 2 * 255).astype(np.uint8))
    dataset = folder.make(task="semantic", class_names=["a", "b"], values={0: 0, 255: 1}, ignore_value=None)
    assert dataset[0].class_map[0].tolist() == [0, 1] * 4


def test_images_without_label_maps_are_unlabelled(folder):
    folder("a", label=np.zeros((6, 8), np.uint8))
    folder("b")
    dataset = folder.make()
    assert dataset.unlabelled_indices() == [1]
    assert dataset[0].annotated
    assert not dataset[1].annotated


def test_label_maps_without_an_image_are_an_error_at_start(folder, tmp_path):
    folder("a", label=np.zeros((6, 8), np.uint8))
    (tmp_path / "images" / "a.tif").rename(tmp_path / "images" / "c.tif")
    with pytest.raises(DataError, match=r"1 label maps .*a\.tif"):
        folder.make()


def test_label_names_may_have_a_known_ending(folder):
    folder("a", label=np.ones((6, 8), np.uint8), label_name="a_mask")
    assert folder.make()[0].annotated


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_values_that_are_not_finite_are_ignored(folder, task, caplog):
    image = IMAGE.astype(np.float32)
    image[0, :2] = np.nan
    image[1, 0] = np.inf
    label = np.zeros((6, 8), np.uint8)
    label[3:, 3:] = 1
    folder("a", image, label)
    names = ["cell"] if task == "instance" else ["a", "b"]
    with caplog.at_level(logging.WARNING):
        sample = folder.make(task=task, class_names=names)[0]
    assert "3 of 48 values" in caplog.text
    assert sample.image.isfinite().all()
    assert sample.intensity_range.isfinite().all()
    if task == "semantic":
        assert (sample.class_map == 255).sum() == 3
    else:
        targets = sample.targets()
        assert targets.ignore.tolist() == [False, True]
        assert targets.masks.areas().tolist() == [15, 3]


def test_constant_image_is_read_and_said(folder, caplog):
    folder("a", IMAGE * 0 + 5, np.zeros((6, 8), np.uint8))
    with caplog.at_level(logging.WARNING):
        sample = folder.make()[0]
    assert "constant" in caplog.text
    assert sample.intensity_range.tolist() == [[5, 5]]


def test_other_channels_than_the_first_image_are_refused_with_the_repair(folder):
    folder("a", label=np.zeros((6, 8), np.uint8))
    folder("b", np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8), np.uint8))
    with pytest.raises(DataError, match=r"b\.tif has 3 channels, .* 1; set channels=rgb"):
        folder.make()[1]
    assert folder.make(channels="rgb")[0].image.shape[0] == 3


def test_several_classes_of_object_ids_are_refused(folder):
    folder("a", label=np.zeros((6, 8), np.uint8))
    with pytest.raises(DataError, match="COCO"):
        folder.make(class_names=["a", "b"])


def test_spacing_of_the_dataset_fills_in_for_files_that_do_not_say(folder):
    folder("a", label=np.zeros((6, 8), np.uint8))
    assert folder.make(spacing=(2.0, 0.5))[0].spacing == (2.0, 0.5)


def test_exif_rotated_jpeg_agrees_with_its_label_map(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    bright = np.zeros((16, 24, 3), np.uint8)
    bright[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    Image.fromarray(bright).save(tmp_path / "images" / "a.jpg", exif=exif, quality=95)
    upright = np.rot90(bright[..., 0] // 255, -1).copy()
    Image.fromarray(upright).save(tmp_path / "labels" / "a.png")
    sample = LabelFolder(tmp_path / "images", tmp_path / "labels")[0]
    assert sample.size == (24, 16)
    assert ((sample.image[0] > 128) == (sample.layers[0] > 0)).all()


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_missing_chunks_of_image_and_labels_are_ignored(tmp_path, task):
    """Fault 21."""
    stored = {"images": (slice(0, 2), slice(None)), "labels": (slice(None), slice(0, 3))}
    for folder, place in stored.items():
        array = zarr.create_array(
            str(tmp_path / folder / "a.zarr"), shape=(4, 6, 8), chunks=(2, 3, 8), dtype="uint8"
        )
        array[place] = 1
    options = {"task": task, "class_names": ["cell"] if task == "instance" else ["a", "b"], "spatial_dims": 3}
    make = partial(LabelFolder, tmp_path / "images", tmp_path / "labels", **options)
    with pytest.raises(DataError, match="allow_missing_chunks"):
        make()[0]
    sample = make(allow_missing_chunks=True)[0]
    unknown = torch.ones(4, 6, 8, dtype=torch.bool)
    unknown[0:2, 0:3] = False
    if task == "semantic":
        assert torch.equal(sample.class_map == 255, unknown)
    else:
        targets = sample.targets()
        assert targets.ignore.tolist() == [False, True]
        assert torch.equal(targets.masks.dense()[1], unknown)

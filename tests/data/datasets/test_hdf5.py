import os
import pickle
import sys

import numpy as np
import pytest
import torch

from pixvox.configuration import compose, instantiate
from pixvox.data.datamodule import DataModule
from pixvox.data.datasets.hdf5 import Hdf5Instances
from pixvox.data.datasets.ragged import read_ragged
from pixvox.errors import DataError

h5py = pytest.importorskip("h5py")
COUNTS = (2, 0, 3, 1)


def arrays_of(rows):
    """An array of arrays, as ``np.save`` pickles it."""
    content = np.empty(len(COUNTS), object)
    for i, (start, end) in enumerate(zip(np.cumsum([0, *COUNTS])[:-1], np.cumsum(COUNTS), strict=True)):
        content[i] = rows[start:end]
    return content


@pytest.fixture
def files(tmp_path):
    """Four images with two, no, three and one object; object j covers the columns from j on."""

    def make(dims=2, **changes):
        size = (6, 8, 10)[-dims:]
        total = sum(COUNTS)
        parts = {
            "images": np.arange(4 * 3 * np.prod(size), dtype=np.uint16).reshape(4, 3, *size),
            "masks": np.zeros((total, *size), np.uint8),
            "labels": arrays_of(np.array([1, 3, 2, 2, 1, 3], np.int64)),
            "boxes": arrays_of(np.tile([0.0] * dims + [5.0] * dims, (total, 1))),
        }
        for j in range(total):
            parts["masks"][j, ..., j:] = 1
        paths = {}
        for name, value in {**parts, **changes}.items():
            paths[name] = tmp_path / f"{name}.{'h5' if name in ('images', 'masks') else 'npy'}"
            if paths[name].suffix == ".npy":
                np.save(paths[name], value, allow_pickle=True)
                continue
            with h5py.File(paths[name], "w") as file:
                file.create_dataset("data", data=value, compression="gzip", chunks=(1, *value.shape[1:]))
        return paths

    return make


@pytest.mark.parametrize("dims", [2, 3])
def test_each_image_gets_its_share_of_the_flat_list(files, dims):
    dataset = Hdf5Instances(**files(dims))
    assert len(dataset) == 4
    assert dataset.metadata.class_names == ("class_1", "class_2", "class_3")
    assert (dataset.metadata.spatial_dims, dataset.metadata.in_channels) == (dims, 3)
    found = [dataset[i].instances() for i in range(4)]
    assert [instances.labels.tolist() for instances in found] == [[0, 2], [], [1, 1, 0], [2]]
    starts = [box[0] for instances in found for box in instances.boxes.tolist()]
    assert starts == [0, 1, 2, 3, 4, 5]
    assert dataset[2].image.max() == 3 * np.prod(dataset[0].image.shape) - 1, "16 bits keep their range"
    assert dataset[1].annotated


def test_labels_in_one_array_are_divided_by_offsets(files, tmp_path):
    paths = files(labels=np.array([0, 2, 1, 1, 0, 2]))
    np.save(tmp_path / "offsets.npy", np.cumsum([0, *COUNTS]))
    del paths["boxes"]
    with pytest.raises(DataError, match="give offsets"):
        Hdf5Instances(**paths, first_label=0)
    dataset = Hdf5Instances(**paths, offsets=tmp_path / "offsets.npy", first_label=0, class_names=list("abc"))
    assert dataset[2].labels.tolist() == [1, 1, 0]
    np.save(tmp_path / "offsets.npy", np.array([0, 2, 1, 5, 6]))
    with pytest.raises(DataError, match="ascending whole numbers from 0 to the 6 rows"):
        Hdf5Instances(**paths, offsets=tmp_path / "offsets.npy", first_label=0)


def test_rows_of_one_length_are_rows(tmp_path):
    for number, rows in enumerate((np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]], object))):
        np.save(tmp_path / f"{number}.npy", rows, allow_pickle=True)
        assert [row.tolist() for row in read_ragged(tmp_path / f"{number}.npy")] == [[1, 2], [3, 4]]


def test_channels_may_come_last_or_be_absent(files):
    grey = Hdf5Instances(**files(images=np.ones((4, 8, 10), np.float32)))
    assert grey[0].image.shape == (1, 8, 10)
    del grey  # its file is written anew
    last = Hdf5Instances(**files(images=np.ones((4, 8, 10, 3), np.uint8)), channels_last=True)
    assert last[0].image.shape == (3, 8, 10)


MISFITS = {
    "images and masks": (
        {"masks": np.ones((6, 8, 9), np.uint8)},
        r"size \(8, 10\), .*masks of size \(8, 9\)",
    ),
    "masks and labels": ({"masks": np.ones((5, 8, 10), np.uint8)}, "lists 6 objects, .* holds 5 masks"),
    "images and labels": ({"labels": arrays_of(np.ones(6))[:3]}, "is for 3 images, .* holds 4"),
    "label 0": (
        {"labels": arrays_of(np.array([1, 0, 1, 1, 1, 1]))},
        "image 0 has the label 0.*first_label=1",
    ),
    "half a label": ({"labels": arrays_of(np.array([1, 1.5, 1, 1, 1, 1]))}, "image 0 must be whole numbers"),
    "texts": ({"labels": arrays_of(np.array(list("abcdef")))}, "entry 0 is no array of numbers"),
    "boxes of others": (
        {"boxes": arrays_of(np.zeros((6, 5)))},
        r"image 0 has boxes of shape \(2, 5\) for 2 labels",
    ),
    "boxes elsewhere": ({"boxes": arrays_of(np.full((6, 4), 99.0))}, "image 0 has a box outside"),
    "no masks": ({"masks": np.ones((6, 8), np.uint8)}, r"must be \(n, channels, \*spatial\)"),
}


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS)
def test_files_that_do_not_fit_each_other_are_refused_at_start(files, changes, message):
    with pytest.raises(DataError, match=message):
        Hdf5Instances(**files(**changes))


def test_an_object_without_a_pixel_is_left_out_or_an_error_at_start(files):
    masks = np.ones((6, 8, 10), np.uint8)
    masks[1] = 0
    paths = files(masks=masks)
    assert Hdf5Instances(**paths)[0].instances().labels.tolist() == [0]
    with pytest.raises(DataError, match=r"mask 1 \(object 1 of image 0\) has no pixel"):
        Hdf5Instances(**paths, check_masks=True)


def test_missing_and_damaged_files_are_named(files, tmp_path):
    paths = files()
    with pytest.raises(DataError, match=r"gone\.h5 does not exist"):
        Hdf5Instances(**{**paths, "images": tmp_path / "gone.h5"})
    with pytest.raises(DataError, match=r"gone\.npy does not exist"):
        Hdf5Instances(**{**paths, "labels": tmp_path / "gone.npy"})
    with pytest.raises(DataError, match="no array 'x': data"):
        Hdf5Instances(**paths, image_key="x")
    paths["masks"].write_bytes(paths["masks"].read_bytes()[:900])
    with pytest.raises(DataError, match=r"masks\.h5 is no HDF5 file, or it is damaged"):
        Hdf5Instances(**paths)
    paths = files()
    paths["labels"].write_bytes(paths["labels"].read_bytes()[:200])
    with pytest.raises(DataError, match=r"labels\.npy is"):
        Hdf5Instances(**paths)


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_asks_for_more_than_arrays_is_not_run(files, tmp_path, protocol):
    paths = files()
    header = np.lib.format
    with paths["labels"].open("wb") as stream:
        header.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (4,)})
        pickle.dump(Evil(tmp_path / "canary"), stream, protocol=protocol)
    with pytest.raises(DataError, match=r"asks for .*mkdir.*Do not trust"):
        Hdf5Instances(**paths)
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="workers are forked elsewhere")
def test_workers_open_the_files_for_themselves(files):
    dataset = Hdf5Instances(**files())
    _ = dataset[0]
    here = dataset.arrays["images"]._opened
    module = DataModule(dataset, batch_size=1, num_workers=2, size_divisor=2, min_object_size=1)
    alone = DataModule(dataset, batch_size=1, num_workers=0, size_divisor=2, min_object_size=1)
    pairs = zip(module.train_dataloader(), alone.train_dataloader(), strict=True)
    assert all(torch.equal(a.images, b.images) for a, b in pairs)
    assert dataset.arrays["images"]._opened is here
    assert pickle.loads(pickle.dumps(dataset))[3].labels.tolist() == [2]


def test_the_configuration_draws_a_val_split(files):
    given = [f"data.train.{name}={path}" for name, path in files().items()]
    data = instantiate(compose("train", ["data=hdf5", "image_size=32", "batch_size=1", *given]).data, "data")
    assert (len(data.train), len(data.val)) == (3, 1)
    assert next(iter(data.train_dataloader())).images.shape == (1, 3, 32, 32)

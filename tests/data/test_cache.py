import os
import pickle
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pixvox.data import cache
from pixvox.data.cache import CachedDataset
from pixvox.data.datamodule import DataModule
from pixvox.data.dataset import Dataset, Subset
from pixvox.data.datasets.hdf5 import Hdf5Instances
from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.data.make import make_dataset
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.synthetic.digits import Digits
from pixvox.data.synthetic.glyphs import FontGlyphs
from pixvox.errors import DataError


class Numbers(Dataset):
    """Samples of one kind of values, some of them without annotations."""

    def __init__(self, kind, size=(5, 7), count=4, scale=1.0):
        self.kind, self.size, self.count, self.scale = kind, size, count, scale
        self.reads = 0
        self.metadata = Metadata("instance", len(size), ("a", "b", "c"), 2, name="numbers")

    def __len__(self):
        return self.count

    def unlabelled_indices(self):
        return [2]

    def __getitem__(self, index):
        self.reads += 1
        generator = torch.Generator().manual_seed(index)
        values = torch.rand((2, *self.size), generator=generator) * self.scale
        top = {"uint8": 255, "uint16": 65535}.get(self.kind)
        image = (values * top).round() if top else values * 2 - 1
        layers = torch.randint(0, 70_000, (index, *self.size), generator=generator, dtype=torch.int32)
        sample = Sample(
            image, layers, torch.arange(70_000) % 3, torch.arange(70_000) % 2 == 0, spacing=(0.5,) * len(self.size),
            unit="mm", source=f"number {index}", index=index, intensity_range=torch.tensor([[0.0, 1.5]] * 2),
        )  # fmt: skip
        return sample.unlabelled() if index in self.unlabelled_indices() else sample


def assert_equal(ours, theirs):
    for field in fields(Sample):
        if field.name == "hidden":  # made after reading, of annotations that are cached
            continue
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(other, Tensor):
            assert mine.dtype == other.dtype, field.name
            assert torch.equal(mine, other), field.name
        else:
            assert mine == other, field.name


@pytest.fixture
def folder(tmp_path):
    return make_dataset("shapes", tmp_path / "shapes", 3, 0, image_size=40, radius=(5, 9))


def semantic(root):
    return LabelFolder(
        root / "images", root / "labels", "semantic", ["background", *(f"class{i}" for i in range(254))],
        ignore_value=None,
    )  # fmt: skip


@pytest.fixture
def label_maps(tmp_path):
    from PIL import Image

    for name in ("images", "labels"):
        (tmp_path / "maps" / name).mkdir(parents=True)
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 4, (6, 9), dtype=np.uint8)
        Image.fromarray(values * 50).save(tmp_path / "maps" / "images" / f"{i}.png")
        Image.fromarray(values).save(tmp_path / "maps" / "labels" / f"{i}.png")
    return tmp_path / "maps"


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 7)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float"])
def test_cached_samples_are_bit_equal_in_every_field(tmp_path, kind, size):
    dataset = Numbers(kind, size)
    cached = CachedDataset(dataset, tmp_path)
    for index in range(len(dataset)):
        assert_equal(cached[index], dataset[index])
    assert cached.unlabelled_indices() == [2]


def test_a_label_folder_comes_back_bit_equal(tmp_path, label_maps):
    dataset = semantic(label_maps)
    cached = CachedDataset(dataset, tmp_path / "cache")
    for index in range(3):
        assert_equal(cached[index], dataset[index])
        assert cached.classes_in(index) == dataset.classes_in(index) == {0, 1, 2, 3}


def test_8_bit_images_take_8_bits_and_floats_16_when_asked(tmp_path):
    size = (64, 70)
    sizes = {
        kind: CachedDataset(Numbers(kind, size, 2), tmp_path).file.stat().st_size
        for kind in ("uint8", "float")
    }
    half = CachedDataset(Numbers("float", size, 2), tmp_path, image_type="float16")
    assert sizes["float"] - sizes["uint8"] == pytest.approx(2 * 2 * 3 * 64 * 70, rel=0.02)
    assert sizes["float"] - half.file.stat().st_size == pytest.approx(2 * 2 * 2 * 64 * 70, rel=0.02)
    assert torch.allclose(half[1].image, Numbers("float", size, 2)[1].image, atol=1e-3)


def test_the_source_is_read_once(tmp_path):
    CachedDataset(Numbers("uint8"), tmp_path)
    later = Numbers("uint8")
    assert len([CachedDataset(later, tmp_path)[i] for i in range(4)]) == 4
    assert later.reads == 0


def test_samples_may_be_changed_without_changing_the_file(tmp_path):
    cached = CachedDataset(Numbers("float"), tmp_path)
    cached[1].image.zero_()
    assert_equal(cached[1], Numbers("float")[1])


def test_other_options_give_another_file_and_equal_ones_the_same(tmp_path):
    one, other = (
        CachedDataset(Numbers("uint8"), tmp_path),
        CachedDataset(Numbers("uint8", scale=0.5), tmp_path),
    )
    part = CachedDataset(Subset(Numbers("uint8"), [1, 3]), tmp_path)
    assert len({one.file, other.file, part.file}) == 3
    assert CachedDataset(Numbers("uint8"), tmp_path).file == one.file
    assert_equal(part[1], Subset(Numbers("uint8"), [1, 3])[1])


@pytest.mark.parametrize("changed", ["images", "labels"])
def test_a_changed_source_file_is_cached_anew(tmp_path, label_maps, changed):
    first = CachedDataset(semantic(label_maps), tmp_path / "cache")
    before = first[1]
    path = label_maps / changed / "1.png"
    path.write_bytes((label_maps / changed / "0.png").read_bytes())
    os.utime(path, ns=(1, 1))
    second = CachedDataset(semantic(label_maps), tmp_path / "cache")
    assert second.file == first.file
    assert_equal(second[1], semantic(label_maps)[1])
    assert not torch.equal(getattr(second[1], "image" if changed == "images" else "class_map"),
                           getattr(before, "image" if changed == "images" else "class_map"))  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "head", "table", "version", "empty"])
def test_a_damaged_file_is_written_anew(tmp_path, damage):
    file = CachedDataset(Numbers("uint8"), tmp_path).file
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-1]
    elif damage == "empty":
        content = bytearray()
    else:
        content[{"head": 0, "version": 8, "table": len(content) - 3}[damage]] ^= 1
    file.write_bytes(content)
    again = Numbers("uint8")
    cached = CachedDataset(again, tmp_path)
    assert again.reads == 4
    assert_equal(cached[3], Numbers("uint8")[3])


def test_a_damaged_record_is_read_from_the_source_with_a_warning(tmp_path, caplog):
    cached = CachedDataset(Numbers("uint8", (40, 50)), tmp_path)
    content = bytearray(cached.file.read_bytes())
    place, length, _ = (int(value) for value in cached._table[1])
    content[place + length - 300] ^= 4
    cached.file.write_bytes(content)
    cached = CachedDataset(Numbers("uint8", (40, 50)), tmp_path)
    assert_equal(cached[1], Numbers("uint8", (40, 50))[1])
    assert "image 1 is damaged" in caplog.text


def test_an_error_while_writing_leaves_nothing_behind(tmp_path):
    class Broken(Numbers):
        def __getitem__(self, index):
            if index == 3:
                raise DataError("3.png is cut off")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="cut off"):
        CachedDataset(Broken("uint8"), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_private_options_and_parts_tell_datasets_apart(tmp_path):
    class Private(Numbers):
        def __init__(self, shift):
            super().__init__("uint8")
            self._shift = shift

        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return replace(sample, image=sample.image + self._shift)

    for shift in (0, 1):
        assert_equal(CachedDataset(Private(shift), tmp_path)[1], Private(shift)[1])


def test_digits_of_another_font_are_not_taken_for_the_same(tmp_path):
    plain, upright = Digits(2), Digits(2)
    upright.glyphs = FontGlyphs(rotation=0, slant=0)
    assert CachedDataset(plain, tmp_path).file != CachedDataset(upright, tmp_path).file
    assert CachedDataset(Digits(2), tmp_path).file == CachedDataset(plain, tmp_path).file


def test_arrays_of_one_hdf5_file_are_not_taken_for_each_other(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "i.h5", "w") as file:
        file["raw"], file["sharp"] = np.zeros((2, 1, 5, 6)), np.ones((2, 1, 5, 6))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["masks"] = np.ones((2, 5, 6), np.uint8)
    np.save(tmp_path / "l.npy", np.ones((2, 1), np.int64))
    names = [tmp_path / name for name in ("i.h5", "m.h5", "l.npy")]
    for key, value in (("raw", 0), ("sharp", 1)):
        cached = CachedDataset(Hdf5Instances(*names, image_key=key), tmp_path / "cache")
        assert cached[1].image.unique().tolist() == [value]
        assert CachedDataset(Hdf5Instances(*names, image_key=key), tmp_path / "cache").file == cached.file


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(30, "Read-only file system")])
def test_a_cache_in_a_folder_for_reading_only_is_used(tmp_path, monkeypatch, error):
    CachedDataset(Numbers("uint8"), tmp_path)

    @contextmanager
    def refused(path):
        raise error
        yield

    monkeypatch.setattr(cache, "locked", refused)
    later = Numbers("uint8")
    assert_equal(CachedDataset(later, tmp_path)[1], Numbers("uint8")[1])
    assert later.reads == 0


def test_a_folder_that_cannot_be_written_is_named_with_the_repair(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache.* cannot be written .*data\.cache=FOLDER"):
        CachedDataset(Numbers("uint8"), tmp_path / "file" / "cache")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_or_left_out(tmp_path, label_maps, workers):
    (label_maps / "images" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^image 1: .*1\.png") as raised:
        CachedDataset(semantic(label_maps), tmp_path / "cache", num_workers=workers)
    assert "Traceback" not in str(raised.value)
    cached = CachedDataset(semantic(label_maps), tmp_path / "cache", num_workers=workers, skip_bad=True)
    assert_equal(cached[2], semantic(label_maps)[2])
    with pytest.raises(DataError, match=r"1\.png"):
        cached[1]
    data = DataModule(semantic(label_maps), batch_size=1, cache=tmp_path / "cache", on_bad_sample="skip")
    assert len(list(data.train_dataloader())) == 3
    assert "1.png" in data.bad_samples()[0]


def test_a_full_disk_is_said_with_numbers_before_it_is_full(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs about \d+ MiB, 0 MiB are free.*data.cache=FOLDER"):
        CachedDataset(Numbers("uint8", (200, 300)), tmp_path)


def test_workers_open_the_file_by_themselves(tmp_path):
    cached = CachedDataset(Numbers("uint16", (20, 30)), tmp_path, num_workers=2)
    cached[0]
    assert pickle.loads(pickle.dumps(cached))._map is None
    loader = DataLoader(cached, batch_size=None, num_workers=2)
    for sample, expected in zip(loader, (Numbers("uint16", (20, 30))[i] for i in range(4)), strict=True):
        assert_equal(sample, expected)


def test_an_index_beyond_the_end_is_an_error(tmp_path):
    with pytest.raises(IndexError, match="4 of a dataset of 4"):
        CachedDataset(Numbers("uint8"), tmp_path)[4]

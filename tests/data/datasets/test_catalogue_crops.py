import os

import numpy as np
import pytest
import torch

from catalogues import crops_of, write_volume, write_volumes
from pixvox.configuration import compose, instantiate
from pixvox.data.datasets.catalogue_crops import CatalogueCrops, split_volumes
from pixvox.data.volumes.catalogue import Catalogue
from pixvox.data.volumes.index import build_catalogue
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.errors import DataError
from pixvox.training.train import train
from small_runs import logged

CROP = (4, 16, 16)


@pytest.fixture
def made(tmp_path):
    """Write eight volumes of four experiments, and their catalogue."""
    labels = write_volumes(tmp_path, count=8, objects=8)
    rows = ["path,label_path,experiment,grade"]
    rows += [f"images/v{i}.npy,labels/v{i}.npy,day {i % 4},{i}" for i in range(8)]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    build_catalogue(tmp_path / "table.csv", tmp_path / "c.sqlite", CROP, min_volume=6)
    return tmp_path / "c.sqlite", labels


def entries(dataset):
    return {dataset.catalogue.volumes[n].entry for n in dataset.catalogue.volumes_of(dataset.crops).tolist()}


def test_crops_are_parts_of_their_volumes_and_slivers_of_objects_are_ignored(made):
    path, labels = made
    dataset, index, slivers = CatalogueCrops(path, foreground=None), 0, 0
    for number, own in enumerate(labels):
        image = np.load(path.parent / "images" / f"v{number}.npy")
        for start, learned in crops_of(own, CROP, min_volume=6):
            sample, region = dataset[index], tuple(slice(a, a + b) for a, b in zip(start, CROP, strict=True))
            assert np.array_equal(sample.image[0].numpy(), image[region].astype(np.float32))
            ids = np.unique(own[region])[np.unique(own[region]) > 0]
            assert sample.ignore.tolist() == [number not in learned for number in ids.tolist()]
            assert np.array_equal(np.append(0, ids)[sample.layers[0].numpy()], own[region])
            assert sample.intensity_range.numpy()[0] == pytest.approx(
                np.percentile(image, (1, 99.8)), rel=1e-6
            )
            assert sample.source == dataset.source(index)
            assert sample.source.endswith(
                f"v{number}.npy[{', '.join(f'{p.start}:{p.stop}' for p in region)}]"
            )
            assert dataset.classes_in(index) == ({0} if learned else set())
            index, slivers = index + 1, slivers + int(sample.ignore.sum())
    assert index == len(dataset) and slivers > 5


@pytest.mark.parametrize("by", ["volume", "experiment"])
def test_no_volume_or_experiment_is_in_two_splits_whatever_is_chosen(made, by):
    path, _ = made
    options = {"split_by": by, "val_fraction": 0.25, "test_fraction": 0.25}
    parts = {split: CatalogueCrops(path, split, **options) for split in ("train", "val", "test")}
    found = {split: entries(part) for split, part in parts.items()}
    assert [len(own) for own in found.values()] == [4, 2, 2]
    assert set.union(*found.values()) == {f"images/v{i}.npy" for i in range(8)}
    assert sum(map(len, parts.values())) == len(CatalogueCrops(path))
    if by == "experiment":
        days = [{int(entry[8]) % 4 for entry in own} for own in found.values()]
        assert [len(own) for own in days] == [2, 1, 1]
    some = CatalogueCrops(path, "train", where="grade > 2 AND objects > 1", **options)
    assert entries(some) == {entry for entry in found["train"] if int(entry[8]) > 2}
    other = CatalogueCrops(path, "train", seed=7, **options)
    assert entries(other) != found["train"]


def test_splits_of_the_catalogue_win_and_new_volumes_move_few(tmp_path):
    write_volumes(tmp_path, count=12, size=(4, 16, 16), objects=2)

    def volumes(count, named=()):
        rows = ["path,label_path,split", *(
            f"images/v{i}.npy,labels/v{i}.npy,{'val' if i in named else ''}" for i in range(count)
        )]  # fmt: skip
        (tmp_path / "table.csv").write_text("\n".join(rows))
        build_catalogue(tmp_path / "table.csv", tmp_path / "c.sqlite", CROP)
        return Catalogue(tmp_path / "c.sqlite").volumes

    shares = {"test": 0.2, "val": 0.2}
    named = split_volumes(volumes(12, named=(3, 5)), "volume", shares, seed=0)
    assert named["val"] == {4, 6} and len(named["test"]) == 2
    first = split_volumes(volumes(10), "volume", shares, seed=0)
    later = split_volumes(volumes(12), "volume", shares, seed=0)
    assert sum(len(first[name] - later[name]) for name in first) <= 3
    with pytest.raises(DataError, match=r"2 labelled volumes cannot be parted into train and test and val"):
        split_volumes(volumes(2), "volume", shares, seed=0)
    with pytest.raises(DataError, match="together below 1"):
        split_volumes(volumes(2), "volume", {"test": 0.5, "val": 0.5}, seed=0)


def test_each_origin_has_its_own_val_and_an_experiment_stays_whole(tmp_path):
    write_volumes(tmp_path, count=10, size=(4, 16, 16), objects=2)
    rows = ["path,label_path,experiment,origin,split"]
    rows += [f"images/v{i}.npy,labels/v{i}.npy,day {i // 2},{'real' if i < 6 else 'synthetic'},"
             f"{'val' if i == 8 else ''}" for i in range(10)]  # fmt: skip
    (tmp_path / "table.csv").write_text("\n".join(rows))
    build_catalogue(tmp_path / "table.csv", tmp_path / "c.sqlite", CROP)
    volumes = Catalogue(tmp_path / "c.sqlite").volumes
    for seed in range(5):
        splits = split_volumes(volumes, "volume", {"val": 0.3}, seed)
        assert splits["val"] & {7, 8, 9, 10} == {9} and len(splits["val"]) == 3
        days = split_volumes(volumes, "experiment", {"val": 0.3}, seed)
        assert days["val"] & {7, 8, 9, 10} == {9, 10} and len(days["val"]) == 4
        assert days["val"] & {*range(1, 7)} in ({1, 2}, {3, 4}, {5, 6})
        assert all(own.isdisjoint(splits["train"]) for own in (splits["val"], splits["test"]))
    with pytest.raises(
        DataError, match="1 labelled volumes of origin real cannot be parted into train and val"
    ):
        split_volumes({n: volumes[n] for n in (1, 8, 9)}, "volume", {"val": 0.3}, 0)


def test_empty_crops_come_by_their_share(made):
    path, _ = made
    shown = CatalogueCrops(path)
    assert (shown.catalogue.crops(shown.crops).objects > 0).all()
    mixed = CatalogueCrops(path, foreground=0.9)
    assert len(mixed) == round(len(shown) / 0.9) < len(CatalogueCrops(path, foreground=None))
    assert set(shown.crops) < set(mixed.crops) and (np.diff(mixed.crops) > 0).all()
    assert not np.array_equal(mixed.crops, CatalogueCrops(path, foreground=0.9, seed=1).crops)
    with pytest.raises(DataError, match="above 0 and at most 1"):
        CatalogueCrops(path, foreground=0.0)


def test_volumes_without_labels_are_unlabelled(tmp_path):
    write_volumes(tmp_path, count=2)
    (tmp_path / "labels" / "v1.npy").unlink()
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)
    dataset = CatalogueCrops(tmp_path / "c.sqlite")
    bare = dataset.unlabelled_indices()
    assert len(bare) == 8 and bare[0] > 0
    assert not dataset[bare[0]].annotated and dataset[0].annotated


def test_volumes_without_labels_are_never_scored_and_a_held_out_experiment_keeps_its_own(made):
    path, _ = made
    for number in (0, 5):
        (path.parent / "labels" / f"v{number}.npy").unlink()
    table = path.parent / "table.csv"
    text = table.read_text().replace("labels/v0.npy", "").replace("labels/v5.npy", "")
    table.write_text(text)
    build_catalogue(table, path, CROP)
    volumes = Catalogue(path).volumes
    for seed in range(8):
        splits = split_volumes(volumes, "experiment", {"val": 0.25, "test": 0.25}, seed)
        assert not (splits["val"] | splits["test"]) & {1, 6}
        days = {name: {volumes[number].experiment for number in own} for name, own in splits.items()}
        assert sum(map(len, days.values())) == len(set().union(*days.values())) == 4


@pytest.fixture
def half_labelled(tmp_path):
    """Write four volumes, of which one has no labels; return what trains a teacher on them."""
    write_volumes(tmp_path, count=4)
    (tmp_path / "labels" / "v1.npy").unlink()
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP, min_intensity=900, min_volume=20)
    return [
        "data=catalogue", f"data.train.catalogue='{tmp_path / 'c.sqlite'}'", "data.train.val_fraction=0.3",
        "method=mean_teacher", "method.threshold=0.01", "warmup_steps=0", "unsup_rampup_steps=0",
        "image_size=[8,16,16]", "batch_size=2", "num_workers=0", "max_steps=2",
    ]  # fmt: skip


def test_a_teacher_gets_all_crops_without_labels_that_show_something(half_labelled):
    datamodule = instantiate(compose("train", half_labelled).data, "data")
    crops = datamodule.train.dataset.catalogue.select("path LIKE '%v1.npy'").tolist()
    unlabelled = datamodule.unlabelled
    assert 0 < len(unlabelled) == len(crops) < 8
    assert {unlabelled.source(i).partition("[")[0].rpartition("/")[2] for i in range(len(crops))} == {
        "v1.npy"
    }
    assert all(datamodule.train[i].annotated for i in range(len(datamodule.train)))
    assert not any(unlabelled[i].annotated for i in range(len(crops)))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_teacher_learns_from_volumes_with_and_without_labels(half_labelled, tmp_path):
    tiny = [
        "head=maskrcnn", "neck.out_channels=8", "head.box_features=8", "head.mask_channels=4", "head.mask_convs=1",
        "head.score_threshold=0.01", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]",
        "logger=none", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
    ]  # fmt: skip
    steps = logged(train([*half_labelled, *tiny], run_dir=str(tmp_path / "run")))
    assert all(step["train/supervised_loss"] > 0 for step in steps)
    assert any(step["train/unsupervised_loss"] > 0 and step["train/pseudo_instances"] > 0 for step in steps)


def test_changed_files_are_indexed_again_or_refused(made, caplog):
    path, _ = made
    before = CatalogueCrops(path)[0]
    labels = write_volume(path.parent, "v0", seed=99)
    with pytest.raises(DataError, match=r"c.sqlite is out of date: .*v0.npy has changed; index again"):
        CatalogueCrops(path, on_change="raise")
    assert len(CatalogueCrops(path, on_change="ignore"))
    dataset = CatalogueCrops(path, foreground=None)
    assert "is out of date" in caplog.text and "images/v0.npy or its label map has changed" in caplog.text
    assert dataset.catalogue.changes() == []
    shown = [len(np.unique(own)) - 1 for own in (labels[0:4, 4:20, 0:16], labels[4:8, 4:20, 0:16])]
    assert [len(dataset[i].labels) for i in (0, 4)] == shown
    assert not torch.equal(before.image, dataset[0].image)


def test_a_label_map_that_lost_an_object_since_is_noticed(made):
    path, labels = made
    dataset = CatalogueCrops(path)
    file = path.parent / "labels" / "v0.npy"
    state = file.stat()
    np.save(file, np.zeros_like(labels[0]))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(DataError, match="its label map has changed: index again"):
        dataset[0]


def test_channels_can_be_averaged_and_must_agree(tmp_path):
    labels = write_volumes(tmp_path, count=2)
    both = np.stack([labels[1], labels[1] * 3], axis=0)
    np.save(tmp_path / "images" / "v1.npy", both)
    rows = "path,label_path,axes\nimages/v0.npy,labels/v0.npy,\nimages/v1.npy,labels/v1.npy,CZYX"
    (tmp_path / "table.csv").write_text(rows)
    build_catalogue(tmp_path / "table.csv", tmp_path / "c.sqlite", CROP)
    with pytest.raises(DataError, match="volumes of 1 and 2 channels"):
        CatalogueCrops(tmp_path / "c.sqlite")
    dataset = CatalogueCrops(tmp_path / "c.sqlite", where="channels = 2", average_channels=True)
    assert dataset.metadata.in_channels == 1 and dataset[0].intensity_range.shape == (1, 2)
    (part,) = (dataset.catalogue.crops(dataset.crops[:1]).starts.tolist(),)
    region = tuple(slice(a, a + b) for a, b in zip(part[0], CROP, strict=True))
    assert np.array_equal(dataset[0].image[0].numpy(), labels[1][region] * np.float32(2))


def test_missing_chunks_and_values_that_are_no_numbers_are_ignored(tmp_path):
    labels = np.ones((4, 16, 32), dtype=np.uint8)
    for name, values in (("images", np.full(labels.shape, 3, dtype=np.float32)), ("labels", labels)):
        (tmp_path / name).mkdir()
        array = create_ome_zarr(tmp_path / name / "v.zarr", labels.shape, values.dtype, (4, 16, 8))
        values[0, 0, :2] = np.nan if name == "images" else 1
        array[:, :, :24] = values[:, :, :24]
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP, allow_missing_chunks=True)
    first, second = CatalogueCrops(tmp_path / "c.sqlite")
    assert second.ignore.tolist() == [False, True] and (second.layers[1] == 2).nonzero()[
        :, 2
    ].unique().tolist() == [*range(8, 16)]
    assert (first.layers[1] == 2).sum() == 2 and first.image.isfinite().all()
    with pytest.raises(DataError, match="never written"):
        build_catalogue(tmp_path, tmp_path / "d.sqlite", CROP)


def test_the_config_gives_the_same_batches_from_any_number_of_workers(made):
    path, _ = made
    overrides = [
        "data=catalogue", f"data.train.catalogue='{path}'", "data.train.where='grade < 6'", "batch_size=2",
        "image_size=[4,12,12]", "data.size_divisor=[4,4,4]", "data.train.val_fraction=0.4",
    ]  # fmt: skip
    datamodule = instantiate(compose("train", overrides).data, "data")
    assert entries(datamodule.train).isdisjoint(entries(datamodule.val))
    assert len(next(iter(datamodule.val_dataloader())).truths) == 1
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.images.shape == (2, 1, 4, 12, 12)
    datamodule.num_workers = 2
    assert torch.equal(next(iter(datamodule.train_dataloader())).images, batch.images)

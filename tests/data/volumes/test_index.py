import json
import logging
import multiprocessing
import os
import signal

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from catalogues import content, crops_of, write_volume, write_volumes
from pixvox.cli import run
from pixvox.data.datasets.catalogue_crops import CatalogueCrops, split_volumes
from pixvox.data.make import make_dataset
from pixvox.data.volumes import index as module
from pixvox.data.volumes import index_volume
from pixvox.data.volumes.catalogue import Catalogue
from pixvox.data.volumes.crop_grid import CropGrid
from pixvox.data.volumes.index import build_catalogue, renew_catalogue
from pixvox.data.volumes.index_source import read_entries
from pixvox.data.volumes.ome_zarr import build_pyramid, create_ome_zarr
from pixvox.data.volumes.open import open_volume
from pixvox.errors import ConfigError, DataError

CROP = (4, 16, 16)


@pytest.fixture
def small_blocks(monkeypatch):
    """Let a volume take several blocks."""
    monkeypatch.setattr(module, "BLOCK_VOXELS", 5000)


@pytest.fixture
def blocks_read(monkeypatch):
    """Note the volume of each block that is read."""
    read, whole = [], index_volume.index_block

    def noted(root, entry, options, block):
        read.append(entry.path)
        return whole(root, entry, options, block)

    monkeypatch.setattr(module, "index_block", noted)
    return read


def expected(labels, **options):
    return [
        (f"images/v{number}.npy", *crop)
        for number, own in enumerate(labels)
        for crop in crops_of(own, CROP, **options)
    ]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("overlap", "min_volume", "workers"), [(0.0, 1, 1), (0.5, 30, 1), (0.25, 8, 2)])
def test_crops_and_objects_are_those_of_brute_force(tmp_path, overlap, min_volume, workers):
    labels = write_volumes(tmp_path, count=2)
    done = build_catalogue(
        tmp_path, tmp_path / "c.sqlite", CROP, overlap, min_volume=min_volume, workers=workers
    )
    found = content(Catalogue(tmp_path / "c.sqlite"))
    assert found == expected(labels, overlap=overlap, min_volume=min_volume)
    objects = [own for _, _, own in found]
    counts = (len(objects), sum(not own for own in objects), sum(map(len, objects)))
    assert (done.crops, done.empty, done.objects) == counts and done.empty
    assert done.read == ["images/v0.npy", "images/v1.npy"] and done.written


@pytest.mark.usefixtures("small_blocks")
def test_crops_without_labels_are_empty_where_nothing_is_bright(tmp_path):
    labels, path = write_volumes(tmp_path, count=2), tmp_path / "c.sqlite"
    (tmp_path / "labels" / "v1.npy").unlink()
    image = np.load(tmp_path / "images" / "v1.npy")
    build_catalogue(tmp_path, path, CROP)
    catalogue = Catalogue(path)
    assert len(catalogue.select()) == 8 + sum(bool(own) for *_, own in expected(labels[:1]))
    done = build_catalogue(tmp_path, path, CROP, min_intensity=900, min_volume=40)
    catalogue = Catalogue(path)
    bright = [int((image[region] >= 900).sum()) for region in CropGrid(image.shape, CROP)]
    crops = catalogue.crops(range(9, 17))
    assert crops.foreground.tolist() == [count if count >= 40 else 0 for count in bright]
    assert set(crops.objects) == {-1} and 0 < (crops.foreground > 0).sum() < 8
    shown = [bool(own) for *_, own in expected(labels[:1], min_volume=40)]
    assert (np.isin(range(1, 17), catalogue.select())).tolist() == shown + (crops.foreground > 0).tolist()
    assert done.empty == 16 - len(catalogue.select())
    middle = int(np.median(crops.foreground))
    chosen = catalogue.select(f"label_path IS NULL AND foreground > {middle}")
    assert chosen.tolist() == (np.flatnonzero(crops.foreground > middle) + 9).tolist()


def test_synthetic_and_real_volumes_share_a_catalogue_and_are_told_apart(tmp_path):
    made = make_dataset(
        "nuclei3d", tmp_path / "a", num_train=2, num_val=1, image_size=[8, 20, 24], count=[2, 4],
        radius=[3.0, 4.0], format="zarr",
    )  # fmt: skip
    write_volumes(tmp_path / "lab", count=2)
    (tmp_path / "raw" / "images").mkdir(parents=True)
    np.save(tmp_path / "raw" / "images" / "r.npy", np.ones((4, 16, 16), dtype=np.uint8))
    words = [str(tmp_path / name) for name in ("lab", "a", "raw")]
    assert (
        run(
            [
                "data",
                "index",
                *words,
                "--out",
                str(tmp_path / "c.sqlite"),
                "--size",
                "4,16,16",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    catalogue = Catalogue(tmp_path / "c.sqlite")
    found = [(v.entry, v.flags["origin"], v.split) for v in catalogue.volumes.values()]
    assert found == [
        ("lab/images/v0.npy", "lab", None), ("lab/images/v1.npy", "lab", None),
        *((f"a/images/train/00000{i}.zarr", "synthetic", "train") for i in range(2)),
        ("a/images/val/000000.zarr", "synthetic", "val"), ("raw/images/r.npy", "raw", None),
    ]  # fmt: skip
    spacing = json.loads((made / "dataset.json").read_text())["voxel_size_um"]
    assert [list(v.spacing or ()) for v in catalogue.volumes.values()] == [[]] * 2 + [spacing] * 3 + [[]]
    synthetic = catalogue.select("origin = 'synthetic'", empty=True)
    assert set(catalogue.volumes_of(synthetic)) == {3, 4, 5}
    labels = np.asarray(zarr.open(made / "labels" / "train" / "000001.zarr"))
    own = [c for c in content(catalogue) if c[0] == "a/images/train/000001.zarr"]
    assert own == [("a/images/train/000001.zarr", *crop) for crop in crops_of(labels, CROP)]
    write_volume(tmp_path / "lab", "v2", seed=5)
    assert renew_catalogue(tmp_path / "c.sqlite").read == ["lab/images/v2.npy"]
    with pytest.raises(DataError, match=r"lab and .*lab names images/v0.npy twice"):
        build_catalogue([tmp_path / "lab"] * 2, tmp_path / "d.sqlite", CROP)


def test_time_points_levels_and_arrays_of_files_are_volumes_of_their_own(tmp_path):
    labels = write_volumes(tmp_path, count=2)
    movie = np.stack(labels)
    np.save(tmp_path / "movie.npy", movie * 100)
    array = create_ome_zarr(tmp_path / "p.ome.zarr", movie.shape[1:], np.uint16, (4, 16, 16), (1.0, 1.0, 1.0))
    array[:] = labels[0]
    build_pyramid(tmp_path / "p.ome.zarr", smallest=20)
    with h5py.File(tmp_path / "both.h5", "w") as file:
        file["raw"], file["ids"] = labels[1] * 7, labels[1]
    rows = [
        {"path": "movie.npy", "axes": "TZYX", "time": t, "label_path": f"labels/v{t}.npy"} for t in (0, 1)
    ]
    rows += [
        {"path": "p.ome.zarr", "level": 1, "label_path": "p.ome.zarr", "label_level": "1"},
        {"path": "both.h5", "dataset": "raw", "label_path": "both.h5", "label_dataset": "ids"},
    ]
    table, path = tmp_path / "table.json", tmp_path / "c.sqlite"
    table.write_text(json.dumps(rows))
    done = build_catalogue(table, path, CROP, where="time = 1 OR level = 1 OR dataset = 'raw'")
    assert done.read == ["both.h5[dataset=raw]", "movie.npy[time=1]", "p.ome.zarr[level=1]"]
    assert not build_catalogue(table, path, CROP, where="time = 1 OR level = 1 OR dataset = 'raw'").written
    dataset, catalogue = CatalogueCrops(path, foreground=None), Catalogue(path)
    coarse = open_volume(tmp_path / "p.ome.zarr", level=1).read((slice(None),) * 3)[0]
    images = {1: labels[1] * 100, 2: coarse, 3: labels[1] * 7}
    maps = {1: labels[1], 2: coarse, 3: labels[1]}
    for index, (_, _, objects) in enumerate(content(catalogue)):
        number = int(catalogue.volumes_of(dataset.crops)[index])
        sample, region = dataset[index], dataset.region(index)
        assert np.array_equal(sample.image[0].numpy(), images[number][region].astype(np.float32))
        assert len(sample.labels) == len(objects) == len(np.unique(maps[number][region])) - 1
    assert "movie.npy[time=1][0:4" in dataset[0].source
    tifffile.imwrite(tmp_path / "ids.tif", movie, metadata={"axes": "TZYX"}, ome=True)
    for row in rows[:2]:
        row |= {"label_path": "ids.tif", "label_time": row["time"]}
    table.write_text(json.dumps(rows))
    build_catalogue(table, path, CROP)
    both = [objects for name, _, objects in content(Catalogue(path)) if name == "movie.npy"]
    assert both == [objects for own in labels for _, objects in crops_of(own, CROP)]
    splits = split_volumes(Catalogue(path).volumes, "volume", {"val": 0.4}, seed=0)
    assert any({1, 2} <= own for own in splits.values()), "time points of a file are alike"
    table.write_text(json.dumps([{"path": "movie.npy", "time": "3 h"}]))
    with pytest.raises(DataError, match="row 1: time is '3 h'; it takes a whole number from 0"):
        build_catalogue(table, path, CROP)


def test_the_folder_says_the_spacing_that_its_files_do_not(tmp_path):
    write_volumes(tmp_path, count=1)
    (tmp_path / "dataset.json").write_text('{"voxel_size_um": [2, 0.5, 0.5], "origin": "day 1"}')
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)
    (volume,) = Catalogue(tmp_path / "c.sqlite").volumes.values()
    assert volume.spacing == (2, 0.5, 0.5) and volume.flags == {"origin": "day 1"}
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP, spacing=(3, 1, 1))
    assert Catalogue(tmp_path / "c.sqlite").volumes[1].spacing == (3, 1, 1)
    (tmp_path / "dataset.json").write_text('{"voxel_size_um": [0.5, 0.5]}')
    with pytest.raises(DataError, match=r"spacing of 2 axes, \[0.5, 0.5\]; it needs 3"):
        build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)


def test_slides_go_the_same_way(tmp_path):
    labels = [own[4] for own in write_volumes(tmp_path, count=2)]
    for number, own in enumerate(labels):
        for name in ("images", "labels"):
            np.save(tmp_path / name / f"v{number}.npy", own)
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP[1:])
    found = content(Catalogue(tmp_path / "c.sqlite"))
    assert found == [
        (f"images/v{number}.npy", *crop)
        for number, own in enumerate(labels)
        for crop in crops_of(own, CROP[1:])
    ]


def test_a_large_volume_is_never_read_whole(tmp_path, monkeypatch):
    size, most = (32, 64, 64), 0
    for name, dtype in (("images", np.uint8), ("labels", np.uint32)):
        (tmp_path / name).mkdir()
        array = create_ome_zarr(tmp_path / name / "v.ome.zarr", size, dtype, (16, 16, 16), (2.0, 1.0, 1.0))
        array[:] = np.broadcast_to(np.arange(32, dtype=dtype)[:, None, None], size)
    monkeypatch.setattr(module, "BLOCK_VOXELS", 16 * 32 * 32)
    monkeypatch.setattr(index_volume, "_SAMPLED_VALUES", 64 * 6**3)
    read = index_volume.Volume.read

    def noted(self, region):
        nonlocal most
        values = read(self, region)
        most = max(most, values.size)
        return values

    monkeypatch.setattr(index_volume.Volume, "read", noted)
    build_catalogue(tmp_path, tmp_path / "c.sqlite", (16, 32, 32))
    (volume,) = Catalogue(tmp_path / "c.sqlite").volumes.values()
    assert most == 16 * 32 * 32
    assert volume.spacing == (2.0, 1.0, 1.0)
    assert volume.intensity[0] == pytest.approx((0, 31), abs=2)


def test_only_what_has_changed_is_read_again_and_it_is_said(tmp_path, blocks_read, caplog):
    labels, path = write_volumes(tmp_path), tmp_path / "c.sqlite"
    build_catalogue(tmp_path, path, CROP)
    assert set(blocks_read) == {f"images/v{i}.npy" for i in range(3)}
    blocks_read.clear()
    state = path.stat()
    assert not build_catalogue(tmp_path, path, CROP).written
    assert blocks_read == [] and path.stat().st_mtime_ns == state.st_mtime_ns
    labels[1] = write_volume(tmp_path, "v1", seed=9)
    with caplog.at_level(logging.INFO):
        done = renew_catalogue(path)
    assert done.read == ["images/v1.npy"] and set(blocks_read) == {"images/v1.npy"}
    assert "images/v1.npy or its label map has changed since it was indexed" in caplog.text
    assert content(Catalogue(path)) == expected(labels)
    caplog.clear()
    blocks_read.clear()
    (tmp_path / "images" / "v0.npy").unlink()
    (tmp_path / "labels" / "v0.npy").unlink()
    labels.append(write_volume(tmp_path, "v3", seed=5))
    with caplog.at_level(logging.INFO):
        build_catalogue(tmp_path, path, CROP)
    assert set(blocks_read) == {"images/v3.npy"}
    assert "v3.npy is new" in caplog.text and "v0.npy is left out" in caplog.text
    assert content(Catalogue(path)) == expected(labels)[len(crops_of(labels[0], CROP)) :]


@pytest.mark.parametrize(
    "option", [{"overlap": 0.25}, {"min_volume": 9}, {"size": (4, 8, 16)}, {"cover": True}]
)
def test_every_option_that_changes_the_result_lets_all_be_read_again(tmp_path, option, caplog):
    write_volumes(tmp_path, count=1)
    options = {"size": CROP, "out": tmp_path / "c.sqlite"}
    build_catalogue(tmp_path, **options)
    assert build_catalogue(tmp_path, **options | option).read == ["images/v0.npy"]
    assert "options of the index have changed" in caplog.text


def test_a_change_that_keeps_size_and_time_is_found_in_samples(tmp_path):
    write_volumes(tmp_path, count=1)
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)
    file = tmp_path / "labels" / "v0.npy"
    state, labels = file.stat(), np.load(file)
    np.save(file, labels[::-1])
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP).read == ["images/v0.npy"]


def test_new_flags_are_written_without_reading_a_volume(tmp_path, blocks_read):
    write_volumes(tmp_path, count=2)
    table, path = tmp_path / "table.json", tmp_path / "c.sqlite"

    def build(*grades):
        rows = [
            {"path": f"images/v{i}.npy", "label_path": f"labels/v{i}.npy", "grade": grade}
            for i, grade in enumerate(grades)
        ]
        table.write_text(json.dumps(rows))
        return build_catalogue(table, path, CROP)

    build("1", "2")
    blocks_read.clear()
    assert not build("1", "2").written
    assert build("1", "3").written and blocks_read == []
    assert [volume.flags["grade"] for volume in Catalogue(path).volumes.values()] == [1, 3]


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_builder_leaves_no_catalogue_and_the_next_goes_on(tmp_path, monkeypatch):
    labels, path = write_volumes(tmp_path), tmp_path / "c.sqlite"
    whole, read = index_volume.index_block, []

    def killed(*arguments):
        if len(read) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        read.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(module, "index_block", killed)
    child = multiprocessing.get_context("fork").Process(target=build_catalogue, args=(tmp_path, path, CROP))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not path.exists()
    monkeypatch.setattr(module, "index_block", lambda *arguments: read.append(arguments) or whole(*arguments))
    build_catalogue(tmp_path, path, CROP)
    blocks = sum(len(index_volume.IndexOptions(CROP).grid(own.shape).blocks(5000)) for own in labels)
    assert len(read) == blocks - 4
    assert content(Catalogue(path)) == expected(labels)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".c.sqlite.lock",
        "c.sqlite",
        "images",
        "labels",
    ]


def test_a_builder_killed_while_it_writes_leaves_the_catalogue_that_was(tmp_path, monkeypatch):
    labels, path = write_volumes(tmp_path, count=1), tmp_path / "c.sqlite"
    build_catalogue(tmp_path, path, CROP)
    monkeypatch.setattr(module.os, "replace", lambda *paths: os.kill(os.getpid(), signal.SIGKILL))
    child = multiprocessing.get_context("fork").Process(
        target=build_catalogue, args=(tmp_path, path, CROP), kwargs={"min_volume": 30}
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert content(Catalogue(path)) == expected(labels)
    monkeypatch.undo()
    (tmp_path / ".c.sqlite.part").write_bytes(b"cut off by a power failure")
    build_catalogue(tmp_path, path, CROP, min_volume=30)
    assert content(Catalogue(path)) == expected(labels, min_volume=30)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".c.sqlite.lock",
        "c.sqlite",
        "images",
        "labels",
    ]


def test_two_builders_at_once_read_every_volume_once(tmp_path):
    labels, path, notes = write_volumes(tmp_path), tmp_path / "c.sqlite", tmp_path / "notes"
    context = multiprocessing.get_context("fork")

    def build():
        done = build_catalogue(tmp_path, path, CROP)
        with notes.open("a") as file:
            file.write(f"{len(done.read)}\n")

    builders = [context.Process(target=build) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(120)
    assert sorted(notes.read_text().split()) == ["0", "0", "3"]
    assert content(Catalogue(path)) == expected(labels)


def test_what_cannot_be_used_of_a_catalogue_is_made_again(tmp_path, caplog):
    labels, path = write_volumes(tmp_path, count=1), tmp_path / "c.sqlite"
    build_catalogue(tmp_path, path, CROP)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert build_catalogue(tmp_path, path, CROP).read == ["images/v0.npy"]
    assert "is cut off" in caplog.text and "it is made again" in caplog.text
    assert content(Catalogue(path)) == expected(labels)
    path.write_text("not mine")
    with pytest.raises(DataError, match="is no catalogue and is not replaced"):
        build_catalogue(tmp_path, path, CROP)
    assert path.read_text() == "not mine"


def test_volumes_without_labels_have_crops_without_a_number_of_objects(tmp_path):
    write_volumes(tmp_path, count=2)
    (tmp_path / "labels" / "v1.npy").unlink()
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)
    catalogue = Catalogue(tmp_path / "c.sqlite")
    bare = catalogue.select("label_path IS NULL")
    assert len(bare) == 8 and set(catalogue.crops(bare).objects) == {-1}


def test_splits_and_experiments_come_from_the_folders(tmp_path):
    for split, name in (("train", "embryo 1/a"), ("train", "embryo 2/a"), ("val", "b")):
        for kind in ("images", "labels"):
            file = tmp_path / kind / split / f"{name}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(file, np.eye(20, dtype=np.uint8))
    _, entries = read_entries([tmp_path])
    assert [(entry.split, entry.experiment) for entry in entries] == [
        ("train", "embryo 1"), ("train", "embryo 2"), ("val", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,grade\n", "names no volume"),
        ("file,grade\na.npy,1\n", "row 1 names no file in a column 'path'; its columns are file, grade"),
        ("path\na.npy\na.npy\n", "names a.npy twice"),
        ("path\n../a.npy\n", "names .*a.npy, which is outside of its root"),
        ("path,split\na.npy,training\n", "split is 'training'; it takes train, val, test"),
        ("path,depth\na.npy,3\n", "has a column 'depth' of its own"),
        ("path,grade,Grade\na.npy,3,4\n", "differ in capitals only"),
        ("path\na.npy\n", "a.npy does not exist"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        build_catalogue(tmp_path / "table.csv", tmp_path / "c.sqlite", CROP)
    assert not (tmp_path / "c.sqlite").exists()


def test_files_that_do_not_fit_are_named(tmp_path):
    write_volumes(tmp_path, count=1)
    labels = np.load(tmp_path / "labels" / "v0.npy")
    for wrong, message in (
        (labels[:5], r"the size \(9, 40, 33\), its label map .*v0.npy \(5, 40, 33\)"),
        (labels + 0.5, "labels must be whole numbers, found"),
        (labels.astype(np.int32) - 1, "found -1"),
    ):
        np.save(tmp_path / "labels" / "v0.npy", wrong)
        with pytest.raises(DataError, match=message):
            build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": (4, 4, 4, 4)}, "three for volumes, two for slides"),
        ({"size": (4, 0, 4)}, "give the lengths"),
        ({"overlap": 1.0}, r"in \[0, 1\)"),
        ({"spacing": (1.0, 1.0)}, "needs 3 values"),
        ({"percentiles": (90.0, 10.0)}, "ascending"),
        ({"min_volume": 0}, "1 or above"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(tmp_path, option, message):
    with pytest.raises(ConfigError, match=message):
        build_catalogue(tmp_path / "nowhere", tmp_path / "c.sqlite", **{"size": CROP} | option)


def test_the_command_indexes_chosen_volumes_at_awkward_paths(tmp_path, capsys):
    folder = tmp_path / "day 1, dose=2 µ"
    labels = write_volumes(folder)
    rows = ["path,label_path,grade", *(f"images/v{i}.npy,labels/v{i}.npy,{9 + i}" for i in range(3))]
    (folder / "table.csv").write_text("\n".join(rows))
    words = [
        "data",
        "index",
        str(folder / "table.csv"),
        "--out",
        str(folder / "c=1.sqlite"),
        "--size",
        "4,16,16",
    ]
    assert run([*words, "--where", "grade > 9.5", "--json", "--workers", "1"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["volumes"] == 2 and done["read"] == ["images/v1.npy", "images/v2.npy"]
    assert content(Catalogue(folder / "c=1.sqlite")) == expected(labels)[8:]
    assert run([*words, "--where", "grade > 9.5"]) == 0
    assert "2 volumes (up to date), 16 crops" in capsys.readouterr().out
    assert run([*words, "--where", "quality > 9"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "no such column: quality" in error and "path, label_path, experiment, split, grade" in error

import multiprocessing
import os
import pickle
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from catalogues import content, write_volumes
from pixvox.data.volumes import catalogue as module
from pixvox.data.volumes.catalogue import Catalogue, below, check_file
from pixvox.data.volumes.index import build_catalogue
from pixvox.errors import DataError

CROP = (4, 16, 16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a = 1, b? #é")
    write_volumes(folder)
    rows = ["path,label_path,experiment,grade,mask type"]
    rows += [f"images/v{i}.npy,labels/v{i}.npy,{'ab'[i % 2]},{i + 1},{'CP' if i else ''}" for i in range(3)]
    (folder / "table.csv").write_text("\n".join(rows))
    build_catalogue(folder / "table.csv", folder / "c.sqlite", CROP, overlap=0.5)
    return folder / "c.sqlite"


def changed(made, tmp_path, change):
    """Return a copy of the catalogue, of which some bytes are others."""
    data = bytearray(made.read_bytes())
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(change(data) or data)
    return copy


def test_damaged_facts_of_crops_are_named_with_the_repair(made, tmp_path):
    copy = changed(made, tmp_path, lambda data: None)
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("UPDATE packed SET crops = (SELECT crops FROM packed WHERE volume_id = 1)")
        connection.execute("UPDATE packed SET crops = substr(crops, 1, 9) WHERE volume_id = 3")
    with pytest.raises(DataError, match=r"damaged \(packed crops.*pixvox data index FOLDER --out"):
        Catalogue(copy).crops([1])


def test_many_crops_are_found_by_one_query_in_the_order_asked_for(made):
    catalogue = Catalogue(made)
    queries = []
    catalogue._connection().set_trace_callback(queries.append)
    ids = np.random.default_rng(0).permutation(len(catalogue))[:30] + 1
    ids[4] = ids[7]
    crops, objects = catalogue.crops(ids), catalogue.objects(ids)
    assert len(queries) == 2
    by_hand = catalogue._connection().execute(
        "SELECT crop_id, volume_id, z0, y0, x0, objects, foreground FROM crops ORDER BY 1"
    )
    every = catalogue.crops(range(1, len(catalogue) + 1))
    assert np.column_stack(list(vars(every).values())).tolist() == [list(row) for row in by_hand]
    assert every.ids.dtype == every.starts.dtype == np.int64
    for i, number in enumerate(ids.tolist()):
        alone = catalogue.crops([number])
        assert [part[i].tolist() for part in vars(crops).values()] == [
            part[0].tolist() for part in vars(alone).values()
        ]
        own, of_crop = catalogue.objects([number]), objects.crops == number
        assert own.ids.tolist() == objects.ids[of_crop].tolist()
        assert own.boxes.tolist() == objects.boxes[of_crop].tolist()
        assert crops.objects[i] == len(own.ids) and crops.foreground[i] == own.voxels.sum()
    side_by_side = catalogue.crops(range(5, 25))
    assert side_by_side.starts.tolist() == [catalogue.crops([i]).starts[0].tolist() for i in range(5, 25)]
    assert len(catalogue.crops([]).ids) == len(catalogue.objects([]).ids) == 0


def test_more_crops_than_a_query_may_take_are_found(made, monkeypatch):
    catalogue = Catalogue(made)
    expected = catalogue.objects(range(1, 100, 2))
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 7)
    assert catalogue.objects(range(1, 100, 2)).boxes.tolist() == expected.boxes.tolist()


def test_a_crop_that_there_is_not_is_named(made):
    with pytest.raises(DataError, match="has no crop 0; it has 1 to 108"):
        Catalogue(made).crops([1, 0, 3])


def test_any_sql_chooses_crops_and_empty_ones_are_left_out(made):
    catalogue = Catalogue(made)
    every, shown = catalogue.select(empty=True), catalogue.select()
    assert every.tolist() == list(range(1, 109))
    crops = catalogue.crops(every)
    assert shown.tolist() == every[crops.objects > 0].tolist()
    assert len(shown) < len(every)
    wanted = (crops.volumes >= 2) & (crops.objects >= 3)
    assert catalogue.select("grade > 1 and objects >= 3").tolist() == every[wanted].tolist()
    assert set(catalogue.crops(catalogue.select("\"mask type\" = 'CP' -- cellpose")).volumes) == {2, 3}
    assert set(catalogue.crops(catalogue.select("grade = '3' OR experiment LIKE 'b%'")).volumes) == {2, 3}
    assert catalogue.volumes[1].flags == {"grade": 1, "mask type": None}


@pytest.mark.parametrize(
    "where",
    ["grad > 2", "grade >", "json_extract(path, '$') > 1", "1); DROP TABLE crops; --", "grade > 2; SELECT 1"],
)
def test_what_is_no_condition_is_refused_with_the_columns(made, where):
    with pytest.raises(DataError, match=r"^where: .*grade, mask type"):
        Catalogue(made).select(where)
    assert len(Catalogue(made).select()) > 0


def test_a_volume_knows_its_files_and_intensities(made):
    volume = Catalogue(made).volumes[2]
    image = np.load(made.parent / "images" / "v1.npy")
    assert (volume.entry, volume.experiment, volume.size) == ("images/v1.npy", "b", (9, 40, 33))
    assert volume.path.samefile(made.parent / "images" / "v1.npy")
    assert (volume.channels, volume.dtype, volume.spacing) == (1, "uint16", None)
    assert volume.intensity[0] == pytest.approx(np.percentile(image, (1, 99.8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], "is cut off: .* bytes are there"),
        (lambda data: data[:50], "is no SQLite database"),
        (lambda data: b"path,grade\n" * 20, "is no SQLite database"),
        (
            lambda data: data.__setitem__(slice(60, 64), struct.pack(">I", 0)),
            "is of version 0, this program reads",
        ),
        (lambda data: data.__setitem__(slice(68, 72), bytes(4)), "is a SQLite database, but no catalogue"),
        (lambda data: data.__setitem__(slice(4096, None), b"x" * (len(data) - 4096)), "is damaged"),
    ],
)
def test_a_file_that_is_no_whole_catalogue_is_named_with_the_repair(made, tmp_path, change, message):
    with pytest.raises(DataError, match=rf"copy\.sqlite {message}.*pixvox data index FOLDER --out"):
        Catalogue(changed(made, tmp_path, change)).select()


def test_missing_and_empty_files_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        check_file(tmp_path / "c.sqlite")
    (tmp_path / "c.sqlite").touch()
    with pytest.raises(DataError, match="is empty"):
        check_file(tmp_path / "c.sqlite")


def test_a_disk_for_reading_only_is_read_without_a_lock_and_nothing_is_written(made, monkeypatch):
    opened = []
    connect = sqlite3.connect

    def noted(name, **options):
        opened.append(name)
        return connect(name, **options)

    monkeypatch.setattr(module.sqlite3, "connect", noted)
    before = sorted(made.parent.iterdir())
    expected = content(Catalogue(made))
    assert all(name.endswith("?mode=ro") for name in opened)
    opened.clear()
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    assert content(Catalogue(made)) == expected
    assert opened and all(name.endswith("?immutable=1") for name in opened)
    assert sorted(made.parent.iterdir()) == before


def test_a_catalogue_changes_nothing(made):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        Catalogue(made)._connection().execute("DELETE FROM crops")


def test_a_folder_of_catalogue_and_volumes_can_be_moved(made, tmp_path):
    shutil.copytree(made.parent, tmp_path / "moved")
    (moved,) = {volume.path.parent for volume in Catalogue(tmp_path / "moved" / "c.sqlite").volumes.values()}
    assert moved.samefile(tmp_path / "moved" / "images")
    shutil.move(tmp_path / "moved" / "c.sqlite", tmp_path / "c.sqlite")
    volume = Catalogue(tmp_path / "c.sqlite", root=tmp_path / "moved").volumes[1]
    assert volume.path.is_file() and volume.label_path.is_file()


@pytest.mark.parametrize("entry", ["../../etc/passwd", "/etc/passwd", "images/../../x.tif"])
def test_an_entry_that_leaves_the_root_is_refused(made, tmp_path, entry):
    copy = changed(made, tmp_path, lambda data: None)
    with sqlite3.connect(copy) as connection:
        connection.execute("UPDATE volumes SET label_path = ? WHERE volume_id = 2", (entry,))
    connection.close()
    with pytest.raises(DataError, match="outside of its root"):
        Catalogue(copy)


def test_paths_are_cleaned_and_links_in_circles_do_no_harm(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    assert below(tmp_path, "a/../loop/b.tif", Path("t")) == tmp_path / "loop" / "b.tif"


def test_a_folder_whose_links_go_in_circles_is_indexed_once(tmp_path):
    write_volumes(tmp_path, count=1)
    for name in ("images", "labels"):
        (tmp_path / name / "again").symlink_to(tmp_path / name, target_is_directory=True)
    done = build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)
    assert done.read == ["images/v0.npy"]


def test_changed_and_lost_files_are_named(tmp_path):
    write_volumes(tmp_path, count=3)
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)
    catalogue = Catalogue(tmp_path / "c.sqlite")
    assert catalogue.changes() == []
    os.utime(tmp_path / "labels" / "v0.npy", ns=(1, 1))
    (tmp_path / "images" / "v2.npy").unlink()
    assert [line.rpartition("/")[2] for line in catalogue.changes()] == [
        "v0.npy has changed",
        "v2.npy is gone",
    ]


def test_other_processes_open_it_for_themselves(made):
    catalogue = Catalogue(made)
    first = catalogue._connection()
    copy = pickle.loads(pickle.dumps(catalogue))
    assert content(copy) == content(catalogue)
    assert copy._connection() is not first and catalogue._connection() is first
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(
        target=lambda: answers.put((catalogue._connection() is first, content(catalogue)))
    )
    child.start()
    assert answers.get(timeout=60) == (False, content(catalogue))
    child.join()


def test_a_process_that_begins_later_notices_that_crops_have_other_numbers(tmp_path):
    write_volumes(tmp_path, count=2)
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP)
    used = Catalogue(tmp_path / "c.sqlite")
    before = content(Catalogue(tmp_path / "c.sqlite"))
    build_catalogue(tmp_path, tmp_path / "c.sqlite", CROP, overlap=0.5)
    assert content(used) == before
    with pytest.raises(DataError, match="was made again, with other volumes or crops, .* start it again"):
        pickle.loads(pickle.dumps(used)).crops([1])


def _read_until(done, path, known, answers):
    """Look at crops again and again, and tell how often they were what they had been."""
    rounds, opened = 0, Catalogue(path)
    first, random = content(opened), np.random.default_rng(os.getpid())
    try:
        while not done.wait(0.02) or not rounds:
            ids = random.integers(1, len(first) + 1, 16)
            starts = opened.crops(ids).starts.tolist()
            assert starts == [list(first[number - 1][1]) for number in ids]
            assert content(Catalogue(path)) in known
            rounds += 1
        answers.put(rounds)
    except Exception as error:
        answers.put(repr(error))


def test_eight_processes_read_while_one_writes(tmp_path):
    write_volumes(tmp_path, count=2, size=(4, 16, 48), objects=6)
    path, known = tmp_path / "c.sqlite", []
    for min_volume in (70, 1):
        build_catalogue(tmp_path, path, CROP, min_volume=min_volume)
        known.append(content(Catalogue(path)))
    assert known[0] != known[1]
    context = multiprocessing.get_context("fork")
    answers, done = context.Queue(), context.Event()
    readers = [context.Process(target=_read_until, args=(done, path, known, answers)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for min_volume in (70, 1):
        build_catalogue(tmp_path, path, CROP, min_volume=min_volume)
    done.set()
    rounds = [answers.get(timeout=300) for _ in readers]
    assert all(isinstance(count, int) for count in rounds), rounds

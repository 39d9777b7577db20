import os

import pytest

from pixvox.data.volumes.file_state import files_digest
from pixvox.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Ten chunks of equal size and age, and metadata."""
    for number in range(10):
        file = tmp_path / "v.zarr" / "c" / str(number) / "0"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"12345")
        os.utime(file, ns=(1_000, 5_000_000_000))
    (tmp_path / "v.zarr" / "zarr.json").write_text("{}")
    return tmp_path / "v.zarr"


def test_a_chunk_that_was_replaced_is_noticed_whatever_its_age(folder):
    before = files_digest(folder)
    assert files_digest(folder) == before
    chunk = folder / "c" / "3" / "0"
    chunk.write_bytes(b"54321")
    os.utime(chunk, ns=(1_000, 4_000_000_000))  # older than the others, of their size
    assert files_digest(folder) != before


def test_a_chunk_that_moved_or_is_gone_is_noticed(folder):
    before = files_digest(folder)
    (folder / "c" / "3" / "0").rename(folder / "c" / "3" / "1")
    moved = files_digest(folder)
    (folder / "c" / "3" / "1").unlink()
    assert len({before, moved, files_digest(folder)}) == 3


def test_results_within_the_folder_are_left_out(folder):
    before = files_digest(folder, apart=folder / "labels")
    (folder / "labels").mkdir()
    (folder / "labels" / "a").write_text("new")
    assert files_digest(folder, apart=folder / "labels") == before != files_digest(folder)


def test_of_many_files_names_folders_and_some_are_looked_at(folder, caplog):
    caplog.set_level("INFO", "pixvox")
    before = files_digest(folder, most=4)
    assert "v.zarr has 11 files; changes of one in 3 and of all folders are noticed" in caplog.text
    chunk = folder / "c" / "1" / "0"  # not one of those
    new = chunk.with_name("new")
    new.write_bytes(b"54321")
    new.replace(chunk)  # as Zarr writes
    assert files_digest(folder, most=4) != before
    before = files_digest(folder, most=4)
    (folder / "zarr.json").write_text("{ }")
    assert files_digest(folder, most=4) != before


def test_a_file_has_a_digest_and_nothing_has_none(folder):
    assert files_digest(folder / "zarr.json") != files_digest(folder / "c" / "1" / "0")
    with pytest.raises(DataError, match="does not exist"):
        files_digest(folder / "b")

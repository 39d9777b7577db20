import io
import os
import stat
import tarfile
import zipfile

import pytest

from pixvox.data.archives import unpack
from pixvox.errors import DataError

GOOD = {"top/a.txt": b"a" * 300, "top/deep/b.txt": b"b" * 5, "other.txt": b"c"}


def write_zip(path, files, links=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would clean it
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return path


def write_tar(path, files, links=(), kind=tarfile.SYMTYPE):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


WRITERS = {"a.zip": write_zip, "a.tar.gz": write_tar}


def listing(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".lock")
    )


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_is_unpacked_and_its_tops_are_returned(tmp_path, name):
    archive = WRITERS[name](tmp_path / name, GOOD)
    out = tmp_path / "out"
    assert unpack(archive, out) == [out / "other.txt", out / "top"]
    assert listing(out) == ["other.txt", "top", "top/a.txt", "top/deep", "top/deep/b.txt"]
    assert (out / "top/deep/b.txt").read_bytes() == b"bbbbb"


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_of_the_folder_itself_is_unpacked(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    if name == "a.zip":
        archive = write_zip(tmp_path / name, {"./": b"", "./a.txt": b"a"})
    else:
        archive = tmp_path / name
        with tarfile.open(archive, "w:gz") as opened:
            opened.add(tmp_path / "in", ".")
    assert unpack(archive, tmp_path / "out") == [tmp_path / "out" / "a.txt"]


@pytest.mark.parametrize("name", WRITERS)
def test_an_entry_that_is_file_and_folder_at_once_is_an_error(tmp_path, name):
    archive = WRITERS[name](tmp_path / name, {"a": b"a", "a/b": b"b"})
    with pytest.raises(DataError, match="a file to one and a folder to another"):
        unpack(archive, tmp_path / "out")


def test_a_file_in_the_place_of_a_folder_is_an_error_and_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "top").write_text("mine")
    with pytest.raises(DataError, match="what is there already"):
        unpack(write_zip(tmp_path / "a.zip", GOOD), tmp_path / "out")
    assert (tmp_path / "out" / "top").read_text() == "mine"


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("evil", ["../evil", "top/../../evil", "/evil", "C:/evil", "top\\..\\..\\evil", ".."])
def test_entries_that_lead_out_are_refused_before_anything_is_written(tmp_path, writer, evil):
    archive = writer(tmp_path / "a.bin", {**GOOD, evil: b"evil"})
    with pytest.raises(DataError, match="leads out of the folder.*nothing was unpacked"):
        unpack(archive, tmp_path / "out")
    assert listing(tmp_path) == ["a.bin", "out"]
    assert not os.path.exists("/evil")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "a.txt"])
@pytest.mark.parametrize("kind", ["zip", "symlink", "hard link"])
def test_links_are_refused(tmp_path, kind, target):
    links = [("top/link", target), ("top/link/evil", target)]
    if kind == "zip":
        archive = write_zip(tmp_path / "a.bin", GOOD, links)
    else:
        types = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}
        archive = write_tar(tmp_path / "a.bin", GOOD, links, types[kind])
    with pytest.raises(DataError, match="'top/link' is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert listing(tmp_path) == ["a.bin", "out"]


def test_devices_are_refused(tmp_path):
    archive = write_tar(tmp_path / "a.tar", {}, [("device", "")], tarfile.CHRTYPE)
    with pytest.raises(DataError, match="device"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_an_archive_that_expands_a_thousandfold_is_refused(tmp_path, writer):
    archive = writer(tmp_path / "a.bin", {"zeros": bytes(20_000_000)})
    with pytest.raises(DataError, match="claims to hold 20 MB, more than 500 times"):
        unpack(archive, tmp_path / "out")
    assert listing(tmp_path / "out") == []
    assert unpack(archive, tmp_path / "out", max_expansion=2000)[0].stat().st_size == 20_000_000


def test_an_entry_that_is_larger_than_it_says_is_stopped(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a": os.urandom(5000)})
    content = archive.read_bytes()
    lies = content.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(lies)
    with pytest.raises(DataError, match="larger than it says|damaged"):
        unpack(archive, tmp_path / "out")
    assert "a" not in listing(tmp_path / "out")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_archive_puts_nothing_in_its_place(tmp_path, name, damage):
    archive = WRITERS[name](tmp_path / name, {"top/a": os.urandom(3000), "top/b": os.urandom(3000)})
    content = bytearray(archive.read_bytes())
    if damage == "flip":
        content[2000] ^= 1
    archive.write_bytes({"cut": content[:4000], "flip": content, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"download it again|damaged"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "top").exists()


def test_unpacking_continues_where_it_was_interrupted(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "a.zip", {f"top/{i}": bytes([i]) * 100 for i in range(6)})
    opened, whole = [], zipfile.ZipFile.open

    def breaks(self, info, *arguments, **options):
        opened.append(info.filename)
        if len(opened) == 4:
            raise KeyboardInterrupt
        return whole(self, info, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", breaks)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "top").exists()
    unpack(archive, tmp_path / "out")
    assert opened == [f"top/{i}" for i in (0, 1, 2, 3, 3, 4, 5)]
    assert listing(tmp_path / "out") == ["top", *(f"top/{i}" for i in range(6))]


def test_a_folder_of_another_archive_is_added_to(tmp_path):
    for name, file in (("a.zip", "top/a"), ("b.zip", "top/b")):
        unpack(write_zip(tmp_path / name, {file: b"1"}), tmp_path / "out")
    assert listing(tmp_path / "out") == ["top", "top/a", "top/b"]

import hashlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pixvox.data.download import RemoteFile, download
from pixvox.errors import DataError
from web import serve

CONTENT = bytes(range(256)) * 40
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web():
    with serve({"/a.bin": CONTENT, "/mirror/a.bin": CONTENT}) as server:
        yield server


def get(web, folder, checksum=MD5, paths=("/a.bin",), **options):
    file = RemoteFile("a.bin", tuple(web.url + path for path in paths), checksum)
    return download(file, folder, wait=0, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_nothing_else_is_left(web, tmp_path):
    for _ in range(2):
        assert get(web, tmp_path / "deep").read_bytes() == CONTENT
    assert web.asked == [("/a.bin", None)]
    assert names(tmp_path / "deep") == ["a.bin"]


@pytest.mark.parametrize("checksum", [MD5, None])
def test_a_download_that_breaks_off_goes_on_where_it_stopped(web, tmp_path, checksum):
    web.cuts = [1000, 2000]
    assert get(web, tmp_path, checksum).read_bytes() == CONTENT
    assert web.asked == [("/a.bin", None), ("/a.bin", "bytes=1000-"), ("/a.bin", "bytes=3000-")]


def test_a_server_without_ranges_starts_again(web, tmp_path):
    web.ranges, web.cuts = False, [1000]
    assert get(web, tmp_path).read_bytes() == CONTENT
    assert len(web.asked) == 2


def test_an_answer_that_begins_elsewhere_than_asked_is_not_joined_on(web, tmp_path):
    web.off_by, web.cuts = 7, [1000]
    assert get(web, tmp_path, checksum=None).read_bytes() == CONTENT
    assert [wanted for _, wanted in web.asked] == [None, "bytes=1000-", None]


def test_what_arrived_before_the_process_ended_is_kept_and_never_taken_for_complete(web, tmp_path):
    web.cuts = [1000] + [0] * 9
    with pytest.raises(DataError, match=r"a\.bin could not be downloaded.*after 1000 of 10240 bytes.*kept"):
        get(web, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin.part").stat().st_size == 1000
    web.asked.clear()
    web.cuts = []
    assert get(web, tmp_path).read_bytes() == CONTENT
    assert web.asked == [("/a.bin", "bytes=1000-")]
    assert names(tmp_path) == ["a.bin"]


def test_a_part_of_an_older_file_is_not_continued(web, tmp_path):
    web.files["/a.bin"] = b"x" * 5000
    web.cuts = [1000] + [0] * 9
    with pytest.raises(DataError):
        get(web, tmp_path, checksum=None)
    web.files["/a.bin"], web.cuts = CONTENT, []
    assert get(web, tmp_path, checksum=None).read_bytes() == CONTENT


def test_a_part_that_nobody_vouches_for_is_not_continued(web, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"?" * 500)
    assert get(web, tmp_path, checksum=None).read_bytes() == CONTENT
    assert web.asked == [("/a.bin", None)]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_that_is_complete_or_too_long_needs_no_luck(web, tmp_path, extra):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + extra)
    assert get(web, tmp_path).read_bytes() == CONTENT
    assert len(web.asked) == (2 if extra else 1)


def test_a_file_with_a_wrong_sum_is_removed_and_the_mirror_asked(web, tmp_path):
    web.files["/a.bin"] = b"damaged"
    assert get(web, tmp_path, paths=("/a.bin", "/mirror/a.bin")).read_bytes() == CONTENT
    web.files["/mirror/a.bin"] = b"damaged too"
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DataError, match=f"another md5 sum than {MD5[4:]} and was removed unused"):
        get(web, tmp_path, paths=("/a.bin", "/mirror/a.bin"))
    assert names(tmp_path) == []


def test_a_file_that_was_damaged_since_is_fetched_again(web, tmp_path):
    get(web, tmp_path).write_bytes(b"damaged")
    assert get(web, tmp_path).read_bytes() == CONTENT


def test_a_missing_file_is_asked_for_once_and_a_busy_server_again(web, tmp_path):
    assert get(web, tmp_path, paths=("/gone", "/mirror/a.bin")).read_bytes() == CONTENT
    assert [path for path, _ in web.asked] == ["/gone", "/mirror/a.bin"]
    (tmp_path / "a.bin").unlink()
    web.statuses = [503, 503]
    assert get(web, tmp_path).read_bytes() == CONTENT
    with pytest.raises(DataError, match="HTTP Error 404"):
        get(web, tmp_path / "b", paths=("/gone",))


def test_without_a_published_sum_the_first_one_is_noted_and_checked(web, tmp_path):
    path = get(web, tmp_path, checksum=None)
    assert (tmp_path / "a.bin.sha256").read_text() == f"{SHA256}  a.bin\n"
    path.unlink()
    web.files["/a.bin"] = CONTENT[::-1]
    with pytest.raises(DataError, match=f"another sha256 sum than {SHA256}"):
        get(web, tmp_path, checksum=None)
    assert not path.exists()


def test_two_processes_at_once_make_one_download(web, tmp_path):
    web.delay = 0.5
    program = (
        "import sys; from pixvox.data.download import RemoteFile, download;"
        f"download(RemoteFile('a.bin', ({web.url + '/a.bin'!r},), {MD5!r}), {str(tmp_path)!r})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(web.asked) == 1
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_full_disk_is_seen_before_it_is_full(web, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(DataError, match=r"a\.bin needs 10\.2 kB in .* where 5 kB are free"):
        get(web, tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(DataError, match="only http and https"):
        download(RemoteFile("a", ("file:///etc/passwd",)), tmp_path)


def test_the_note_of_a_part_names_its_address(web, tmp_path):
    web.cuts = [10] + [0] * 9
    with pytest.raises(DataError):
        get(web, tmp_path)
    assert json.loads((tmp_path / "a.bin.part.json").read_text())["url"] == web.url + "/a.bin"

import hashlib
import os

import pytest

from pixvox import files
from pixvox.errors import WeightsError
from pixvox.files import check_sum, sum_path, summed_file


def write(path, content):
    with summed_file(path) as part:
        part.write_bytes(content)
    return path


def test_sum_has_the_form_of_sha256sum_and_nothing_else_is_left(tmp_path):
    path = write(tmp_path / "a b.bin", b"one")
    assert sum_path(path).read_text() == f"{hashlib.sha256(b'one').hexdigest()}  a b.bin\n"
    assert {file.name for file in tmp_path.iterdir()} == {"a b.bin", "a b.bin.sha256"}


def test_changed_file_is_refused_with_its_repair(tmp_path):
    path = write(tmp_path / "a.bin", b"one")
    check_sum(path)
    path.write_bytes(b"onf")
    with pytest.raises(WeightsError, match=r"a\.bin: damaged.*Copy the file again.*remove .*a\.bin\.sha256"):
        check_sum(path)
    sum_path(path).write_bytes(b"")
    with pytest.raises(WeightsError, match="damaged"):
        check_sum(path)
    sum_path(path).unlink()
    check_sum(path)


def test_block_that_fails_leaves_the_old_file_with_its_sum(tmp_path):
    path = write(tmp_path / "a.bin", b"one")
    with pytest.raises(TypeError):
        write(path, "text")
    assert path.read_bytes() == b"one"
    assert sum_path(path).exists()
    check_sum(path)


def test_process_that_ends_before_the_new_sum_leaves_no_old_one(tmp_path, monkeypatch):
    path = write(tmp_path / "a.bin", b"one")
    replace = files.os.replace

    def killed(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr("pixvox.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path, b"two")
    assert path.read_bytes() == b"two"
    check_sum(path)


def test_file_that_is_replaced_while_it_is_checked_is_not_damaged(tmp_path, monkeypatch):
    path = write(tmp_path / "a.bin", b"one")
    digest = files._digest

    def replaced(checked):
        monkeypatch.setattr("pixvox.files._digest", digest)
        write(path, b"two")
        return digest(checked)

    monkeypatch.setattr("pixvox.files._digest", replaced)
    check_sum(path)


def test_summed_content_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        act = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, n=name, act=act: done.append(n) or act(*given))
    with summed_file(tmp_path / "weights.bin") as part:
        part.write_bytes(b"weights")
    assert done[:2] == ["fsync", "replace"]

"""What tells that a file, or an array in a folder of files, is not what it was."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pixvox.errors import DataError

log = logging.getLogger("pixvox")

MOST_FILES = 100_000
"""Files of a folder whose sizes and times are looked at: as many as take seconds, not minutes."""

_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


def file_state(path: str | Path) -> list[int]:
    """Return bytes, time of the last change in nanoseconds, and number of files; none of them is read.

    Raises:
        DataError: If there is no such file or folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "a.npy"
        >>> _ = file.write_bytes(b"12345")
        >>> file_state(file)[0], file_state(file.parent)[::2]
        (5, [5, 1])
    """
    size, changed, count = 0, 0, 0
    for file in _files(Path(path)):
        stat = file.stat()
        size, changed, count = size + stat.st_size, max(changed, stat.st_mtime_ns), count + 1
    return [size, changed, count]


def files_digest(path: str | Path, apart: Path | None = None, most: int = MOST_FILES) -> str:
    """Return a sum over names, sizes and times of a file or of all files in a folder; none of them is read.

    Unlike ``file_state``, it tells a file that was replaced by an older one of its size. Of a folder with more than
    ``most`` files, all names and the times of all folders are in it (a file that is replaced or renamed changes that of
    its folder), and sizes and times of every few files; the log says so.

    Args:
        path: File or folder.
        apart: Folder below it that is left out, such as one for results.
        most: Files whose sizes and times are looked at.

    Raises:
        DataError: If there is no such file or folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "a.npy"
        >>> _ = file.write_bytes(b"12345")
        >>> before = files_digest(file.parent)
        >>> _ = file.write_bytes(b"123456")
        >>> files_digest(file.parent) == before
        False
    """
    path = Path(path)
    left_out = None if apart is None else os.path.relpath(apart.resolve(), path.resolve())
    files = sorted(
        file for file in _files(path) if left_out in (None, ".") or path / left_out not in file.parents
    )
    step = max(1, -(-len(files) // most))
    if step > 1:
        log.info(
            "%s has %d files; changes of one in %d and of all folders are noticed", path, len(files), step
        )
    digest = hashlib.sha256()
    for number, file in enumerate(files):
        name = file.relative_to(path).as_posix()
        stat = file.stat() if number % step == 0 or _is_metadata(file) else None
        digest.update(f"{name}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    if step > 1:
        for folder in sorted({file.parent for file in files}):
            digest.update(f"{folder.relative_to(path).as_posix()}\0{folder.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def sampled_checksum(path: str | Path) -> str:
    """Return a sum over the size of a file and 16 of its parts, or over some files of a folder and the names of all.

    A whole volume of hundreds of gigabytes would take an hour to read. A change of a few values that keeps the size is
    told by ``file_state``.

    Raises:
        DataError: If there is no such file or folder, or it cannot be read.
    """
    path = Path(path)
    files = sorted(_files(path))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n".encode())
    described = [file for file in files if _is_metadata(file)]
    some = files[:: max(1, len(files) // _SAMPLES)]
    for file in dict.fromkeys([*described, *some]):
        _add_samples(digest, file, _SAMPLES if len(files) == 1 else 1)
    return digest.hexdigest()


def _is_metadata(file: Path) -> bool:
    return file.suffix == ".json" or file.name.startswith(".z")


def _add_samples(digest: hashlib._Hash, file: Path, count: int) -> None:
    try:
        with file.open("rb") as stream:
            last = max(0, file.stat().st_size - _SAMPLE_BYTES)
            for number in range(count if last else 1):
                stream.seek(last * number // max(1, count - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error


def _files(path: Path) -> Iterator[Path]:
    """Yield the files of an array, which is a file or a folder of files."""
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise DataError(f"{path} does not exist")
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in names)

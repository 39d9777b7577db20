"""What tells that a file, or an array in a folder of files, is not what it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pixvox.errors import DataError

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
    described = [file for file in files if file.suffix == ".json" or file.name.startswith(".z")]
    some = files[:: max(1, len(files) // _SAMPLES)]
    for file in dict.fromkeys([*described, *some]):
        _add_samples(digest, file, _SAMPLES if len(files) == 1 else 1)
    return digest.hexdigest()


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

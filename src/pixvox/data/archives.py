"""Unpack archives that strangers made: every entry is checked before the first is written."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pixvox.data.download import check_space, in_bytes, locked
from pixvox.errors import DataError

logger = logging.getLogger(__name__)

MAX_EXPANSION = 500.0
"""Bytes unpacked per byte of archive that are believed; deflate reaches 1032 on zeros, images 1, labels 100."""

_CHUNK = 1 << 20

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # a password
)


@dataclass(frozen=True)
class _Entry:
    """A file or folder of an archive."""

    path: PurePosixPath
    size: int
    open: Callable[[], Any] | None


def unpack(archive: str | Path, folder: str | Path, max_expansion: float = MAX_EXPANSION) -> list[Path]:
    """Unpack a zip or tar archive below ``folder``, wholly or not at all.

    The files are written to ``.NAME.unpacking`` inside ``folder`` and move to their places when all are
    there, whole folders at once, so a folder that is in its place is complete. After an interruption the next
    call continues. Several processes may call this at once.

    Args:
        archive: The archive, ``.zip`` or ``.tar`` with any compression that Python reads.
        folder: Where to; made when missing.
        max_expansion: Bytes unpacked per byte of archive that are allowed.

    Returns:
        What stands at the top of the archive, where it is now.

    Raises:
        DataError: If an entry is a link or a device, or leaves the folder, if there is more in it than
            ``max_expansion`` allows or the disk has room for, or if the archive is damaged.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / archive.name), _entries(archive) as (entries, check_rest):
        total = sum(entry.size for entry in entries)
        packed = archive.stat().st_size
        if total > max_expansion * packed:
            raise DataError(
                f"{archive} of {in_bytes(packed)} claims to hold {in_bytes(total)}, more than {max_expansion:g} times "
                "as much; nothing was unpacked. If you trust it, unpack it yourself"
            )
        partial = folder / f".{archive.name}.unpacking"
        partial.mkdir(exist_ok=True)
        present = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        check_space(folder, max(0, total - present), f"unpacking {archive.name}")
        logger.info("unpacking %s: %d entries, %s", archive, len(entries), in_bytes(total))
        for entry in entries:
            _write(entry, partial, archive)
        check_rest()
        tops = sorted({entry.path.parts[0] for entry in entries})
        for top in tops:
            _move(partial / top, folder / top)
        shutil.rmtree(partial)
    return [folder / top for top in tops]


@contextmanager
def _entries(archive: Path) -> Iterator[tuple[list[_Entry], Callable[[], None]]]:
    """Open an archive; give its entries, checked, and what compares the sum at its end, once they are read."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                infos = [info for info in opened.infolist() if not _is_top(info.filename)]
                yield [_zip_entry(opened, info, archive) for info in infos], lambda: None
        elif tarfile.is_tarfile(archive):
            with _decompressed(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as unrolled:
                members = [
                    info for info in unrolled.getmembers() if not (info.isdir() and _is_top(info.name))
                ]
                yield [_tar_entry(unrolled, info, archive) for info in members], lambda: _exhaust(stream)
        else:
            raise DataError(
                f"{archive} is no zip or tar archive, or it is cut off; remove it and download it again"
            )
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(
            f"{archive}: an entry is a file to one and a folder to another, or to what is there already ({error}); "
            "unpack it into an empty folder, or download it again"
        ) from error
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of a decompressor
            raise
        raise DataError(f"{archive} is damaged ({error}); remove it and download it again") from error


def _decompressed(archive: Path) -> Any:
    with archive.open("rb") as file:
        start = file.read(6)
    openers: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"BZh": bz2.open,
        b"\xfd7zXZ\0": lzma.open,
    }
    opener = next((opener for magic, opener in openers.items() if start.startswith(magic)), open)
    return opener(archive, "rb")


def _exhaust(stream: Any) -> None:
    while stream.read(_CHUNK):
        pass


def _zip_entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> _Entry:
    mode = info.external_attr >> 16
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
        raise _refused(archive, info.filename, "is a link or a device")
    path = _inside(info.filename, archive)
    if info.is_dir():
        return _Entry(path, 0, None)
    return _Entry(path, info.file_size, lambda: opened.open(info))


def _tar_entry(opened: tarfile.TarFile, info: tarfile.TarInfo, archive: Path) -> _Entry:
    path = _inside(info.name, archive)
    if info.isdir():
        return _Entry(path, 0, None)
    if not info.isreg():
        raise _refused(archive, info.name, "is a link or a device")

    def content() -> Any:
        stream = opened.extractfile(info)
        if stream is None:
            raise DataError(f"{archive}: {info.name} has no content")
        return stream

    return _Entry(path, info.size, content)


def _is_top(name: str) -> bool:
    """Tell whether an entry is the folder itself, as ``tar -c .`` writes it."""
    return name in (".", "./")


def _inside(name: str, archive: Path) -> PurePosixPath:
    """Return the path of an entry; refuse one that could lead out of the folder, on any system."""
    path = PurePosixPath(name)
    # A colon would be a drive or a stream on Windows, a backslash a separator.
    if (
        path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or "\\" in name
        or ":" in name
        or "\0" in name
    ):
        raise _refused(archive, name, "leads out of the folder that it is unpacked to")
    return path


def _refused(archive: Path, name: str, why: str) -> DataError:
    return DataError(f"{archive}: the entry {name!r} {why}; nothing was unpacked. Do not trust this archive")


def _write(entry: _Entry, partial: Path, archive: Path) -> None:
    """Write one entry, unless an earlier call has; a file that has its name is complete."""
    place = partial / entry.path
    if entry.open is None:
        place.mkdir(parents=True, exist_ok=True)
        return
    if place.is_file() and place.stat().st_size == entry.size:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    growing = place.with_name(place.name + ".part")
    written = 0
    with entry.open() as source, growing.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.size:
                raise DataError(f"{archive}: {entry.path} is larger than it says; the archive is not sound")
            sink.write(chunk)
    if written != entry.size:
        raise DataError(
            f"{archive}: {entry.path} ends after {written} of {entry.size} bytes; download it again"
        )
    os.replace(growing, place)


def _move(source: Path, target: Path) -> None:
    """Move a file or folder to its place; what is there already is kept beside what comes."""
    if source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir()):
            _move(child, target / child.name)
        return
    os.replace(source, target)

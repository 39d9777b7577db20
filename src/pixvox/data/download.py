"""Fetch files over HTTP: resumed where they broke off, checked before use, by one process at a time."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pixvox.errors import DataError
from pixvox.files import sum_path, whole_file

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_SPARE = 100 << 20
"""Bytes that are left free on the disk."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web.

    Args:
        name: Name on the disk.
        urls: Where it is, the mirrors after the first in the order in which they are tried.
        checksum: ``"md5:..."`` or ``"sha256:..."`` as published; None when nobody publishes one.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str | None = None


def download(
    file: RemoteFile, folder: str | Path, attempts: int = 5, wait: float = 2.0, timeout: float = 60.0
) -> Path:
    """Fetch a file unless it is there already, and return its path.

    What has arrived lies in ``NAME.part`` until it is complete and its sum is right: a download that was cut
    off goes on where it stopped when the server knows ranges, and starts again when it does not or when its
    file has changed. A file with a wrong sum is removed and the next mirror tried. Without a published sum
    the SHA-256 of the first download is noted in ``NAME.sha256`` and checked from then on. Several processes
    may call this at once: one downloads, the others wait.

    Args:
        file: What to fetch.
        folder: Where to; made when missing.
        attempts: Tries per mirror that may bring nothing new; whatever arrives starts the count again.
        wait: Seconds before the second try, doubled for each further one.
        timeout: Seconds without an answer that end a try.

    Raises:
        DataError: If no mirror gives the right file, or the disk has too little room.
    """
    target = Path(folder) / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        checksum = file.checksum or _noted_sum(target)
        if target.exists() and _has_sum(target, checksum):
            return target
        problems = []
        for url in file.urls:
            if not url.startswith(("http://", "https://")):
                raise DataError(f"{url}: only http and https addresses can be downloaded")
            try:
                _retrieve(url, target, checksum, _Resuming(target, checksum, attempts, wait, timeout))
            except (OSError, ValueError, http.client.HTTPException) as error:
                if isinstance(error, DataError):
                    raise
                problems.append(f"{url}: {error or type(error).__name__}")
                logger.warning("%s", problems[-1])
                continue
            if file.checksum is None:
                _note_sum(target)
            return target
    raise DataError(
        f"{file.name} could not be downloaded. {'; '.join(problems)}. Try again later (what has arrived is kept "
        f"and continued), name another mirror, or put the file at {target} yourself"
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on ``path``; a process that dies leaves no lock behind."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for another process", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_space(folder: Path, wanted: int, what: str) -> None:
    """Refuse to start what the disk has no room for.

    Raises:
        DataError: If less than ``wanted`` bytes (and a little) are free.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted + _SPARE:
        raise DataError(
            f"{what} needs {in_bytes(wanted)} in {folder}, where {in_bytes(free)} are free; make room, or choose "
            "another folder"
        )


def in_bytes(count: float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> in_bytes(19_336_861_798)
        '19.3 GB'
    """
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _retrieve(url: str, target: Path, checksum: str | None, downloader: Any) -> None:
    """Let pooch check the sum before the file gets its name."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        pooch.retrieve(url, checksum, fname=target.name, path=target.parent, downloader=downloader)
    except DataError:
        raise
    except ValueError as error:
        if checksum is None:
            raise
        raise ValueError(
            f"the file has another {checksum.partition(':')[0]} sum than {checksum.partition(':')[2]} and was "
            "removed unused"
        ) from error


def _has_sum(path: Path, checksum: str | None) -> bool:
    import pooch

    if checksum is None:
        return True
    kind, _, value = checksum.partition(":")
    if pooch.file_hash(str(path), alg=kind) == value.lower():
        return True
    logger.warning("%s has another %s sum than %s and is downloaded again", path, kind, value)
    path.unlink()
    return False


def _noted_sum(target: Path) -> str | None:
    try:
        value = sum_path(target).read_text().partition(" ")[0].strip().lower()
    except OSError:
        return None
    return f"sha256:{value}" if len(value) == 64 else None


def _note_sum(target: Path) -> None:
    import pooch

    digest = pooch.file_hash(str(target), alg="sha256")
    with whole_file(sum_path(target)) as part:
        part.write_text(f"{digest}  {target.name}\n")
    logger.info("%s: nobody publishes its sum; sha256 %s is noted beside it", target, digest)


class _Resuming:
    """Pooch's downloader: collects the file in ``NAME.part`` over as many connections as it takes."""

    def __init__(
        self, target: Path, checksum: str | None, attempts: int, wait: float, timeout: float
    ) -> None:
        self.part = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.checksum = checksum
        self.attempts, self.wait, self.timeout = attempts, wait, timeout

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        logger.info("downloading %s", url)
        failures = 0
        while True:
            before = self._size()
            try:
                self._transfer(url)
                break
            except HTTPError as error:
                if error.code < 500 and error.code not in (408, 416, 429):  # asking again changes nothing
                    raise
                problem: Exception = error
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                    raise DataError(f"{self.part} cannot be written: {error.strerror}") from error
                problem = error
            failures = 1 if self._size() > before else failures + 1
            if failures >= self.attempts:
                raise problem
            logger.warning("%s: %s; trying again", url, problem)
            time.sleep(self.wait * 2 ** (failures - 1))
        self.note.unlink(missing_ok=True)
        os.replace(self.part, output_file)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self, url: str) -> None:
        """Continue over one connection; raises ``OSError`` when it ends early."""
        request = Request(url, headers={"User-Agent": "pixvox", "Accept-Encoding": "identity"})
        have = self._size() if self._may_continue(url, request) else 0
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            response = urlopen(request, timeout=self.timeout)
        except HTTPError as error:
            if error.code == 416 and have:  # nothing is left to send, or the file has become shorter
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                    return
                self.part.unlink()
            raise
        with response:
            start = self._start(response, have)
            length = response.headers.get("Content-Length")
            total = start + int(length) if length is not None else None
            if total is not None:
                check_space(self.part.parent, total - start, self.part.stem)
            if start == 0:
                self._remember(url, response)
            with (
                self.part.open("r+b" if start else "wb") as part,
                _progress(self.part.stem, start, total) as seen,
            ):
                part.seek(start)
                while chunk := response.read(_CHUNK):
                    part.write(chunk)
                    seen(len(chunk))
            if total is not None and self._size() != total:
                raise ConnectionError(f"the connection ended after {self._size()} of {total} bytes")

    def _start(self, response: Any, have: int) -> int:
        """Return where the answer begins; a server that knows no ranges begins at 0."""
        if response.status != 206:
            return 0
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            self.part.unlink(missing_ok=True)
            raise ConnectionError(f"the server answered with {response.headers.get('Content-Range')}")
        return have

    def _may_continue(self, url: str, request: Request) -> bool:
        """Tell whether the part is of the same file: its sum will show, or the server says by its validator."""
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            note = {}
        if note.get("url") == url and note.get("validator"):
            request.add_header("If-Range", note["validator"])
            return True
        return self.checksum is not None

    def _remember(self, url: str, response: Any) -> None:
        tag = response.headers.get("ETag", "")
        validator = (
            tag if tag.startswith('"') else response.headers.get("Last-Modified")
        )  # weak tags do not serve
        with whole_file(self.note) as part:
            part.write_text(json.dumps({"url": url, "validator": validator}))


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Any]:
    """Show a bar on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(file=sys.stderr), disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.advance(task, count)

"""Files that appear whole or not at all, and sums that tell when one was damaged since."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixvox.errors import WeightsError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes its name when the block ends well, else it is removed.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "notes.txt"
        >>> with whole_file(path) as part:
        ...     _ = part.write_text("done")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('done', 1)
    """
    path = Path(path)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Like ``whole_file`` for a folder, which is made inside the block; what had the name before is removed last.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "notes"
        >>> with whole_folder(path) as part:
        ...     part.mkdir()
        >>> [folder.name for folder in path.parent.iterdir()]
        ['notes']
    """
    path = Path(path)
    part, former = (path.with_name(f".{os.getpid()}.{kind}{path.name}") for kind in ("", "former."))
    try:
        yield part
        if path.exists():
            os.replace(path, former)
        try:
            os.replace(part, path)
        except OSError:
            if former.exists():
                os.replace(former, path)
            raise
    finally:
        for left in (part, former):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed left of files they were writing; nobody else may write there now.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for name in (".123.last.ckpt", "last.ckpt"):
        ...     (folder / name).touch()
        >>> remove_parts(folder)
        >>> [path.name for path in folder.iterdir()]
        ['last.ckpt']
    """
    for path in folder.glob(".*"):
        if path.name[1:].partition(".")[0].isdigit():
            path.unlink(missing_ok=True)


@contextmanager
def summed_file(path: str | Path) -> Iterator[Path]:
    """Like ``whole_file``, with the sum of the file beside it, in the form of ``sha256sum``.

    The old sum goes before the old file does: whenever the process ends, no whole file has another's sum.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "weights.bin"
        >>> with summed_file(path) as part:
        ...     _ = part.write_bytes(b"weights")
        >>> check_sum(path)
        >>> sorted(file.name for file in path.parent.iterdir())
        ['weights.bin', 'weights.bin.sha256']
    """
    path = Path(path)
    with whole_file(path) as part:
        yield part
        with part.open("rb+") as file:
            # Else a power cut may leave the name on content that never came to the disk.
            os.fsync(file.fileno())
        digest = _digest(part)
        sum_path(path).unlink(missing_ok=True)
    with whole_file(sum_path(path)) as part:
        part.write_text(f"{digest}  {path.name}\n")


def sum_path(path: Path) -> Path:
    """Return where the sum of a file is kept: beside it, as ``NAME.sha256``."""
    return path.with_name(path.name + ".sha256")


def check_sum(path: Path) -> None:
    """Compare a file with its sum, when there is one.

    Raises:
        WeightsError: If they differ, or the file cannot be read.
    """
    while (expected := _noted(path)) is not None and _digest(path) != expected:
        if _noted(path) == expected:  # else a training that runs has just replaced both
            raise WeightsError(
                f"{path}: damaged: its content does not match {sum_path(path).name}. Copy the file again from where "
                "it is whole, or use another checkpoint of the run; if it was changed on purpose, remove "
                f"{sum_path(path)}"
            )


def _noted(path: Path) -> str | None:
    """Return the sum that is noted beside a file, if any."""
    try:
        return sum_path(path).read_text(errors="replace").partition(" ")[0].strip().lower()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"{sum_path(path)}: cannot be read: {error.strerror}") from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def finite(content: Any) -> Any:
    """Return plain content with None for NaN and infinite numbers, which JSON does not know.

    Example:
        >>> finite({"AP": [0.5, float("nan")]})
        {'AP': [0.5, None]}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    return [finite(value) for value in content] if isinstance(content, (list, tuple)) else content

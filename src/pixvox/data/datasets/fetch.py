"""Download the archives of a public dataset, where its terms allow that, and unpack what is not there yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from pixvox.data.archives import unpack
from pixvox.data.download import RemoteFile, download, locked
from pixvox.data.roots import download_root
from pixvox.errors import DataError

Archive = Mapping[str, str | None]
"""``url``, ``checksum`` (``"md5:..."``, or None where nobody publishes one), and ``holds``: what it brings, by which it
is seen whether it is there."""


def fetch(name: str, archives: Sequence[Archive], root: str | Path | None = None) -> Path:
    """Return the folder of a dataset with all its archives unpacked; the archives are removed.

    Args:
        name: Name of the dataset.
        archives: What it consists of.
        root: The folder; None takes that of ``datasets.toml``, or ``NAME`` below ``PIXVOX_DATA`` or ``datasets/``.

    Raises:
        DataError: If there is nothing to download, or something cannot be fetched.
    """
    if not archives:
        raise DataError(
            f"{name} cannot be downloaded by this program: its terms must be accepted first; its configuration says "
            "where it comes from. Leave out download=true"
        )
    folder = download_root(name, root)
    folder.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        _bring(archive, folder)
    return folder


def _bring(archive: Archive, folder: Path) -> None:
    url, holds = archive["url"], archive["holds"]
    if url is None or holds is None:
        raise DataError(f"an archive needs url and holds, got {dict(archive)}")
    if (folder / holds).exists():
        return
    file = PurePosixPath(urlparse(url).path).name
    with locked(folder / f"{file}.unpacked"):
        if (folder / holds).exists():  # by the process that had the lock before
            return
        packed = download(RemoteFile(file, (url,), archive.get("checksum")), folder)
        unpack(packed, folder)
        packed.unlink(missing_ok=True)
    if not (folder / holds).exists():
        raise DataError(f"{url} holds no {holds}; the archive has changed, or is another one")

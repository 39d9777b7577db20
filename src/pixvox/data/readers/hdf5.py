"""HDF5 files, through h5py (an extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixvox.errors import DataError


def open_hdf5(path: Path, key: str | None, option: str) -> tuple[Any, Any]:
    """Return h5py's file and one of its arrays, whose values stay on disk.

    Args:
        path: The file.
        key: Name of the array, such as ``"volumes/raw"``; None for the only one.
        option: What a user names the array by, for messages.

    Raises:
        DataError: If h5py is not installed, the file is damaged, or it is unclear which array is meant.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path}: HDF5 files need h5py: pip install pixvox[hdf5]") from error
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is no HDF5 file, or it is damaged or cut off: {error}") from error
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    chosen = key.strip("/") if key is not None else found[0] if len(found) == 1 else None
    if chosen not in found:
        file.close()
        asked = f"no array {key!r}" if key is not None else f"{len(found)} arrays"
        raise DataError(f"{path} has {asked}: {', '.join(found) or 'none'}; name one by {option}")
    return file, file[chosen]

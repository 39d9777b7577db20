"""Where datasets lie on this machine: one TOML file names the folders of all."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pixvox.errors import DataError

FILE_NAME = "datasets.toml"


def dataset_root(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of a dataset.

    It is what is given, else what ``datasets.toml`` says, else ``NAME`` below the folder of the environment variable
    ``PIXVOX_DATA`` or below ``datasets/``, if there is one. The TOML file is the one that the environment variable
    ``PIXVOX_DATASETS`` names, or lies in the working directory or in the user's ``~/.config/pixvox/``, and holds::

        [roots]
        cityscapes = "/big/disk/cityscapes"    # or relative to the file

    Args:
        name: Name of the dataset, that of its configuration.
        root: The folder, when it is known.

    Raises:
        DataError: If no folder is known, or it does not exist.
    """
    if root is not None:
        folder, source = Path(root), "root"
    else:
        files = _files()
        found = next(((file, stated[name]) for file in files if name in (stated := _read(file))), None)
        default = Path(os.environ.get("PIXVOX_DATA", "datasets")) / name
        if found is None and not default.is_dir():
            raise DataError(
                f"nobody says where the dataset {name!r} lies: give its root (data.train.root=FOLDER), or a line "
                f'{name} = "FOLDER" under [roots] in {FILE_NAME}, in the working directory or in {_own_folder()} (or '
                f"where PIXVOX_DATASETS says; found: {', '.join(map(str, files)) or 'none'}), or put it at {default}"
            )
        folder, source = (found[1], str(found[0])) if found is not None else (default, "PIXVOX_DATA")
    if not folder.is_dir():
        raise DataError(
            f"{source} says that the dataset {name!r} lies at {folder}, and there is no such folder"
        )
    return folder


def download_root(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of a dataset that may still have to be downloaded: found as in ``dataset_root``, if not there.

    Args:
        name: Name of the dataset.
        root: The folder, when it is known.
    """
    default = Path(os.environ.get("PIXVOX_DATA", "datasets")) / name
    return Path(root) if root is not None else known_roots().get(name, default)


def known_roots() -> dict[str, Path]:
    """Return the folders that the TOML files name, by dataset."""
    roots: dict[str, Path] = {}
    for file in reversed(_files()):
        roots |= _read(file)
    return roots


def _own_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "pixvox"


def _files() -> list[Path]:
    """Return the TOML files that there are, the first to be believed first."""
    named = os.environ.get("PIXVOX_DATASETS")
    if named:
        file = Path(named).expanduser()
        if not file.is_file():
            raise DataError(f"PIXVOX_DATASETS names {file}, and there is no such file")
        return [file]
    return [file for file in (Path(FILE_NAME), _own_folder() / FILE_NAME) if file.is_file()]


def _read(file: Path) -> dict[str, Path]:
    try:
        roots = tomllib.loads(file.read_text(encoding="utf-8")).get("roots", {})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no TOML file ({error})") from error
    if not isinstance(roots, dict) or not all(isinstance(folder, str) for folder in roots.values()):
        raise DataError(f'{file}: below [roots] stand lines such as cityscapes = "FOLDER"')
    return {name: file.parent / Path(folder).expanduser() for name, folder in roots.items()}

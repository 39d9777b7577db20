"""Configurations in files, as overrides of the one schema: YAML and TOML, and those of other tools."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pixvox.errors import ConfigError
from pixvox.overrides import override
from pixvox.toolkit_config import is_toolkit, toolkit_overrides

ENDINGS = (".yaml", ".yml", ".toml")
"""Of configuration files."""

_OTHER_NAMES = {"num_epochs": "epochs", "lr": "learning_rate"}
"""Short keys as scripts often call them, with ours."""


def file_overrides(path: Path) -> list[str]:
    r"""Read a configuration file as overrides.

    A file is a mapping like those of ``configs/experiment``, in YAML or TOML, or a YAML list of overrides
    (``- head=fcn``). Where a group has values too, its choice stands in ``defaults``: ``[defaults]``,
    ``data = "shapes"``, then ``[data.train]``. TOML files of the semantic segmentation toolkit, which have tables such
    as ``[criterion]``, are translated; see docs/how-to/from-semantic-toolkit.md.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.toml`` file.

    Raises:
        ConfigError: If it cannot be read, or has another form.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "mine.toml"
        ...     _ = file.write_text("head = 'fcn'\nnum_epochs = 5\n[backbone]\nchannels = [8, 16]")
        ...     file_overrides(file)
        ['head=fcn', 'epochs=5', 'backbone.channels=[8,16]']
    """
    content = _read(path)
    if isinstance(content, list):
        if not all(isinstance(line, str) and "=" in line for line in content):
            raise ConfigError(f"{path}: each item of the list is an override such as head=fcn")
        return [str(line) for line in content]
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: it is neither a list of overrides nor a mapping such as 'head: fcn'")
    if is_toolkit(content):
        return toolkit_overrides(content, path)
    lines = [override(group, option) for group, option in _choices(content.pop("defaults", None) or [])]
    return [*lines, *_lines({_OTHER_NAMES.get(key, key): value for key, value in content.items()})]


def _choices(defaults: Mapping[str, Any] | Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Return the groups and options of ``defaults``, as Hydra writes them or as one table."""
    for choice in [defaults] if isinstance(defaults, Mapping) else defaults:
        if isinstance(choice, Mapping):
            for group, option in choice.items():
                yield str(group).removeprefix("override ").strip().lstrip("/"), option


def with_file(path: Path, given: Sequence[str]) -> list[str]:
    """Return the overrides of a file and those given beside it, which win.

    Args:
        path: See ``file_overrides``.
        given: Overrides.
    """
    keys = {_key(line) for line in given}
    return [*(line for line in file_overrides(path) if _key(line) not in keys), *given]


def _key(line: str) -> str:
    return line.lstrip("+~").partition("=")[0]


def _read(path: Path) -> Any:
    from yaml import YAMLError  # type: ignore[import-untyped]

    if path.suffix not in ENDINGS:
        raise ConfigError(f"{path}: a configuration is a .yaml or .toml file")
    try:
        if path.suffix == ".toml":
            return tomllib.loads(path.read_text(encoding="utf-8"))
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _lines(content: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and "_target_" not in value:
            yield from _lines(value, f"{place}.")
        else:
            yield ("++" if isinstance(value, Mapping) else "") + override(place, value)

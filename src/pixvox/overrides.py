"""Values, paths and keyword arguments written as Hydra's overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixvox.errors import ConfigError


def data_overrides(data: str | Path, others: Sequence[str] = ()) -> list[str]:
    """Return the overrides for a dataset given as a path or as the name of a configuration.

    Args:
        data: The path or name.
        others: The overrides that it joins.

    Raises:
        ConfigError: If it is neither, or ``others`` choose data too.
    """
    rival = next((text for text in others if text.startswith(("data=", "data.path="))), None)
    if rival is not None:
        raise ConfigError(f"--data {data} and {rival} both choose the data; leave one out")
    path = Path(data)
    if path.exists():
        return ["data=folder", override("data.path", str(path.absolute()))]
    if isinstance(data, Path) or len(path.parts) > 1 or path.suffix:
        raise ConfigError(
            f"there is no dataset at {data}; --data takes a folder or file, data=NAME a configuration"
        )
    return [f"data={data}"]


def override(key: str, value: Any) -> str:
    """Write a value in Hydra's grammar.

    Example:
        >>> override("image_size", [256, 320]), override("name", "a=b, c")
        ('image_size=[256,320]', "name='a=b, c'")
    """
    return f"{key}={_grammar(value)}"


def _grammar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_grammar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_grammar, value)) + "]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z_][\w-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    # Backslashes count only before a quote, also before the closing one.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def overrides_from(options: Mapping[str, Any]) -> list[str]:
    """Write keyword arguments as overrides; a mapping sets several values below its key.

    Example:
        >>> overrides_from({"head": "fcn", "backbone": {"blocks": 2}})
        ['head=fcn', 'backbone.blocks=2']
    """
    lines: list[str] = []
    for key, value in options.items():
        if isinstance(value, Mapping):
            lines += [override(f"{key}.{name}", item) for name, item in value.items()]
        else:
            lines.append(override(key, value))
    return lines

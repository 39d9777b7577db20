"""Read the folders that transformers writes: a configuration and tensors, no code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.checkpoint import read_safetensors, read_torch_file

_INDEX = "model.safetensors.index.json"
"""Names the files of a model that is kept in several."""

_CODE = re.compile(r"(?<!\w)_target_(?!\w)|\$\{")
"""What our configurations call or look up; ``max_target_positions`` is neither."""


def is_transformers_folder(path: Path) -> bool:
    """Tell whether a folder is one of transformers': it has a ``config.json`` that names a kind of model."""
    return (path / "config.json").is_file() and "model_type" in read_json(path / "config.json")


def read_transformers_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors, from one safetensors file, several, or a ``pytorch_model.bin``.

    Raises:
        WeightsError: If there are no weights, a file is damaged, or the configuration holds what could be run.
    """
    config = read_json(path / "config.json")
    _refuse_code(config, path / "config.json")
    if (path / "model.safetensors").is_file():
        return config, read_safetensors(path / "model.safetensors")[0]
    if (path / _INDEX).is_file():
        state: dict[str, Tensor] = {}
        for file in _files_of(path / _INDEX):
            state |= read_safetensors(path / file)[0]
        return config, state
    if (path / "pytorch_model.bin").is_file():
        content = read_torch_file(path / "pytorch_model.bin")
        if not isinstance(content, dict):
            raise WeightsError(
                f"{path}: pytorch_model.bin holds a {type(content).__name__}, not the weights of a model"
            )
        return config, {key: value for key, value in content.items() if isinstance(value, Tensor)}
    raise WeightsError(
        f"{path}: a config.json, but no weights beside it (looked for model.safetensors, {_INDEX}, pytorch_model.bin)"
    )


def _refuse_code(value: Any, file: Path) -> None:
    """Refuse what our configurations would run or look up: values of this file end up in one.

    Raises:
        WeightsError: If a key or a text names a class to call, or holds an interpolation.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_code(key, file)
            _refuse_code(item, file)
    elif isinstance(value, list):
        for item in value:
            _refuse_code(item, file)
    elif isinstance(value, str) and _CODE.search(value):
        raise WeightsError(
            f"{file}: it holds {value[:80]!r}, which no file of transformers does and which could run code; refused"
        )


def _files_of(index: Path) -> list[str]:
    """Return the names of the files beside an index that hold the weights.

    Raises:
        WeightsError: If it does not tell them.
    """
    places = read_json(index).get("weight_map")
    names = set(map(str, places.values())) if isinstance(places, dict) else set()
    if not names:
        raise WeightsError(f"{index}: its weight_map names no files; download the folder again")
    # Names alone: whatever the index says, nothing is read outside of the folder.
    return sorted(Path(name).name for name in names)


def class_names(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the names in a configuration's ``id2label``, when there is one for every class.

    Example:
        >>> class_names({"id2label": {"0": "cell", "1": "debris"}}, 2), class_names({}, 2)
        (('cell', 'debris'), ())
    """
    names = config.get("id2label")
    names = names if isinstance(names, dict) else {}
    found = tuple(str(names.get(str(i), "")) for i in range(num_classes))
    return found if len(names) == num_classes and all(found) else ()


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        WeightsError: If it holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: it holds a {type(content).__name__}, not a mapping")
    return content

"""``dataset.json``, in which a folder says what its files cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixvox.errors import DataError


def read_description(root: Path) -> dict[str, Any]:
    """Return what ``dataset.json`` states; nothing where there is none.

    Raises:
        DataError: If it cannot be read, or a value has another form than it must have.
    """
    file = root / "dataset.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} must hold an object with name, task, dims, classes")
    for key, (fits, wanted) in _STATED.items():
        if content.get(key) is not None and not fits(content[key]):
            raise DataError(f"{file}: {key} must be {wanted}, got {content[key]!r}")
    return content


def _are_steps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(step, (int, float)) and step > 0 for step in value)


_STATED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task": (lambda value: value in ("instance", "semantic"), "instance or semantic"),
    "dims": (lambda value: value in (2, 3), "2 (images) or 3 (volumes)"),
    "classes": (bool, "a list of names, or absent"),
    "ignore_index": (lambda value: isinstance(value, int), "a whole number, or absent"),
    "voxel_size_um": (_are_steps, "a list of positive numbers per axis in array order"),
    "spacing": (_are_steps, "a list of positive numbers per axis in array order"),
    "origin": (lambda value: isinstance(value, str), "a word, such as synthetic"),
}
"""What it may state, and the form it must have."""

"""Find files by patterns with named fields, and pair images with label maps by what the fields hold."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pixvox.errors import DataError

logger = logging.getLogger(__name__)

_FIELD = re.compile(r"\{(\w+)\}")
_SHOWN = 3

Key = tuple[tuple[str, str], ...]
"""What the fields of a pattern hold in the name of a file, in the order of the fields' names."""


@dataclass(frozen=True)
class Pattern:
    """Where files lie below a folder, such as ``leftImg8bit/train/{city}/{name}_leftImg8bit.png``.

    ``{field}`` stands for part of one name and is remembered, ``*`` for any part of a name, ``**`` for any folders,
    also none.

    Args:
        text: The pattern, with ``/`` between folders.

    Example:
        >>> pattern = Pattern("images/{city}/{name}_left.png")
        >>> pattern.key("images/bonn/a_1_left.png")
        (('city', 'bonn'), ('name', 'a_1'))
        >>> pattern.key("images/bonn/a_1_right.png") is None
        True
    """

    text: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, sorted."""
        return tuple(sorted(set(_FIELD.findall(self.text))))

    def key(self, path: str) -> Key | None:
        """Return what the fields hold in a path below the folder, None when the path does not fit."""
        match = _regex(self.text).fullmatch(path)
        return None if match is None else tuple(sorted(match.groupdict().items()))

    def find(self, root: Path) -> dict[Key, Path]:
        """Return the files below ``root`` by what the fields hold, in the order of their paths; no hidden ones.

        Raises:
            DataError: If two files differ only where the pattern remembers nothing, as in their suffix.
        """
        found: dict[Key, Path] = {}
        for path in sorted(root.glob(_FIELD.sub("*", self.text))):
            key = self.key(path.relative_to(root).as_posix())
            if key is None or path.name.startswith("."):
                continue
            if key in found:
                raise DataError(f"{found[key]} and {path} are the same to {self.text}; keep one of them")
            found[key] = path
        return found

    def __str__(self) -> str:
        return self.text


def find_first(patterns: Sequence[Pattern], root: Path) -> tuple[Pattern, dict[Key, Path]]:
    """Return the first pattern that fits any file below ``root``, and the files.

    Raises:
        DataError: If none does; the message names what there is instead.
    """
    for pattern in patterns:
        files = pattern.find(root)
        if files:
            return pattern, files
    wanted = " or ".join(map(str, patterns))
    ends = dict.fromkeys(_where_it_ends(pattern, root) for pattern in patterns)
    raise DataError(f"{root} holds no file {wanted}: {'; '.join(ends)}")


def pair(
    images: Mapping[Key, Path], labels: Mapping[Key, Path], patterns: tuple[Pattern, Pattern], skip: bool
) -> list[tuple[Path, Path]]:
    """Pair images and label maps whose fields hold the same.

    Args:
        images: Images by what their fields hold.
        labels: Label maps likewise.
        patterns: Those of the two, for messages.
        skip: Leave out what has no partner, and count it in the log.

    Raises:
        DataError: If something has no partner and may not be left out, or there is no pair at all.
    """
    bare = [str(path) for key, path in images.items() if key not in labels]
    orphans = [str(path) for key, path in labels.items() if key not in images]
    pairs = [(path, labels[key]) for key, path in images.items() if key in labels]
    said = [
        f"{len(alone)} of {len(all_)} {what} ({', '.join(alone[:_SHOWN])}{', ...' if len(alone) > _SHOWN else ''})"
        for alone, all_, what in (
            (bare, images, "images have no label map"),
            (orphans, labels, "label maps have no image"),
        )
        if alone
    ]
    if said and not (skip and pairs):
        raise DataError(
            f"{'; '.join(said)}: images {patterns[0]} and label maps {patterns[1]} must have the same "
            f"{', '.join(patterns[0].fields)}; complete the download, or leave out what has no partner by unpaired=skip"
        )
    if said:
        logger.warning("left out: %s", "; ".join(said))
    return pairs


def only(files: Mapping[Key, Path], names: Collection[str], source: str) -> dict[Key, Path]:
    """Return the images whose field ``name`` is among ``names``, which stand in ``source``.

    Raises:
        DataError: If a name has no file.
    """
    wanted = set(names)
    chosen = {key: path for key, path in files.items() if dict(key).get("name") in wanted}
    missing = sorted(wanted - {dict(key)["name"] for key in chosen})
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} names in {source} have no file among the images, the first: "
            f"{', '.join(missing[:_SHOWN])}; complete the download"
        )
    return chosen


@lru_cache(maxsize=64)
def _regex(text: str) -> re.Pattern[str]:
    """Return a regular expression that remembers the fields."""
    parts, seen = [], set()
    for part in re.split(r"(\{\w+\}|\*\*/|\*)", text):
        field = _FIELD.fullmatch(part)
        if field is not None and field[1] in seen:
            parts.append(f"(?P={field[1]})")
        elif field is not None:
            seen.add(field[1])
            parts.append(f"(?P<{field[1]}>[^/]+)")
        else:
            parts.append({"**/": "(?:.+/)?", "*": "[^/]*"}.get(part, re.escape(part)))
    return re.compile("".join(parts))


def _where_it_ends(pattern: Pattern, root: Path) -> str:
    """Say how far a pattern can be followed, and what there is in that place."""
    parts = _FIELD.sub("*", pattern.text).split("/")
    depth = next(
        (count for count in range(len(parts) - 1, 0, -1) if _folder(root, parts[:count]) is not None), 0
    )
    place = _folder(root, parts[:depth]) or root
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in place.iterdir() if entry.name[0] != ".")
    shown = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    return f"in {place} is no {'/'.join(pattern.text.split('/')[depth:])}, there is {shown or 'nothing'}"


def _folder(root: Path, parts: Sequence[str]) -> Path | None:
    """Return the first folder that the beginning of a pattern leads to."""
    if not parts:
        return root
    return next((path for path in sorted(root.glob("/".join(parts))) if path.is_dir()), None)

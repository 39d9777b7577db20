"""Write docs/reference/configuration.md: every key of every configuration, from the configurations themselves.

    python docs/make_reference.py           writes the page
    python docs/make_reference.py --check   tells whether it is up to date, with exit code 1 if not

Meanings are the comments of the YAML files, else the docstring of what receives the value.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pixvox.configuration import CONFIG_FOLDER
from pixvox.configuration_check import SHORT_KEYS
from pixvox.errors import ConfigError
from pixvox.signatures import describe, locate, signature

PAGE = Path(__file__).parent / "reference" / "configuration.md"
GROUPS = {
    "backbone": "Images to feature maps.",
    "neck": "Feature maps to feature maps.",
    "head": "Features to predictions, and their losses. A head names its neck.",
    "normalizer": "Un-normalised to normalised images.",
    "data": "Datasets. `--data PATH` finds the layout of a folder by itself.",
    "transforms": "Augmentation; steps by name, each can be changed or left out.",
    "method": "How a model learns.",
    "optimizer": "",
    "scheduler": "Learning rates over time.",
    "metrics": "",
    "inference": "How images are predicted; kept in the checkpoint.",
    "trainer": "",
    "logger": "",
    "callbacks": "",
    "experiment": "Whole trainings: what differs from the defaults.",
}
_LINE = re.compile(r"""^( *)([\w-]+):(?: +('(?:[^']|'')*'|"(?:\\.|[^"])*"|.*?))?(?:\s+#\s*(.*))?$""")


@dataclass
class Key:
    """A key of a configuration file.

    Args:
        place: Dotted, below the top of the file.
        default: As it is written.
        comment: What the file says of it.
    """

    place: str
    default: str
    comment: str


def keys_of(text: str) -> Iterator[Key]:
    """Return the keys of a YAML file that have a value of their own, with their comments."""
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or line.lstrip().startswith(("#", "-")):
            continue
        indent, name, value, comment = len(match[1]), match[2], match[3] or "", match[4] or ""
        while parents and parents[-1][0] >= indent:
            parents.pop()
        place = ".".join([*(parent for _, parent in parents), name])
        if value.startswith("# "):
            value, comment = "", value[2:]
        if value:
            yield Key(place, value, comment)
        else:
            parents.append((indent, name))


def header(text: str) -> tuple[list[str], list[str]]:
    """Return what the comment at the top of a file says, and the commands in it."""
    says, commands = [], []
    for line in text.splitlines():
        if line == "# @package _global_":
            continue
        if not line.startswith("#"):
            break
        words = line[1:].removeprefix(" ")
        (commands if words.startswith("  ") or (commands and commands[-1].endswith("\\")) else says).append(
            words.strip()
        )
    return says, commands


def documented(target: str) -> dict[str, str]:
    """Return what the docstrings of a target say of its arguments."""
    found: dict[str, str] = {}
    kind = locate(target)
    for owner in reversed(inspect.getmro(kind)) if inspect.isclass(kind) else [kind]:
        if not owner.__module__.startswith("pixvox"):
            continue
        block = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", inspect.getdoc(owner) or "", re.S | re.M)
        for name, text in re.findall(
            r"^    (\w+): (.*?)(?=^    \w+: |\Z)", block[1] if block else "", re.S | re.M
        ):
            found[name] = " ".join(text.split())
    return found


def type_of(target: str, name: str) -> str:
    """Return the annotation of an argument in words."""
    annotation = signature(locate(target)).annotations.get(name, Any)
    return "" if annotation is Any else describe(annotation)


def rows(keys: list[Key], targets: Mapping[str, str]) -> Iterator[str]:
    """Return table rows; a key's type and meaning come from the part that it belongs to."""
    texts = {place: documented(target) for place, target in targets.items()}
    for key in keys:
        parent, _, name = key.place.rpartition(".")
        if name.startswith("_") or key.default == f"${{{name}}}":  # the short key of that name
            continue
        target = targets.get(parent)
        kind = SHORT_KEYS.get(key.place) if target is None else None
        words = type_of(target, name) if target else ("" if kind is None else describe(kind))
        meaning = key.comment or texts.get(parent, {}).get(name, "")
        cells = [f"`{key.place}`", f"`{key.default}`", words, meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def targets_of(content: Any, place: str = "") -> dict[str, str]:
    """Return the ``_target_`` of each mapping of a file, by its place."""
    if not isinstance(content, Mapping):
        return {}
    found = {place: content["_target_"]} if "_target_" in content else {}
    for name, value in content.items():
        found |= targets_of(value, f"{place}.{name}" if place else str(name))
    return found


def option(group: str, path: Path, seen: dict[str, tuple[str, dict[str, str]]]) -> Iterator[str]:
    """Return the lines of one choice; keys that an earlier one of the same target has alike are not repeated."""
    text = path.read_text()
    says, commands = header(text)
    yield from ("", f"### `{group}={path.relative_to(CONFIG_FOLDER / group).with_suffix('')}`", "")
    yield from says
    if commands:
        yield from ("", *(f"    {line}" for line in commands))
    content = yaml.safe_load(text) or {}
    targets = targets_of(content)
    keys = [key for key in keys_of(text) if not key.place.startswith("defaults")]
    own = targets.get(group) or targets.get("")
    if own in seen:
        name, known = seen[own]
        keys = [key for key in keys if known.get(key.place) != key.default]
        yield from ("", f"As `{name}`, but for:" if keys else f"As `{name}`.")
    elif own:
        seen[own] = (path.stem, {key.place: key.default for key in keys})
    told = list(rows(keys, targets))
    if told:
        yield from ("", "| key | default | type | meaning |", "|---|---|---|---|", *told)


def page() -> str:
    """Return the whole page."""
    text = (CONFIG_FOLDER / "train.yaml").read_text()
    lines = [
        "# Configuration",
        "",
        "Made by `make docs` from the files in `src/pixvox/configs`. Every key can be given to `pixvox train` as",
        "`KEY=VALUE`, in a file to `--config`, and to `pixvox.train`; keys of a group stand below its name:",
        "`head.dropout=0.2`. What a part takes beyond the keys listed here may be set as well.",
        "",
        "## Short keys",
        "",
        "| key | default | type | meaning |",
        "|---|---|---|---|",
        *rows([key for key in keys_of(text) if not key.place.startswith("defaults")], {}),
    ]
    for group, about in GROUPS.items():
        lines += ["", f"## {group}", *(["", about] if about else [])]
        seen: dict[str, tuple[str, dict[str, str]]] = {}
        for path in sorted((CONFIG_FOLDER / group).rglob("*.yaml")):
            lines += option(group, path, seen)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or check it."""
    made = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text() != made)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(str(error))

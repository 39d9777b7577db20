"""The classes of a dataset, and how its files write them: as values of pixels or as colours."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Int64, Integer

from pixvox.errors import DataError
from pixvox.signatures import nearest
from pixvox.structures import IGNORE_INDEX

Color = tuple[int, int, int]

IGNORED = -1
"""Stands for a class where a value is neither learned nor scored."""

CLASSES_FOLDER = Path(__file__).parent / "classes"
"""One TOML file for each label space that is known by name."""

_KEYS = {"name", "like", "masks", "tolerance", "palette", "ignored", "others", "classes"}
_CLASS_KEYS = {"name", "values", "color", "thing", "mirror"}
_LARGEST = {"values": 1 << 16, "colors": 1 << 24}
"""Values of label maps, and colours as numbers, lie below."""


@dataclass(frozen=True)
class LabelSpace:
    """Names, colours and kinds of classes, and what stands for them in files.

    Args:
        name: Name of the label space, such as ``"Cityscapes{category}"``.
        class_names: Names by class index.
        colors: Colour of each class, red, green and blue in 0..255.
        codes: Class index by what the files hold: a value, or a colour as ``red * 65536 + green * 256 + blue``;
            ``IGNORED`` for what is neither learned nor scored.
        others: Class index or ``IGNORED`` for everything else; None makes it an error.
        masks: Whether label maps hold ``"values"`` or ``"colors"``.
        tolerance: Largest difference per channel at which a colour is still that of a class.
        palette: Whether label maps are pictures whose palette holds the colours of the classes; one that does
            not was saved again by another program, and its indices mean something else.
        is_thing: For each class whether its objects can be counted; None when nobody says.
        flip_pairs: Classes that change places in a mirror, such as left and right arm.

    Example:
        >>> get_label_space("LIP").flip_pairs
        ((14, 15), (16, 17), (18, 19))
        >>> get_label_space("LoveDA").encode(np.array([[0, 1, 7]]), "mask.png").tolist()
        [[255, 0, 6]]
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[Color, ...]
    codes: Mapping[int, int] = field(repr=False)
    others: int | None = None
    masks: Literal["values", "colors"] = "values"
    tolerance: int = 0
    palette: bool = False
    is_thing: tuple[bool, ...] | None = None
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != len(self.class_names):
            twice = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise DataError(f"{self.name}: two classes are called {twice!r}; names tell classes apart")
        if len(self.colors) != len(self.class_names):
            raise DataError(f"{self.name}: {len(self.colors)} colours for {len(self.class_names)} classes")
        if self.num_classes > IGNORE_INDEX:
            raise DataError(
                f"{self.name}: {self.num_classes} classes are more than the label {IGNORE_INDEX}, which stands for "
                "what is ignored, leaves room for"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def encode(
        self, labels: Integer[np.ndarray, "*spatial"], source: str | Path, ignore_index: int = IGNORE_INDEX
    ) -> Int64[np.ndarray, "*spatial"]:
        """Return class indices for what a file holds.

        Args:
            labels: Values, or colours as in ``codes``.
            source: The file, for messages.
            ignore_index: Label of what is neither learned nor scored.

        Raises:
            DataError: If a value or colour stands for no class.
        """
        unknown = IGNORED - 1
        rest = unknown if self.others is None else self.others
        table = np.full(_LARGEST[self.masks], rest, dtype=np.int16)
        table[list(self.codes)] = list(self.codes.values())
        if labels.size and not 0 <= labels.min() <= labels.max() < len(table):
            raise self._unknown(labels, (labels < 0) | (labels >= len(table)), source)
        classes: npt.NDArray[np.int16] = table[labels]
        strange = classes == unknown
        if strange.any() and self.tolerance:
            classes[strange] = self._nearest(labels[strange], unknown)
            strange = classes == unknown
        if strange.any():
            raise self._unknown(labels, strange, source)
        classes[classes == IGNORED] = ignore_index
        return classes.astype(np.int64)

    def _nearest(
        self, labels: Integer[np.ndarray, " pixels"], unknown: int
    ) -> Integer[np.ndarray, " pixels"]:
        """Return the class of the first colour within the tolerance, ``unknown`` where there is none."""
        classes = np.full(labels.shape, unknown)
        found = np.stack(_channels(labels))
        for code, label in self.codes.items():
            distance = np.abs(found - np.array(_channels(code))[:, None]).max(axis=0)
            classes[(distance <= self.tolerance) & (classes == unknown)] = label
        return classes

    def _unknown(
        self, labels: npt.NDArray[np.integer], strange: npt.NDArray[np.bool_], source: str | Path
    ) -> DataError:
        """Return what to say of the most frequent value or colour that stands for no class."""
        found, counts = np.unique(labels[strange], return_counts=True)
        worst, pixels = int(found[counts.argmax()]), int(counts.max())
        if self.masks == "values":
            what, known = f"the label value {worst}", spans(self.codes)
        else:
            what = f"the colour {_channels(worst)}"
            shown = [str(_channels(code)) for code in self.codes]
            known = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
        return DataError(
            f"{source}: {what} ({pixels} pixels) is none of {self.name}, whose label maps hold {known}; the file is "
            "damaged, of another dataset or version, or label_space must be another one"
        )

    def check_palette(self, palette: Sequence[Color], values: Iterable[int], source: str | Path) -> None:
        """Compare the palette of a label map with the colours of the classes.

        Args:
            palette: Colour by index.
            values: Indices that the label map holds.
            source: The file, for messages.

        Raises:
            DataError: If an index has the colour of another class.
        """
        for value in values:
            label = self.codes.get(value, IGNORED)
            if label == IGNORED or value >= len(palette) or palette[value] == self.colors[label]:
                continue
            raise DataError(
                f"{source}: index {value} of its palette is {palette[value]}, but {self.class_names[label]} of "
                f"{self.name} is {self.colors[label]}; the picture was saved again with another palette, so that its "
                "indices are no classes any more: take the original file"
            )

    def without_first(self) -> LabelSpace:
        """Return the label space with its first class ignored and the others counted from 0.

        Example:
            >>> space = get_label_space("ADE20K").without_first()
            >>> space.num_classes, space.class_names[0]
            (150, 'wall')
        """

        def lowered(label: int) -> int:
            return IGNORED if label in (0, IGNORED) else label - 1

        pairs = tuple((one - 1, other - 1) for one, other in self.flip_pairs if 0 not in (one, other))
        return replace(
            self,
            class_names=self.class_names[1:],
            colors=self.colors[1:],
            codes={code: lowered(label) for code, label in self.codes.items()},
            others=None if self.others is None else lowered(self.others),
            is_thing=None if self.is_thing is None else self.is_thing[1:],
            flip_pairs=pairs,
        )


def get_label_space(name: str | Path) -> LabelSpace:
    """Return a label space by its name, or from a TOML file of your own.

    Args:
        name: Such as ``"Cityscapes"``, ``"Cityscapes{category}"`` or ``"coco{voc}"``, upper or lower case; or the
            path of a file that is written like those in ``data/classes``.

    Raises:
        DataError: If there is none, or its file is not as it should be.
    """
    path = Path(name)
    if path.suffix == ".toml":
        return _read(path)
    file = CLASSES_FOLDER / f"{_stem(str(name))}.toml"
    if not file.is_file():
        known = label_space_names()
        raise DataError(f"there is no label space {str(name)!r}; {nearest(str(name), known)}")
    return _read(file)


def label_space_names() -> list[str]:
    """Return the names of all known label spaces.

    Example:
        >>> "coco{voc}" in label_space_names()
        True
    """
    return [_read(file).name for file in sorted(CLASSES_FOLDER.glob("*.toml"))]


@lru_cache(maxsize=64)
def label_space_of(class_names: tuple[str, ...]) -> LabelSpace | None:
    """Return the known label space with exactly these classes, or None."""
    spaces = (_read(file) for file in sorted(CLASSES_FOLDER.glob("*.toml")))
    whole = next((space for space in spaces if space.class_names == class_names), None)
    if whole is not None or not class_names:
        return whole
    reduced = (_read(file).without_first() for file in sorted(CLASSES_FOLDER.glob("*.toml")))
    return next((space for space in reduced if space.class_names == class_names), None)


def bit_palette(count: int) -> tuple[Color, ...]:
    """Return the colours of PASCAL VOC: the bits of an index, spread over red, green and blue from the top down.

    Example:
        >>> bit_palette(4)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    colors = []
    for index in range(count):
        red, green, blue = (
            sum((index >> 3 * step + channel & 1) << 7 - step for step in range(8)) for channel in range(3)
        )
        colors.append((red, green, blue))
    return tuple(colors)


def packed(colors: Integer[np.ndarray, "3 *spatial"]) -> Integer[np.ndarray, "*spatial"]:
    """Return one number for each colour.

    Example:
        >>> packed(np.array([[0, 1], [0, 0], [255, 2]])).tolist()
        [255, 65538]
    """
    number: npt.NDArray[np.int32] = colors[0].astype(np.int32)
    for channel in colors[1:]:
        number <<= 8
        number |= channel
    return number


def spans(values: Iterable[int]) -> str:
    """Return whole numbers in words.

    Example:
        >>> spans([0, 1, 2, 5])
        '0..2, 5'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)


def _channels(code: Any) -> tuple[Any, Any, Any]:
    """Return red, green and blue of one number or of many."""
    return code >> 16, code >> 8 & 255, code & 255


def _stem(name: str) -> str:
    """Return the name of the file of a label space: braces become an underscore."""
    return name.lower().replace("{", "_").replace("}", "")


@lru_cache(maxsize=64)
def _read(file: Path) -> LabelSpace:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no label space in TOML ({error})") from error
    try:
        return _from_content(content, file)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: {error}; a file of pixvox/data/classes shows the form") from error


def _from_content(content: Mapping[str, Any], file: Path) -> LabelSpace:
    """Build a label space from what its file says."""
    _check_keys(content, _KEYS, str(file))
    rows = content.get("classes", [])
    for row in rows:
        _check_keys(row, _CLASS_KEYS, f"{file}: {row}")
    model = get_label_space(content["like"]) if "like" in content else None
    names = tuple(row["name"] for row in rows) if model is None else model.class_names
    if not names:
        raise DataError(f'{file} names no classes; give classes = [...], or like = "NAME"')
    without_background = int(names[0].lower() != "background")  # black is for background alone
    default = bit_palette(len(names) + 1)[without_background:]
    colors = tuple(_color(row.get("color", plain)) for row, plain in zip(rows, default, strict=False))
    masks = content.get("masks", "values")
    if masks not in ("values", "colors"):
        raise DataError(f'{file}: masks must be "values" or "colors", got {masks!r}')
    codes = dict.fromkeys(map(_code, content.get("ignored", [])), IGNORED)
    codes |= _class_codes(rows, colors, masks) if model is None else {i: i for i in range(len(names))}
    others = content.get("others")
    partner = {row["name"]: row["mirror"] for row in rows if "mirror" in row}
    pairs = {tuple(sorted((names.index(one), names.index(other)))) for one, other in partner.items()}
    things = tuple(bool(row.get("thing", False)) for row in rows)
    stated = any("thing" in row for row in rows)
    return LabelSpace(
        name=content["name"],
        class_names=names,
        colors=colors if model is None else model.colors,
        codes=codes,
        others=None if others is None else IGNORED if others == "ignored" else names.index(others),
        masks=masks,
        tolerance=int(content.get("tolerance", 0)),
        palette=bool(content.get("palette", False)),
        is_thing=(things if stated else None) if model is None else model.is_thing,
        flip_pairs=tuple((low, high) for low, high in sorted(pairs)) if model is None else model.flip_pairs,
    )


def _class_codes(
    rows: Sequence[Mapping[str, Any]], colors: Sequence[Color], masks: Literal["values", "colors"]
) -> dict[int, int]:
    """Return the class by value or colour; by its own number where the file states no values at all."""
    if masks == "colors":
        return {_code(color): label for label, color in enumerate(colors)}
    if not any("values" in row for row in rows):
        return {label: label for label in range(len(rows))}
    return {
        value: label
        for label, row in enumerate(rows)
        for entry in row.get("values", [])
        for value in _values(entry)
    }


def _values(entry: int | str) -> range:
    """Return the values of an entry, a number or a range such as ``"128-255"``."""
    if isinstance(entry, int):
        return range(entry, entry + 1)
    low, _, high = entry.partition("-")
    return range(int(low), int(high) + 1)


def _code(entry: int | Sequence[int]) -> int:
    """Return a value as it is, a colour as one number."""
    if isinstance(entry, int):
        return entry
    red, green, blue = _color(entry)
    return (red << 16) + (green << 8) + blue


def _color(entry: Sequence[int]) -> Color:
    red, green, blue = (int(part) for part in entry)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"a colour is three numbers in 0..255, got {list(entry)}")
    return red, green, blue


def _check_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise DataError(f"{where}: there is no {key!r}; {nearest(key, known)}")

"""Slices of an image or volume with labels over them, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, Shaped, UInt8

from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError
from pixvox.files import whole_file
from pixvox.visualization.colors import NUM_INSTANCE_COLORS, class_colors, palette
from pixvox.visualization.contrast import Contrast
from pixvox.visualization.page_table import PageTable, counted, exact, page_table
from pixvox.visualization.thinning import steps_for, sufficient_level, thinned

MAX_SIDE = 512
"""Rows and columns of a slice: as many as fit on a screen beside a table."""
MAX_SLICES = 128
MAX_ROWS = 5000
"""Objects that are listed: browsers scroll through as many without delay."""
MAX_BYTES = 16 * 2**20
"""Size of the file; slices become coarser until they fit."""

_TEMPLATE = Path(__file__).with_name("page_template.html")
_PACKED = 2**24
_LOSSLESS = 2**20
"""Voxels of a page up to which slices are PNG: small volumes are magnified, and JPEG would be seen."""
_QUALITY = 80
_SMALLEST = 64 * 2**10


def write_page(
    image: Volume,
    labels: Volume,
    table: str | Path | Iterable[Mapping[str, Any]] | None,
    out: str | Path,
    title: str | None = None,
    alpha: float = 0.4,
    max_side: int = MAX_SIDE,
    max_slices: int = MAX_SLICES,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write a page that shows an image or volume of any size with its objects.

    It has a slider through slices along any axis, the opacity of the overlay, the id of what the mouse points at,
    and a table of the objects. It holds every few voxels only, read from the level of a pyramid that suffices; ids
    are those of the file. It loads nothing from elsewhere.

    Args:
        image: What is shown.
        labels: Ids of the objects, 0 is background; of the size of the image.
        table: CSV or Parquet file, or rows, with a column ``id``, such as ``pixvox predict`` writes; None counts the
            voxels of the page.
        out: HTML file; its folder is made when missing.
        title: By default the name of the image.
        alpha: Opacity of the overlay at first, in [0, 1].
        max_side: Most rows and columns of a slice.
        max_slices: Most slices.
        max_rows: Most objects that are listed; how many are left out is told.
        max_bytes: Largest size of the file, at least 64 KiB.
        class_names: Says that labels are classes of these names, counted from 0; None for ids of objects.

    Returns:
        The file.

    Raises:
        DataError: If sizes differ, labels are no whole numbers from 0 on, or a file cannot be read.
        ValueError: If ``max_bytes`` is too small for any page.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pixvox.data.volumes.open import open_volume
        >>> cells = np.zeros((4, 20, 30), np.uint16)
        >>> cells[1:3, 5:9, 5:9] = 7
        >>> volume = open_volume(cells, spatial_dims=3)
        >>> page = write_page(volume, volume, None, mkdtemp() + "/cells.html")
        >>> "data:image/png" in page.read_text(), "http://" in page.read_text()
        (True, False)
    """
    _check(image, labels)
    if max_bytes < _SMALLEST:
        raise ValueError(f"max_bytes={max_bytes}: a page takes at least {_SMALLEST}")
    out = Path(out)
    steps = steps_for(image.size, (max_slices, max_side, max_side)[-len(image.size) :])
    steps = (*steps[:-2], max(steps[-2:]), max(steps[-2:]))
    ids = _whole_numbers(thinned(labels, steps)[0], labels.source)
    pixels = thinned(image, steps)
    listed = page_table(
        counted(ids, math.prod(steps)) if table is None else table, len(image.size), max_rows, max_bytes // 4
    )
    page = _Page(
        image,
        Path(image.source).name if title is None else title,
        alpha,
        Contrast.of(torch.from_numpy(pixels)),
        listed,
        sufficient_level(image, steps).number,
        class_names,
    )
    slices = _Slices(pixels, ids, steps)
    text = page.html(slices)
    while len(text.encode()) > max_bytes:
        slices = slices.coarser()
        text = page.html(slices)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as part:
        part.write_text(text, encoding="utf-8", newline="\n")  # the sum of the script is that of these bytes
    return out


@dataclass(frozen=True)
class _Slices:
    """What of a volume a page holds.

    Args:
        pixels: The image.
        labels: Ids of the objects, 0 is background.
        steps: Distance of the voxels in the file, in array order.
    """

    pixels: Shaped[np.ndarray, "channels *shape"]
    labels: Integer[np.ndarray, "*shape"]
    steps: tuple[int, ...]

    def coarser(self) -> _Slices:
        """Take every second voxel along the longest axes."""
        longest = max(self.labels.shape)
        if longest == 1:
            raise ValueError("one voxel is too large for this page; raise max_bytes")
        factors = tuple(2 if 2 * length > longest else 1 for length in self.labels.shape)
        kept = tuple(slice(None, None, factor) for factor in factors)
        steps = tuple(step * factor for step, factor in zip(self.steps, factors, strict=True))
        return replace(self, pixels=self.pixels[(slice(None), *kept)], labels=self.labels[kept], steps=steps)


@dataclass(frozen=True)
class _Page:
    """What is said on a page, whatever its resolution.

    Args:
        image: What is shown.
        title: Title.
        alpha: Opacity at first.
        contrast: What is black and white.
        listed: The objects.
        level: Level of the file that was read.
        class_names: Of labels that are classes.
    """

    image: Volume
    title: str
    alpha: float
    contrast: Contrast
    listed: PageTable
    level: int = 0
    class_names: Sequence[str] | None = None

    def html(self, slices: _Slices) -> str:
        """Return the file."""
        # "<" ends a script, "&" begins an entity: neither may come from a file.
        content = json.dumps(self._content(slices), allow_nan=False)
        for sign in "<>&":
            content = content.replace(sign, f"\\u{ord(sign):04x}")
        template = _TEMPLATE.read_text(encoding="utf-8")
        places = {"title": html.escape(self.title), "policy": _policy(template), "page": content}
        return re.sub(r"\{\{(\w+)\}\}", lambda place: places[place[1]], template)

    def _content(self, slices: _Slices) -> dict[str, Any]:
        planes = (1,) * (3 - len(slices.steps))  # an image is a volume of one slice
        labels = slices.labels.reshape(planes + slices.labels.shape)
        values, ids, colors = self._painted(labels)
        pixels = slices.pixels.reshape(len(slices.pixels), *values.shape)
        steps = planes + slices.steps
        foreground = np.count_nonzero(values, axis=(1, 2))
        grey = len(pixels) == 1
        return {
            "title": self.title,
            "facts": self._facts(slices.steps),
            "shape": values.shape,
            "steps": steps,
            "spacing": planes + (self.image.spacing or (1.0,) * len(slices.steps)),
            "first": int(foreground.argmax() if foreground.any() else len(values) // 2),
            "alpha": self.alpha,
            "channels": 1 if grey else 3,
            "images": [
                self._picture(pixels[:, z], values.size <= _LOSSLESS, grey) for z in range(len(values))
            ],
            "labels": [_png(pack(plane)) for plane in values],
            "ids": None if ids is None else [exact(int(number)) for number in ids],
            "palette": colors.tolist(),
            "lowest": 1 if self.class_names is None else 0,
            "listed": ["object", "objects"] if self.class_names is None else ["class", "classes"],
            "columns": self.listed.columns,
            "rows": self.listed.rows,
            "places": [_in_page(place, steps, values.shape) for place in self.listed.places],
            "left_out": self.listed.left_out,
        }

    def _painted(
        self, labels: Integer[np.ndarray, "*shape"]
    ) -> tuple[
        Integer[np.ndarray, "*shape"], Integer[np.ndarray, " numbers"] | None, UInt8[np.ndarray, "colors 3"]
    ]:
        """Return the labels as numbers, 0 where nothing is painted, what these stand for, and colours."""
        if self.class_names is None:
            return *_numbered(labels), palette(NUM_INSTANCE_COLORS)
        colors, drawn = class_colors(self.class_names, max(int(labels.max()) + 1, len(self.class_names)))
        classes = np.flatnonzero(drawn)
        numbers = np.zeros(len(drawn), dtype=np.uint32)
        numbers[classes] = np.arange(1, len(classes) + 1)
        return numbers[labels], np.concatenate([[0], classes]), colors

    def _picture(self, plane: Shaped[np.ndarray, "channels height width"], lossless: bool, grey: bool) -> str:
        rgb = self.contrast.rgb(torch.from_numpy(np.ascontiguousarray(plane)))
        return (_png if lossless else _jpeg)(np.ascontiguousarray(rgb[..., 0]) if grey else rgb)

    def _facts(self, steps: tuple[int, ...]) -> str:
        """Say how large the image is, and how much of it is here."""
        image, axes = self.image, "zyx"[-len(steps) :]
        facts = [f"{' x '.join(map(str, image.size))} ({', '.join(axes)})"]
        if image.spacing is not None:
            unit = "µm" if image.unit == "um" else image.unit
            facts.append(f"spacing {' x '.join(f'{step:g}' for step in image.spacing)} {unit}")
        thin = [f"{step} along {axis}" for axis, step in zip(axes, steps, strict=True) if step > 1]
        if thin:
            shown = f"shown: one voxel of {', '.join(thin)}"
            facts.append(f"{shown}; from level {self.level} of the file" if self.level else shown)
        return "; ".join(facts)


def pack(values: Integer[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Return numbers below 2**24 as red, green and blue, the highest eight bits first.

    Example:
        >>> pack(np.array([[70000]])).tolist()
        [[[1, 17, 112]]]
    """
    return np.stack([(values >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)], axis=-1)


def _check(image: Volume, labels: Volume) -> None:
    if image.size != labels.size:
        raise DataError(
            f"{labels.source} has the size {labels.size}, {image.source} {image.size}; labels are of the size of "
            "their image"
        )
    if labels.channels != 1:
        raise DataError(
            f"{labels.source}: has {labels.channels} channels, a label map has one; where they are slices, say so: "
            "open_volume(..., axes='ZYX')"
        )


def _whole_numbers(labels: np.ndarray, source: str) -> Integer[np.ndarray, "*shape"]:
    """Return labels as integers from 0 on, as floating-point files of label maps hold them, too."""
    whole = labels
    if labels.dtype.kind == "f":
        if not (np.isfinite(labels) & (np.rint(labels) == labels)).all():
            raise DataError(f"{source}: holds fractions; a label map holds whole numbers")
        whole = labels.astype(np.int64)
    elif labels.dtype.kind == "b":
        whole = labels.astype(np.uint8)
    if whole.min() < 0:
        raise DataError(f"{source}: holds {whole.min()}; labels are whole numbers from 0 on")
    return whole


def _numbered(
    labels: Integer[np.ndarray, "*shape"],
) -> tuple[Integer[np.ndarray, "*shape"], Integer[np.ndarray, " numbers"] | None]:
    """Return labels below 2**24, and where they had to be numbered anew, the label of each number."""
    if labels.max() < _PACKED:
        return labels.astype(np.uint32), None
    ids = np.union1d(labels, np.zeros(1, labels.dtype))
    if len(ids) > _PACKED:
        raise DataError(
            f"a page of {len(ids) - 1} objects cannot be made; set a smaller max_side or max_slices"
        )
    return np.searchsorted(ids, labels).astype(np.uint32), ids


def _in_page(
    place: tuple[float, ...] | None, steps: tuple[int, ...], shape: tuple[int, ...]
) -> list[int] | None:
    """Return the voxel of the page at a place of the file."""
    if place is None:
        return None
    whole = (0.0,) * (3 - len(place)) + place
    return [
        min(max(int(at // step), 0), length - 1) for at, step, length in zip(whole, steps, shape, strict=True)
    ]


def _policy(template: str) -> str:
    """Return what the browser lets the page do: run this one script and show what is inside; nothing else."""
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _png(picture: UInt8[np.ndarray, "..."]) -> str:
    return _data_uri(picture, "png")


def _jpeg(picture: UInt8[np.ndarray, "..."]) -> str:
    return _data_uri(picture, "jpeg", quality=_QUALITY)


def _data_uri(picture: UInt8[np.ndarray, "..."], kind: str, **options: Any) -> str:
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, format=kind, **options)
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

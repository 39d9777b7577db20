"""Which axis of a stored array is which: by its names, by the user's, or by its lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pixvox.errors import DataError

MAX_CHANNELS = 4
"""Without named axes, an axis of at most this length at the front or the end is taken for channels."""


@dataclass(frozen=True)
class Layout:
    """Where an array of any order keeps what becomes ``(channels, *spatial)``.

    Args:
        spatial: Letters of the spatial axes in their order, ``"YX"`` or ``"ZYX"``.
        places: Axis of the array for the channels and for each of ``spatial``; None for one of length 1 that is
            not stored.
        fixed: The index taken on each remaining axis of the array.

    Example:
        >>> layout = find_layout((5, 6, 7, 2), "ZYXC", None, "a.tif")
        >>> layout.lengths((5, 6, 7, 2)), layout.index((slice(1, 3), slice(0, 6), slice(2, 4)))
        ((2, 5, 6, 7), (slice(1, 3, None), slice(0, 6, None), slice(2, 4, None), slice(None, None, None)))
    """

    spatial: str
    places: tuple[int | None, ...]
    fixed: Mapping[int, int]

    def lengths(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return ``(channels, *spatial)`` for an array of ``shape``."""
        return tuple(1 if place is None else int(shape[place]) for place in self.places)

    def index(self, region: Sequence[slice]) -> tuple[slice, ...]:
        """Return the slices of the array that hold all channels of a region of the spatial axes."""
        return tuple(region[part] if isinstance(part, int) else part for part in self._parts)

    def arrange(self, block: np.ndarray) -> np.ndarray:
        """Return what was read at ``index``, or a whole array, as ``(channels, *spatial)``."""
        if self.fixed:
            whole = tuple(
                (self.fixed[axis] if block.shape[axis] > 1 else 0) if axis in self.fixed else slice(None)
                for axis in range(block.ndim)
            )
            block = block[whole]
        if self._order is not None:
            block = block.transpose(self._order)
        return block[self._with_absent]

    # What follows from the fields alone: small regions are read ten thousand times a second.

    @cached_property
    def _parts(self) -> list[int | slice]:
        """For each axis of the array the number of the spatial axis that it is, or what is taken of it."""
        parts: dict[int, int | slice] = {at: slice(i, i + 1) for at, i in self.fixed.items()}
        parts |= {place: number for number, place in enumerate(self.places[1:]) if place is not None}
        if self.places[0] is not None:
            parts[self.places[0]] = slice(None)
        return [parts[axis] for axis in range(len(parts))]

    @cached_property
    def _order(self) -> list[int] | None:
        """The stored axes in the order that they are to have; None where they have it."""
        kept = [place for place in self.places if place is not None]
        order = [sorted(kept).index(place) for place in kept]
        return None if order == sorted(order) else order

    @cached_property
    def _with_absent(self) -> tuple[slice | None, ...]:
        """Index that adds the axes that are not stored."""
        return tuple(None if place is None else slice(None) for place in self.places)


def find_layout(
    shape: Sequence[int],
    axes: str | None,
    spatial_dims: int | None,
    source: str,
    time: int | None = None,
    stated: bool = False,
) -> Layout:
    """Tell channels and spatial axes of an array apart.

    Args:
        shape: Lengths of its axes.
        axes: A letter for each: Y, X, Z, C or S (channels), T; others are unnamed. None when nothing is known.
        spatial_dims: 2 or 3 when it is known; otherwise the axes decide.
        source: File, for messages.
        time: The time point to take, from 0; None where there is only one.
        stated: The user named the axes, so that each is what it is called. Those of files are often not: planes
            are stored as times or channels.

    Raises:
        DataError: If the axes do not fit.
    """
    given = _guess_axes(shape, spatial_dims, source) if axes is None else axes
    if len(given) != len(shape):
        raise DataError(
            f"{source}: an array of shape {tuple(shape)} cannot have the axes {given}; "
            + (f"name each of its {len(shape)} axes" if stated else "export it again")
        )
    letters = given.upper()
    letters = letters.replace("S", "C" if "C" not in letters else "S")
    named = dict(enumerate(letters))
    fixed = _fix_time(named, shape, time, source)
    _drop_single(named, fixed, shape, spatial_dims)
    if not stated:
        _rename(named, shape, spatial_dims)
    spatial = "".join(axis for axis in "ZYX" if axis in named.values())
    if spatial_dims == 3 and "Z" not in spatial and not set(named.values()) - set("CYX"):
        spatial = "Z" + spatial  # a volume of one plane
    _check(named, spatial, shape, axes or "".join(named.values()), spatial_dims, source)
    where = {letter: axis for axis, letter in named.items()}
    return Layout(spatial, tuple(where.get(letter) for letter in "C" + spatial), fixed)


def in_array_order(by_axis: Mapping[str, float], spatial: str) -> tuple[float, ...] | None:
    """Return the spacing of the axes ``spatial``, or None unless that of each is known.

    Example:
        >>> in_array_order({"X": 0.5, "Y": 0.5, "Z": 2.0}, "ZYX"), in_array_order({"X": 0.5, "Y": 0.5}, "ZYX")
        ((2.0, 0.5, 0.5), None)
    """
    known = tuple(by_axis[axis] for axis in spatial if axis in by_axis)
    return known if len(known) == len(spatial) else None


def _fix_time(named: dict[int, str], shape: Sequence[int], time: int | None, source: str) -> dict[int, int]:
    """Take one time point: remove its axis from ``named`` and return its index there."""
    if time is None:
        return {}
    axis = next((axis for axis, letter in named.items() if letter == "T"), None)
    count = 1 if axis is None else int(shape[axis])
    if not 0 <= time < count:
        found = f"{count} time point{'s' * (count > 1)}"
        raise DataError(f"{source}: time={time}, but there is {found}; count from 0, or leave time unset")
    if axis is None:
        return {}
    del named[axis]
    return {axis: time}


def _drop_single(
    named: dict[int, str], fixed: dict[int, int], shape: Sequence[int], spatial_dims: int | None
) -> None:
    """Leave out axes of length 1, except those of a picture and the only plane of a volume."""
    for axis, letter in list(named.items()):
        plane = letter == "Z" and spatial_dims != 2
        if letter not in "YX" and shape[axis] == 1 and not plane:
            del named[axis]
            fixed[axis] = 0


def _rename(named: dict[int, str], shape: Sequence[int], spatial_dims: int | None) -> None:
    """Give unnamed axes, and those that carry another's name, the names that they must have."""
    letters = set(named.values())
    unnamed = [axis for axis, letter in named.items() if letter not in "CZYXT"]
    if len(unnamed) == 1 and "Z" not in letters and spatial_dims != 2:  # the pages of a file are its planes
        named[unnamed[0]] = "Z"
    elif spatial_dims == 3 and "Z" not in letters and len(named) == 3:
        # Planes are often stored as times or channels; a volume of one plane has few of them.
        other = next(axis for axis, letter in named.items() if letter not in "YX")
        if shape[other] > MAX_CHANNELS:
            named[other] = "Z"
    elif len(unnamed) == 1 and "C" not in letters and spatial_dims == 2:
        named[unnamed[0]] = "C"


def _check(
    named: Mapping[int, str],
    spatial: str,
    shape: Sequence[int],
    axes: str,
    spatial_dims: int | None,
    source: str,
) -> None:
    """Refuse axes that are not those of one image or volume."""
    letters = list(named.values())
    wanted = spatial_dims or len(spatial)
    unique = len(set(letters)) == len(letters)
    if not set(letters) - set("CZYX") and unique and len(spatial) == wanted and "YX" in spatial:
        return
    repair = "export one time point, or set spatial_dims"
    if letters.count("T") == 1 and unique and not set(letters) - set("TCZYX"):
        count = next(shape[axis] for axis, letter in named.items() if letter == "T")
        repair = (
            f"it has {count} time points: choose one by time=0 to time={count - 1}, or export one time point"
        )
    raise DataError(
        f"{source}: axes {axes} of shape {tuple(shape)} are not "
        f"{'an image (y, x)' if wanted == 2 else 'a volume (z, y, x)'} with or without channels; {repair}"
    )


def _guess_axes(shape: Sequence[int], spatial_dims: int | None, source: str) -> str:
    """Name the axes of an array that says nothing of them."""
    if len(shape) == 2:
        return "YX"
    if len(shape) == 3:
        if spatial_dims == 3:
            return "ZYX"
        if shape[-1] <= MAX_CHANNELS:
            return "YXC"
        if spatial_dims == 2 or shape[0] <= MAX_CHANNELS:
            return "CYX"
        return "ZYX"
    if len(shape) == 4:
        return "ZYXC" if shape[-1] <= MAX_CHANNELS < shape[0] or shape[-1] < shape[0] else "CZYX"
    raise DataError(
        f"{source}: an array of shape {tuple(shape)} is neither an image nor a volume; where volumes are opened, "
        f'its axes can be named, as in axes="TCZYX"'
    )

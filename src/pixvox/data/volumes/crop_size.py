"""How large crops are: in pixels or voxels, or in micrometres or millimetres of the world."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pixvox.data.units import MICROMETRES
from pixvox.errors import ConfigError, DataError


def parse_crop_size(text: str) -> tuple[list[float], str | None]:
    """Return lengths and their unit, None for voxels, of what a user writes.

    Raises:
        ConfigError: If it is something else.

    Example:
        >>> parse_crop_size("64,128,128"), parse_crop_size("32um,64.5um,64.5um")
        (([64, 128, 128], None), ([32.0, 64.5, 64.5], 'um'))
    """
    parts = [part.strip().replace("µ", "u").replace("μ", "u") for part in text.strip("[]() ").split(",")]
    found = [re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(um|mm)?", part) for part in parts]
    lengths, units = [part[1] for part in found if part], {part[2] for part in found if part}
    if not all(found) or len(units) != 1 or (units == {None} and not all(map(str.isdecimal, lengths))):
        raise ConfigError(
            f"--size {text}: write a whole number of voxels per axis, as in 64,128,128, or lengths with their unit, as "
            "in 32um,64um,64um"
        )
    unit = units.pop()
    return [int(length) if unit is None else float(length) for length in lengths], unit


def crop_voxels(
    size: Sequence[float], unit: str | None, spacing: Sequence[float] | None, spacing_unit: str, source: str
) -> tuple[int, ...]:
    """Return the lengths of a crop of a volume, in voxels.

    Args:
        size: Lengths in array order.
        unit: Their unit, ``"um"`` or ``"mm"``; None where they are voxels.
        spacing: Size of a voxel of the volume per axis, or None when it is unknown.
        spacing_unit: Unit of ``spacing``.
        source: The volume, for messages.

    Raises:
        DataError: If the lengths need a spacing that the volume does not have.

    Example:
        >>> crop_voxels((32, 64, 64), "um", (2.0, 0.5, 0.5), "um", "a.tif")
        (16, 128, 128)
    """
    if unit is None:
        return tuple(int(length) for length in size)
    if spacing is None:
        raise DataError(
            f"{source} does not say how large its voxels are, so crops of {by_axis(size, unit)} cannot be cut; give "
            "that by --spacing, or the size of crops in voxels"
        )
    scale = MICROMETRES[unit] / MICROMETRES[spacing_unit]
    return tuple(max(1, round(length * scale / step)) for length, step in zip(size, spacing, strict=True))


def by_axis(size: Sequence[float], unit: str | None) -> str:
    """Write a size as ``parse_crop_size`` takes it.

    Example:
        >>> by_axis((32.0, 64.5), "um"), by_axis((32, 64), None)
        ('32um,64.5um', '32,64')
    """
    return ",".join(f"{length:g}{unit or ''}" for length in size)

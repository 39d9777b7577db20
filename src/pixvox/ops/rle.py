"""Run-length encoding of masks as in COCO, for 2-D and 3-D, from crops and back to crops.

COCO walks a mask column by column: the first axis runs fastest (Fortran order), in 3-D as well. Counts
alternate between outside and inside, beginning with outside. The compressed form writes counts (from the
fourth on: their difference to the count two before) in groups of five bits as printable characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from pixvox.errors import DataError

_Int64 = npt.NDArray[np.int64]


class RLE(TypedDict):
    """A run-length encoded mask: canvas ``size`` in array order, and counts, compressed or not."""

    size: list[int]
    counts: str | bytes | list[int]


def encode_rle(crop: Shaped[Tensor, "*crop"], origin: Sequence[int], size: Sequence[int]) -> RLE:
    """Encode a mask that is known inside a crop, without ever making its canvas.

    Args:
        crop: The mask within its crop; non-zero is inside.
        origin: First corner of the crop in array order.
        size: Size of the canvas in array order.

    Returns:
        The encoding with compressed counts as ``str``, ready for JSON.

    Raises:
        ValueError: If the crop does not lie on the canvas.

    Example:
        >>> encode_rle(torch.tensor([[1, 1]]), origin=(1, 2), size=(2, 4))
        {'size': [2, 4], 'counts': '5110'}
    """
    size = [int(length) for length in size]
    ends = [int(first) + length for first, length in zip(origin, crop.shape, strict=True)]
    if len(size) != crop.ndim or any(
        int(first) < 0 or end > length for first, end, length in zip(origin, ends, size, strict=True)
    ):
        raise ValueError(
            f"a crop of shape {tuple(crop.shape)} at {tuple(origin)} leaves the canvas {tuple(size)}"
        )
    # In reversed axes the fastest axis is the last one, so that each run lies within one line of the crop.
    lines = crop.detach().cpu().numpy().astype(bool).T
    padded = np.zeros((*lines.shape[:-1], lines.shape[-1] + 2), dtype=np.int8)
    padded[..., 1:-1] = lines
    steps = np.diff(padded, axis=-1)
    starts, stops = (_canvas_positions(np.nonzero(steps == sign), origin, size) for sign in (1, -1))
    return {"size": size, "counts": compress_counts(runs_to_counts(starts, stops, math.prod(size)))}


def decode_rle(rle: RLE) -> Bool[Tensor, "*spatial"]:
    """Decode an encoding to a full mask.

    Raises:
        ValueError: If the counts are not valid characters, are negative, or do not fill the size exactly.

    Example:
        >>> decode_rle({"size": [2, 4], "counts": "5110"}).int().tolist()
        [[0, 0, 0, 0], [0, 0, 1, 1]]
    """
    starts, stops, size = rle_runs(rle)
    flat = _fill(starts, stops, math.prod(size))
    return torch.from_numpy(flat.reshape(size[::-1]).T.copy())


def crop_rles(rles: Sequence[RLE]) -> tuple[list[Bool[Tensor, "..."]], list[tuple[int, ...]]]:
    """Decode encodings straight to tight crops and their origins; an empty mask has a crop of length 0.

    Raises:
        ValueError: If an encoding is damaged (the message names its position), or if sizes differ.
    """
    crops, origins = [], []
    for position, rle in enumerate(rles):
        if list(rle["size"]) != list(rles[0]["size"]):
            raise DataError(f"RLE 0 has the size {rles[0]['size']}, but RLE {position} has {rle['size']}")
        try:
            crop, origin = _crop_rle(rle)
        except DataError as error:
            raise DataError(f"RLE {position}: {error}") from None
        crops.append(torch.from_numpy(crop))
        origins.append(origin)
    return crops, origins


def rle_runs(rle: RLE) -> tuple[_Int64, _Int64, tuple[int, ...]]:
    """Return first and one past last position (column-major) of each run inside the mask, and the size.

    Raises:
        ValueError: If the encoding is damaged.
    """
    size = tuple(int(length) for length in rle["size"])
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        values: npt.NDArray[Any] = decompress_counts(counts)
    else:
        values = np.asarray(counts, dtype=np.float64)
        if values.ndim != 1 or not (np.isfinite(values) & (values == np.floor(values))).all():
            raise DataError(f"RLE counts must be whole numbers in one list, got {_shorten(counts)}")
    total = math.prod(size)
    if (values < 0).any() or (values > total).any():
        raise DataError(
            f"RLE counts must lie between 0 and {total} (size {size}), got {_shorten(values.tolist())}"
        )
    values = values.astype(np.int64)
    if values.sum() != total:
        raise DataError(
            f"RLE counts add up to {int(values.sum())} pixels, but the size {size} has {total}; "
            "the counts are cut off, or belong to another image size"
        )
    ends = values.cumsum()
    starts, stops = (ends - values)[1::2], ends[1::2]
    filled = stops > starts
    return starts[filled], stops[filled], size


def runs_to_counts(starts: _Int64, stops: _Int64, total: int) -> _Int64:
    """Return COCO's counts of sorted, disjoint runs; runs that touch are joined."""
    if len(starts) == 0:
        return np.array([total], dtype=np.int64)
    joined = starts[1:] == stops[:-1]
    starts = starts[np.concatenate(([True], ~joined))]
    stops = stops[np.concatenate((~joined, [True]))]
    edges = np.stack([starts, stops], axis=1).reshape(-1)
    counts = np.diff(edges, prepend=0)
    return np.append(counts, total - edges[-1]) if edges[-1] < total else counts


def compress_counts(counts: _Int64) -> str:
    """Write counts as COCO's string: five bits a character, least first; the sixth says that more follow."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters, used = [], []
    more = np.ones(len(values), dtype=bool)
    while more.any():
        used.append(more)
        low = values & 0x1F
        values = values >> 5
        more = more & ~np.where(low & 0x10, values == -1, values == 0)
        characters.append(low + 0x20 * more + 48)
    # Row i holds the characters of count i; the ones in use, in order, are the string.
    table, mask = np.stack(characters, axis=1), np.stack(used, axis=1)
    return str(table[mask].astype(np.uint8).tobytes(), "ascii")


def decompress_counts(text: str | bytes) -> _Int64:
    """Read COCO's string of counts.

    Raises:
        ValueError: If a character does not belong to the code, or the last count is not complete.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError:
        raise DataError(f"an RLE string holds characters from '0' to 'o', got {_shorten(text)}") from None
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return np.zeros(0, dtype=np.int64)
    if codes.min() < 0 or codes.max() > 63:
        raise DataError(f"an RLE string holds characters from '0' to 'o', got {_shorten(text)}")
    last = (codes & 0x20) == 0
    if not last[-1]:
        raise DataError(f"an RLE string ends within a count; it is cut off after {len(codes)} characters")
    ends = np.nonzero(last)[0]
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 12:
        raise DataError(f"an RLE string has a count of {lengths.max()} characters; 12 hold any mask")
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 0x1F) << place, starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * lengths), 0)  # the top bit is the sign
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def _canvas_positions(
    index: tuple[npt.NDArray[np.intp], ...], origin: Sequence[int], size: Sequence[int]
) -> _Int64:
    """Turn indices of a crop in reversed axes into column-major positions on the canvas."""
    position = np.zeros(len(index[0]), dtype=np.int64)
    for along, first, length in zip(index, list(origin)[::-1], list(size)[::-1], strict=True):
        position = position * length + along + int(first)
    return position


def _fill(starts: _Int64, stops: _Int64, length: int) -> npt.NDArray[np.bool_]:
    """Return a flat mask with the runs set."""
    edges = np.stack([starts, stops], axis=1).reshape(-1)
    lengths = np.diff(edges, prepend=0, append=length)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def _crop_rle(rle: RLE) -> tuple[npt.NDArray[np.bool_], tuple[int, ...]]:
    """Decode the band of the slowest axis that holds the mask, and cut it down to the tight crop."""
    starts, stops, size = rle_runs(rle)
    if len(starts) == 0:
        return np.zeros((0,) * len(size), dtype=bool), (0,) * len(size)
    plane = math.prod(size[:-1])
    first, last = int(starts[0]) // plane, (int(stops[-1]) - 1) // plane + 1
    flat = _fill(starts - first * plane, stops - first * plane, (last - first) * plane)
    band = flat.reshape(last - first, *size[-2::-1]).T
    region, origin = [], []
    for axis in range(band.ndim):
        inside = np.nonzero(band.any(axis=tuple(other for other in range(band.ndim) if other != axis)))[0]
        region.append(slice(int(inside[0]), int(inside[-1]) + 1))
        origin.append(int(inside[0]))
    origin[-1] += first
    return np.ascontiguousarray(band[tuple(region)]), tuple(origin)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

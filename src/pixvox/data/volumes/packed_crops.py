"""The crops of a volume as one compressed blob: a million are read at once in the time of some thousand rows."""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import Int, Int32

from pixvox.errors import DataError

_COLUMNS = 5
_BYTES = 4


def pack_crops(rows: Int[np.ndarray, "n 5"]) -> bytes:
    """Return ``z0 y0 x0 objects foreground`` of crops in a few bits each.

    Bytes of one column and one significance lie together: most of them are equal, and cost nothing.

    Raises:
        DataError: If a number takes more than 32 bits.

    Example:
        >>> rows = np.array([[0, 64, 128, 3, 700], [0, 64, 192, -1, -1]])
        >>> unpack_crops(pack_crops(rows)).tolist()
        [[0, 64, 128, 3, 700], [0, 64, 192, -1, -1]]
    """
    limits = np.iinfo(np.int32)
    if rows.size and not limits.min <= rows.min() <= rows.max() <= limits.max:
        raise DataError(
            f"a crop begins at {rows[:, :3].max()} or has {rows[:, 4].max()} voxels of objects; at most {limits.max} "
            "can be catalogued, take smaller crops"
        )
    columns = rows.T.astype("<i4", order="C").view(np.uint8).reshape(_COLUMNS, len(rows), _BYTES)
    return zlib.compress(columns.transpose(0, 2, 1).tobytes(), 1)


def unpack_crops(blob: bytes) -> Int32[np.ndarray, "n 5"]:
    """Return what was packed.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        values = np.frombuffer(zlib.decompress(blob), dtype=np.uint8)
    except zlib.error as error:
        raise ValueError(f"packed crops: {error}") from error
    columns = np.ascontiguousarray(values.reshape(_COLUMNS, _BYTES, -1).transpose(2, 0, 1))
    return columns.reshape(-1, _COLUMNS * _BYTES).view("<i4").astype(np.int32, copy=False)

"""What networks said of each block, kept on disk until all blocks are done: a killed run goes on where it was.

One file per block, written whole or not at all. Arrays are cut into pieces, each compressed for itself, so that the
place that two blocks share is read without the rest.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pixvox.errors import DataError
from pixvox.files import remove_parts, whole_file
from pixvox.inference.blocks import Block, Region, intersection, within

_MAGIC = b"pixvox tile 1\n"


class TileStore:
    """Files of blocks in a folder, beside a note of what they were made with.

    Args:
        folder: Made when missing.
        made_with: Everything that the content depends on, as plain values: files that were made with something else are
            removed.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pixvox.inference.blocks import Blocks
        >>> store, block = TileStore(Path(mkdtemp()), {"weights": "a1"}), Blocks((8, 8), (6, 8))[1]
        >>> store.save(block, np.arange(40).reshape(5, 8), scores=np.ones(2))
        >>> store.has(block), store.read(block, (slice(6, 7), slice(0, 3))).tolist()
        (True, [[24, 25, 26]])
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        self.folder = folder
        self.resumed = False
        note = json.dumps(made_with, sort_keys=True, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        remove_parts(folder)
        path = folder / "made_with.json"
        if path.exists() and path.read_text() == note:
            self.resumed = any(folder.glob("*.tile"))
            return
        path.unlink(missing_ok=True)
        for old in folder.iterdir():
            old.unlink()
        with whole_file(path) as part:
            part.write_text(note)

    def has(self, block: Block) -> bool:
        """Tell whether a block is done."""
        return self._path(block).exists()

    def save(self, block: Block, values: np.ndarray, **columns: np.ndarray) -> None:
        """Write values ``(*kept)`` or ``(channels, *kept)`` of a block, and arrays that belong to them."""
        lead = values.ndim - len(block.kept)
        cuts = _cuts(block)
        parts = [_pack(values[(slice(None),) * lead + region]) for region in _regions(block.size, cuts)]
        extra = {name: np.ascontiguousarray(column) for name, column in columns.items()}
        head = {
            "shape": list(values.shape[:lead]),
            "type": values.dtype.str,
            "cuts": cuts,
            "parts": [(len(part), zlib.crc32(part)) for part in parts],
            "columns": {name: [column.dtype.str, list(column.shape)] for name, column in extra.items()},
        }
        text = json.dumps(head).encode()
        body = b"".join(column.tobytes() for column in extra.values())
        with whole_file(self._path(block)) as part, part.open("wb") as file:
            file.write(_MAGIC + b"%d %d %d\n" % (len(text), zlib.crc32(text), zlib.crc32(body)) + text + body)
            file.writelines(parts)

    def columns(self, block: Block) -> dict[str, np.ndarray]:
        """Return the arrays that were saved beside the values of a block."""
        return _Tile.open(self._path(block)).columns

    def read(self, block: Block, region: Region) -> np.ndarray:
        """Return the values of a block in a region of the volume that the block keeps.

        Raises:
            DataError: If the file is damaged.
        """
        tile = _Tile.open(self._path(block))
        result = np.empty((*tile.lead, *(part.stop - part.start for part in region)), dtype=tile.dtype)
        for place, values in self._unpacked(tile, block, region):
            result[(slice(None),) * len(tile.lead) + within(place, region)] = values
        return result

    def pieces(self, block: Block, region: Region) -> Iterator[tuple[Region, np.ndarray]]:
        """Yield the parts that a region is kept in, with their places in the volume: none is copied.

        Raises:
            DataError: If the file is damaged.
        """
        return self._unpacked(_Tile.open(self._path(block)), block, region)

    def _unpacked(self, tile: _Tile, block: Block, region: Region) -> Iterator[tuple[Region, np.ndarray]]:
        lead, wanted = (slice(None),) * len(tile.lead), within(region, block.kept)
        with tile.path.open("rb") as file:
            for place, part in zip(_regions(block.size, tile.cuts), tile.parts, strict=True):
                both = intersection(place, wanted)
                if both is None:
                    continue
                shape = (*tile.lead, *(axis.stop - axis.start for axis in place))
                values = tile.unpack(file, part, shape)[lead + within(both, place)]
                corners = zip(both, block.kept, strict=True)
                yield tuple(slice(x.start + k.start, x.stop + k.start) for x, k in corners), values

    def remove(self) -> None:
        """Remove all files, and the folder."""
        shutil.rmtree(self.folder)

    def _path(self, block: Block) -> Path:
        return self.folder / f"{block.number:08d}.tile"


@dataclass(frozen=True)
class _Tile:
    """What the head of a file tells.

    Args:
        path: The file.
        lead: Lengths of the axes before the spatial ones.
        dtype: Of the values.
        cuts: Where pieces begin along each spatial axis.
        parts: Place of each piece in the file, its length and its sum.
        columns: Arrays beside the values.
    """

    path: Path
    lead: tuple[int, ...]
    dtype: np.dtype[Any]
    cuts: list[list[int]]
    parts: list[tuple[int, int, int]]
    columns: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: Path) -> _Tile:
        try:
            with path.open("rb") as file:
                if file.readline() != _MAGIC:
                    raise ValueError("it does not begin as such a file does")
                length, head_sum, body_sum = map(int, file.readline().split())
                text = file.read(length)
                if zlib.crc32(text) != head_sum:
                    raise ValueError("its head does not have its sum")
                head = json.loads(text)
                sizes = [
                    np.dtype(kind).itemsize * math.prod(shape) for kind, shape in head["columns"].values()
                ]
                body = file.read(sum(sizes))
                if zlib.crc32(body) != body_sum:
                    raise ValueError("its columns do not have their sum")
                start = file.tell()
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from error
        columns, at = {}, 0
        for (name, (kind, shape)), size in zip(head["columns"].items(), sizes, strict=True):
            columns[name] = np.frombuffer(body[at : at + size], dtype=kind).reshape(shape)
            at += size
        parts = []
        for size, expected in head["parts"]:
            parts.append((start, size, expected))
            start += size
        return cls(path, tuple(head["shape"]), np.dtype(head["type"]), head["cuts"], parts, columns)

    def unpack(self, file: BinaryIO, part: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
        start, size, expected = part
        file.seek(start)
        packed = file.read(size)
        if zlib.crc32(packed) != expected:
            raise _damaged(self.path, "a piece does not have its sum")
        return np.frombuffer(_codec().decode(packed), dtype=self.dtype).reshape(shape)


def _cuts(block: Block) -> list[list[int]]:
    """Return where pieces begin: what a block shares with the one before it and the one behind it is cut off."""
    cuts = []
    for kept, core in zip(block.kept, block.core, strict=True):
        low, high = core.start - kept.start, kept.stop - core.stop
        length = kept.stop - kept.start
        inner = [2 * low, length - 2 * high]
        cuts.append(sorted({0, *(cut for cut in inner if 0 < cut < length)}))
    return cuts


def _regions(size: Sequence[int], cuts: Sequence[Sequence[int]]) -> list[Region]:
    parts = [
        [slice(first, last) for first, last in zip(starts, [*starts[1:], length], strict=True)]
        for starts, length in zip(cuts, size, strict=True)
    ]
    return list(product(*parts))


def _pack(values: np.ndarray) -> bytes:
    return bytes(_codec().encode(np.ascontiguousarray(values)))


def _codec() -> Any:
    from numcodecs import Blosc

    # Label maps shrink thirtyfold at several times the speed of any other setting that was measured.
    return Blosc("lz4", clevel=5, shuffle=Blosc.NOSHUFFLE)


def _damaged(path: Path, why: object) -> DataError:
    return DataError(f"{path}: the file is damaged ({why}); remove it, and its block is predicted again")

"""A dataset decoded once, in one memory-mapped file: later epochs read samples instead of decoding images.

The file: a head of 64 bytes (magic, version, place and checksum of the table), the records, and at its end a
table with place, length and checksum of each record. A record is a JSON line with the plain fields of a sample
and the type, shape and place of its arrays, then the arrays. Whole numbers are kept in the smallest type that
holds them, so an 8-bit image takes 8 bits; nothing is lost, unless 16-bit floats are asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pixvox.data.dataset import Dataset
from pixvox.data.download import locked
from pixvox.data.identity import identity
from pixvox.data.loader import leave_interrupts_to_parent, without_traceback
from pixvox.data.sample import Sample
from pixvox.data.views import read_sample
from pixvox.errors import DataError, PixvoxError
from pixvox.files import whole_file

logger = logging.getLogger(__name__)

MAGIC = b"PIXVOXDS"
VERSION = 1
_HEAD = struct.Struct(
    "<8sIIQQQ"
)  # magic, version, checksum of the tail, its place, length of its JSON, records
_ALIGNMENT = 64
_TABLE = np.dtype([("place", "<u8"), ("length", "<u8"), ("checksum", "<u4")])
_SHAPED = {"spacing", "original_size"}
"""Fields that are tuples, which JSON does not know."""


class CachedDataset(Dataset):
    """Read the samples of a dataset from a memory-mapped file, which is written when there is none.

    The file belongs to one state of the dataset: changed options give another file, changed source files
    (size or time of change) a new one in its place. It appears whole or not at all; processes that want it at once
    write it once. A file that is damaged in its table is written anew; a record that is damaged is read from the
    source, with a warning.

    Args:
        dataset: What is read.
        folder: Where the file lies, or is made.
        image_type: ``"source"`` keeps every value; ``"float16"`` rounds images of floats to half their size.
        num_workers: Processes that read the source while the file is written.
        skip_bad: Leave images out that cannot be read instead of raising; asked for, they raise all the same.

    Raises:
        DataError: If the folder cannot be written to or has too little room, or a source image cannot be read.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> shapes = Shapes(2, seed=0, image_size=32, radius=(4, 8))
        >>> cached = CachedDataset(shapes, mkdtemp())
        >>> torch.equal(cached[1].image, shapes[1].image)
        True
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: str | Path,
        image_type: Literal["source", "float16"] = "source",
        num_workers: int = 0,
        skip_bad: bool = False,
    ) -> None:
        if image_type not in ("source", "float16"):
            raise ValueError(f"image_type takes source or float16, got {image_type!r}")
        self.dataset = dataset
        self.metadata = dataset.metadata
        stated = {"dataset": identity(dataset), "image_type": image_type}
        key = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
        name = "".join(letter if letter.isalnum() else "_" for letter in dataset.metadata.name) or "dataset"
        self.file = Path(folder) / f"{name}-{key[:16]}.pixvox"
        stamp = {"dataset": key, "files": file_state(dataset)}
        self._map: np.ndarray | None = None
        self._checked: set[int] = set()
        with _lock(self.file):
            try:
                self._table = _read_table(self.file, stamp)
            except _UnusableError as reason:
                logger.info("%s: %s; it is written", self.file, reason)
                _write(self.file, dataset, stamp, image_type, num_workers, skip_bad)
                self._table = _read_table(self.file, stamp)

    def __len__(self) -> int:
        return len(self._table)

    def __getstate__(self) -> dict[str, Any]:
        # Each process opens the file by itself, when it first reads.
        return {**self.__dict__, "_map": None, "_checked": set()}

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        if self._map is None:
            self._map = np.memmap(self.file, mode="r")
        place, length, checksum = (int(value) for value in self._table[index])
        if not length:  # it could not be read when the file was written
            return self.dataset[index]
        record = self._map[place : place + length]
        if index not in self._checked:
            if zlib.crc32(record.data) != checksum:
                logger.warning(
                    "%s: the record of image %d is damaged, its source is read instead; delete the file to have "
                    "it written anew", self.file, index,
                )  # fmt: skip
                return self.dataset[index]
            self._checked.add(index)
        return replace(_unpack(record), index=index)

    def source(self, index: int) -> str:
        """Return the file or name of image ``index``."""
        return self.dataset.source(index)

    def source_files(self, index: int) -> list[Path]:
        """Return the files that image ``index`` comes from."""
        return self.dataset.source_files(index)

    def classes_in(self, index: int) -> set[int]:
        """Return the class indices that image ``index`` shows."""
        return self.dataset.classes_in(index)

    def unlabelled_indices(self) -> list[int]:
        """Return the indices of images that have no annotations at all."""
        return self.dataset.unlabelled_indices()


def cache_folder() -> Path:
    """Return where caches lie when no folder is given: ``pixvox/datasets`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pixvox" / "datasets"


class _UnusableError(Exception):
    """The file cannot be used as it is; the text says why."""


def file_state(dataset: Dataset) -> str:
    """Return a sum over name, size and time of change of all source files."""
    files = sorted({str(file) for index in range(len(dataset)) for file in dataset.source_files(index)})
    digest = hashlib.sha256()
    for file in files:
        try:
            state = os.stat(file)
            digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{file}\0absent\n".encode())
    return digest.hexdigest()


def _read_table(file: Path, stamp: Mapping[str, str]) -> np.ndarray:
    """Return the table of a file that is whole and belongs to ``stamp``.

    Raises:
        _UnusableError: If it is not.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise _UnusableError("the file is cut off")
            magic, version, checksum, place, length, count = _HEAD.unpack(head)
            if magic != MAGIC or version != VERSION:
                raise _UnusableError(f"the file is no cache of version {VERSION}")
            stream.seek(0, os.SEEK_END)
            if stream.tell() != place + length + count * _TABLE.itemsize:
                raise _UnusableError("the file is cut off")
            stream.seek(place)
            tail = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        raise _UnusableError("there is no cache yet") from None
    except OSError as error:
        raise _UnusableError(f"the file cannot be read ({error})") from None
    if zlib.crc32(tail) != checksum:
        raise _UnusableError("the table of the file is damaged")
    stated = json.loads(tail[:length])
    if stated != dict(stamp):
        raise _UnusableError("the source files have changed")
    return np.frombuffer(tail, _TABLE, count, length).copy()


class _Readings(TorchDataset["Sample | None"]):
    """The samples of a dataset; None in place of those that cannot be read and may be skipped."""

    def __init__(self, dataset: Dataset, skip_bad: bool) -> None:
        self.dataset = dataset
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | None:
        try:
            return read_sample(self.dataset, index)
        except DataError as error:
            if not self.skip_bad:
                raise
            logger.warning("not cached: %s", error)
            return None


def _write(
    file: Path,
    dataset: Dataset,
    stamp: Mapping[str, str],
    image_type: str,
    num_workers: int,
    skip_bad: bool,
) -> None:
    """Write the file of all samples; a sample that is skipped has an empty record.

    Raises:
        DataError: If a sample cannot be read, or the file cannot be written.
    """
    table = np.zeros(len(dataset), _TABLE)
    loader: DataLoader[Sample | None] = DataLoader(
        _Readings(dataset, skip_bad),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=leave_interrupts_to_parent,
        generator=torch.Generator(),  # its own: writing a cache must not move the global one
    )
    started = said = time.perf_counter()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part, part.open("wb") as stream:
            stream.write(bytes(_ALIGNMENT))
            for index, sample in enumerate(loader):
                record = _pack(sample, image_type) if sample is not None else b""
                table[index] = (stream.tell(), len(record), zlib.crc32(record))
                stream.write(record)
                if index in (0, 15) or index % 1000 == 0:
                    _check_room(file, stream.tell(), index + 1, len(dataset))
                if time.perf_counter() - said > 10:
                    said = time.perf_counter()
                    logger.info("cache: %d of %d images", index + 1, len(dataset))
            _finish(stream, table, stamp)
    except PixvoxError as error:
        raise without_traceback(error) from None
    except OSError as error:
        raise DataError(
            f"{file} cannot be written ({error}); give another folder: data.cache=FOLDER"
        ) from error
    size = file.stat().st_size / 2**20
    logger.info("%s: %d images, %.0f MiB, %.0f s", file, len(table), size, time.perf_counter() - started)


def _finish(stream: BinaryIO, table: np.ndarray, stamp: Mapping[str, str]) -> None:
    place = stream.tell()
    stated = json.dumps(dict(stamp)).encode()
    tail = stated + table.tobytes()
    stream.write(tail)
    stream.seek(0)
    stream.write(_HEAD.pack(MAGIC, VERSION, zlib.crc32(tail), place, len(stated), len(table)))
    stream.flush()
    os.fsync(stream.fileno())


def _check_room(file: Path, written: int, done: int, count: int) -> None:
    wanted = written / done * (count - done)
    free = shutil.disk_usage(file.parent).free
    if wanted > free:
        raise DataError(
            f"the cache needs about {(written + wanted) / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free in "
            f"{file.parent}; give a folder on another disk: data.cache=FOLDER, or leave the cache out"
        )


_MADE_LATER = ("flip_pairs", "hidden", "inside", "views", "further")
"""What a sample gets on its way to a training, not from its dataset."""


def _pack(sample: Sample, image_type: str) -> bytes:
    """Return a sample as one record."""
    plain: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    types: dict[str, str] = {}
    for field in fields(Sample):
        if field.name in _MADE_LATER:
            continue
        value = getattr(sample, field.name)
        if isinstance(value, Tensor):
            array = value.numpy()
            types[field.name] = str(array.dtype)
            half = field.name == "image" and image_type == "float16"
            arrays[field.name] = _smallest(array, half)
        else:
            plain[field.name] = value
    places: dict[str, tuple[str, str, list[int], int]] = {}
    place = 0
    for name, array in arrays.items():
        places[name] = (str(array.dtype), types[name], list(array.shape), place)
        place = _aligned(place + array.nbytes)
    text = json.dumps({"plain": plain, "arrays": places}).encode()
    record = bytearray(_aligned(4 + len(text)) + place)
    record[: 4 + len(text)] = struct.pack("<I", len(text)) + text
    start = _aligned(4 + len(text))
    for name, array in arrays.items():
        first = start + places[name][3]
        record[first : first + array.nbytes] = array.tobytes()
    return bytes(record)


def _unpack(record: np.ndarray) -> Sample:
    """Return the sample of a record."""
    (length,) = struct.unpack("<I", record[:4].tobytes())
    stated = json.loads(record[4 : 4 + length].tobytes())
    start = _aligned(4 + length)
    values: dict[str, Any] = {
        name: tuple(value) if name in _SHAPED and value is not None else value
        for name, value in stated["plain"].items()
    }
    for name, (stored, wanted, shape, place) in stated["arrays"].items():
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(record, stored, count, start + place).reshape(shape)
        values[name] = torch.from_numpy(array.astype(wanted))  # a copy: samples must not change the file
    return Sample(**values)


def _smallest(array: np.ndarray, half: bool) -> np.ndarray:
    """Return the array in the smallest type that holds its values exactly, or as 16-bit floats when ``half``."""
    if not array.size or array.dtype == bool:
        return array
    lowest, highest = array.min(), array.max()
    if lowest >= 0:
        for kind in (np.uint8, np.uint16, np.uint32):
            if highest <= np.iinfo(kind).max and np.dtype(kind).itemsize < array.dtype.itemsize:
                small = array.astype(kind)
                if array.dtype.kind in "iu" or np.array_equal(small, array):
                    return small
    if half and array.dtype.kind == "f" and max(abs(lowest), abs(highest)) <= np.finfo(np.float16).max:
        return array.astype(np.float16)
    return array


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Let one process at a time check and write a file."""
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(file))
        except OSError:  # a folder for reading only: what lies there can be used
            logger.debug("%s cannot be locked", file)
        yield

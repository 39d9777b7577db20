"""TIFF files of any size: mapped when their values lie in one piece, else the strips and tiles that are needed."""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixvox.data.readers.handle import Handle
from pixvox.data.readers.regions import Index, lengths_of, overlap, pieces
from pixvox.data.readers.tiff import (
    check_lengths,
    check_shape,
    check_whole,
    inverted,
    quiet_tifffile,
    spacing_of,
)
from pixvox.data.volumes.formats.mapped import MappedFile
from pixvox.data.volumes.formats.stored_array import Header, StoredArray
from pixvox.errors import DataError

log = logging.getLogger("pixvox")

CACHE_BYTES = 64 * 2**20
"""Decoded strips and tiles that are kept of each open file: neighbouring regions need the same ones."""

MAX_SEGMENT = 200_000_000
"""Values of one strip or tile that are decoded without asking, as of one picture: see ``MAX_PIXELS``."""

_LARGE_SEGMENT = 4 * 2**20
_JPEG = (6, 7, 33007, 34892)


def open_tiff(path: Path, level: int = 0) -> StoredArray:
    """Open the first series of a TIFF file, plain, ImageJ or OME, also beyond 4 GB.

    The chain of pages is followed, so that a file that was cut off is refused; no values are read. Indices of a
    palette are kept as they are.

    Args:
        path: The file.
        level: Level of a pyramid, 0 is the finest.

    Raises:
        DataError: If the file is damaged, cut off, in several files, or stored so that reading a region would
            decode more than ``MAX_SEGMENT`` values.
    """
    import tifffile

    pages = check_whole(path)
    try:
        with quiet_tifffile(), tifffile.TiffFile(path) as file:
            series = _series(file, path, level)
            page = series.keyframe
            check_lengths(path, page)
            check_shape(path, file, file.series[0], pages)
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and page.dtype.kind not in "bu":
                raise DataError(
                    f"{path}: values of type {page.dtype} cannot count from white; export it again"
                )
            white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
            offset = series.dataoffset
            header = _header(file, series, None if page.is_final else _chunks(series))
            array: StoredArray
            if offset is not None:
                array = MappedFile(path, header, series.dtype.newbyteorder(file.byteorder), int(offset))
                array.check_size()
            else:
                if not page.is_final:
                    _check_segments(path, page)
                array = TiffPages(path, level, header)
    except DataError:
        raise
    except Exception as error:  # tifffile and its codecs raise their own, unrelated types
        raise DataError(f"{path}: the TIFF is damaged or cut off ({error})") from error
    return _FromWhite(array) if white else array


class TiffPages:
    """A TIFF file whose pages are mapped, or their strips and tiles decoded, when a region needs them.

    Args:
        path: The file.
        level: Level of a pyramid, 0 is the finest.
        header: What is known of the array.
    """

    def __init__(self, path: Path, level: int, header: Header) -> None:
        self.path, self.header = path, header
        self._segments = Handle(_Segments, path, level, header.shape)

    def read(self, index: Index) -> np.ndarray:
        """Return the values at ``index``; of strips and tiles that are not stored, 0.

        Raises:
            DataError: If a page, strip or tile is damaged or cut off.
        """
        segments = self._segments()
        values = np.zeros(lengths_of(index, self.header.shape), segments.dtype)
        region = segments.in_page(index)
        touched = segments.touched(region)
        by_page = values.reshape(-1, *lengths_of(region, segments.page_shape))
        for into, number in zip(by_page, segments.pages(index), strict=True):
            segments.fill(into, number, region, touched)
        return values

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        """Return the strips and tiles that ``index`` touches and that are not stored."""
        segments = self._segments()
        touched = segments.touched(segments.in_page(index))
        return [
            (f"{segments.kind} {segment} of page {number}", segments.place(number, place))
            for number in segments.pages(index)
            for segment, place in segments.missing(number, touched)
        ]


class _FromWhite:
    """An array whose file stores white as 0."""

    def __init__(self, array: StoredArray) -> None:
        self.array, self.header = array, array.header

    def read(self, index: Index) -> np.ndarray:
        return inverted(self.array.read(index))

    def missing(self, index: Index) -> Sequence[tuple[str, Index]]:
        return self.array.missing(index)


class _Segments:
    """The strips and tiles of an open file; the ones decoded last are kept.

    A page is treated as tifffile does, with five axes: separate samples, depth, length, width, contiguous samples.
    The last axes of the array are those of a page without the ones of length 1; the first count pages.
    """

    def __init__(self, path: Path, level: int, shape: tuple[int, ...]) -> None:
        import tifffile

        self.path = path
        try:
            with quiet_tifffile():
                self.file = tifffile.TiffFile(path)
                self.series = _series(self.file, path, level)
        except DataError:
            raise
        except Exception as error:  # as in open_tiff
            raise DataError(f"{path}: the TIFF is damaged or cut off ({error})") from error
        if tuple(self.series.shape) != shape:
            raise DataError(
                f"{path}: the file has changed: its shape was {shape} and is {tuple(self.series.shape)} now"
            )
        page = self.series.keyframe
        self.shape, self.page_shape, self.dtype = shape, tuple(page.shaped), np.dtype(page.dtype)
        self.lead, self.axes = _page_axes(path, shape, self.page_shape)
        self.kind, self.steps = "tile" if page.is_tiled else "strip", _steps(page)
        counts = zip(self.page_shape, self.steps, strict=True)
        self.counts = [math.ceil(length / step) for length, step in counts]
        self.decode, self.jpeg = page.decode, page.compression in _JPEG
        self.lock = threading.Lock()
        self.plain, self.stored_dtype = page.is_final, np.dtype(page.dtype).newbyteorder(self.file.byteorder)
        self.kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.kept_bytes = 0

    def pages(self, index: Index) -> Iterator[int]:
        """Yield the numbers of the pages that ``index`` touches."""
        ranges = [range(*part.indices(n)) for part, n in zip(index[: self.lead], self.shape, strict=False)]
        for offsets in np.ndindex(*(len(numbers) for numbers in ranges)):
            page = 0
            for numbers, offset, length in zip(ranges, offsets, self.shape, strict=False):
                page = page * length + numbers[offset]
            yield page

    def in_page(self, index: Index) -> Index:
        """Return ``index`` along the five axes of each page."""
        inner = [slice(0, 1)] * 5
        for axis, part in zip(self.axes, index[self.lead :], strict=True):
            if axis is not None:
                start, stop, _ = part.indices(self.page_shape[axis])
                inner[axis] = slice(start, stop)
        return tuple(inner)

    def touched(self, region: Index) -> list[tuple[int, Index]]:
        """Return number and place of the segments of a page that a region of it touches."""
        return [
            (int(np.ravel_multi_index(position, self.counts)), place)
            for position, place in pieces(region, self.page_shape, self.steps)
        ]

    def place(self, page: int, place: Index) -> Index:
        """Return the place in the array of a place in a page."""
        position = np.unravel_index(page, self.shape[: self.lead]) if self.lead else ()
        lead = [slice(int(at), int(at) + 1) for at in position]
        return tuple(lead) + tuple(slice(0, 1) if axis is None else place[axis] for axis in self.axes)

    def missing(self, number: int, touched: Sequence[tuple[int, Index]]) -> list[tuple[int, Index]]:
        """Return which of the segments that are touched were never written in a page."""
        page = self._page(number)
        return [(segment, place) for segment, place in touched if not _is_stored(page, segment)]

    def fill(
        self, into: np.ndarray, number: int, region: Index, touched: Sequence[tuple[int, Index]]
    ) -> None:
        """Write a region of a page to an array; what is not stored is left as it is."""
        page = self._page(number)
        if page is not None and self.plain and _in_one_piece(page):
            into[...] = self._map(page, number)[region]
            return
        for segment, place in touched:
            if _is_stored(page, segment):
                target, part = overlap(region, place)
                into[target] = self._segment(page, number, segment, place)[part]

    def _map(self, page: Any, number: int) -> np.ndarray:
        """Return a page whose values lie in one piece; none of them is read."""
        try:
            return np.memmap(self.path, self.stored_dtype, "r", page.dataoffsets[0], self.page_shape)
        except (OSError, ValueError) as error:
            raise self._damaged(f"page {number}", error) from error

    def _segment(self, page: Any, number: int, segment: int, place: Index) -> np.ndarray:
        """Return a segment with the five axes of a page."""
        with self.lock:
            if (number, segment) in self.kept:
                self.kept.move_to_end((number, segment))
                return self.kept[number, segment]
        decoded = self._decode(page, number, segment, lengths_of(place, self.page_shape))
        with self.lock:
            if (number, segment) not in self.kept:
                self.kept[number, segment] = decoded
                self.kept_bytes += decoded.nbytes
            while len(self.kept) > 1 and self.kept_bytes > CACHE_BYTES:
                self.kept_bytes -= self.kept.popitem(last=False)[1].nbytes
        return decoded

    def _decode(self, page: Any, number: int, segment: int, lengths: tuple[int, ...]) -> np.ndarray:
        offset, count = page.dataoffsets[segment], page.databytecounts[segment]
        try:
            if offset + count > self.file.filehandle.size:  # else that much memory is asked for
                raise ValueError(f"it ends at byte {offset + count} of {self.file.filehandle.size}")
            with self.lock:
                self.file.filehandle.seek(offset)
                raw = self.file.filehandle.read(count)
            further = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if self.jpeg else {}
            with quiet_tifffile():
                decoded: np.ndarray = self.decode(raw, segment, **further)[0]
            decoded = decoded[tuple(slice(0, length) for length in lengths[1:])][None]
            if decoded.shape != lengths:
                raise ValueError(f"it holds {decoded.shape[1:]} of {lengths[1:]} values")
        except Exception as error:  # codecs raise their own, unrelated types
            raise self._damaged(f"{self.kind} {segment} of page {number}", error) from error
        return np.array(decoded)  # else the last rows would keep all of a padded tile

    def _page(self, number: int) -> Any:
        """Return a page, None where the description names one that the file does not have."""
        with self.lock, quiet_tifffile():
            try:
                page = self.series[number]
            except Exception as error:  # tifffile raises IndexError, or what parsing raises
                raise self._damaged(f"page {number}", error) from error
        if page is not None and page.shaped != self.page_shape:
            raise DataError(
                f"{self.path}: page {number} has the shape {page.shape}, the first {self.series.keyframe.shape}; "
                "export them as files of their own"
            )
        return page

    def _damaged(self, what: str, error: Exception) -> DataError:
        return DataError(f"{self.path}: {what} is damaged or cut off ({error}); copy the file again")


def _is_stored(page: Any, segment: int) -> bool:
    """Tell whether a segment was ever written."""
    return page is not None and segment < len(page.databytecounts) and page.databytecounts[segment] > 0


def _in_one_piece(page: Any) -> bool:
    """Tell whether the segments of an uncompressed page follow one another."""
    offsets, counts = page.dataoffsets, page.databytecounts
    follows = len(offsets) > 0 and offsets[-1] + counts[-1] - offsets[0] == page.nbytes
    return follows and all(a + n == b for a, n, b in zip(offsets, counts, offsets[1:], strict=False))


def _series(file: Any, path: Path, level: int) -> Any:
    """Return a level of the first series."""
    levels = file.series[0].levels
    if not 0 <= level < len(levels):
        raise DataError(f"{path}: there is no level {level}; it has {len(levels)}, counted from 0")
    if levels[level].is_multifile:
        raise DataError(f"{path} is one of several files of a volume; export it as one, or as OME-Zarr")
    return levels[level]


def _header(file: Any, series: Any, chunks: tuple[int, ...] | None) -> Header:
    """Return what is known of a series; the pixels of coarse levels are larger than what the file states."""
    base = file.series[0]
    spacing = spacing_of(file, file.pages.first)
    if series is not base and series.axes == base.axes:
        factors = zip(series.axes, base.shape, series.shape, strict=True)
        spacing = {
            axis: spacing[axis] * fine / coarse
            for axis, fine, coarse in factors
            if axis in spacing and coarse
        }
    dtype = np.dtype(np.uint8) if series.dtype.kind == "b" else np.dtype(series.dtype).newbyteorder("=")
    shape = tuple(int(length) for length in series.shape)
    return Header(shape, dtype, series.axes, spacing, chunks=chunks)


def _steps(page: Any) -> tuple[int, ...]:
    """Return the lengths of a strip or tile along the five axes of a page."""
    _, _, length, width, samples = page.shaped
    if page.is_tiled:
        return 1, max(page.tiledepth, 1), page.tilelength, page.tilewidth, samples
    return 1, 1, min(page.rowsperstrip, length), width, samples


def _page_axes(
    path: Path, shape: tuple[int, ...], page_shape: tuple[int, ...]
) -> tuple[int, list[int | None]]:
    """Return how many axes of the array count pages, and which of a page's five axes each other one is."""
    lead = len(shape)
    while lead > 0 and math.prod(shape[lead:]) < math.prod(page_shape):
        lead -= 1
    long = [axis for axis, length in enumerate(page_shape) if length > 1]
    if [page_shape[axis] for axis in long] != [length for length in shape[lead:] if length > 1]:
        raise DataError(
            f"{path}: pages of shape {page_shape} do not make up the shape {shape}; export it again"
        )
    rest = iter(long)
    return lead, [next(rest) if length > 1 else None for length in shape[lead:]]


def _chunks(series: Any) -> tuple[int, ...]:
    """Return the lengths of a strip or tile along the axes of the array."""
    page = series.keyframe
    shape = tuple(int(length) for length in series.shape)
    lead, axes = _page_axes(Path(series.parent.filename), shape, tuple(page.shaped))
    steps = _steps(page)
    return (1,) * lead + tuple(1 if axis is None else int(steps[axis]) for axis in axes)


def _check_segments(path: Path, page: Any) -> None:
    """Refuse strips and tiles that no memory should be asked for; note those that make reading slow."""
    values = math.prod(_steps(page))
    kind = "tile" if page.is_tiled else "strip"
    if values > MAX_SEGMENT:
        raise DataError(
            f"{path}: one {kind} holds {values} values, so that every region would decode as many; "
            "export it with tiles of 512 x 512, or uncompressed"
        )
    if values > _LARGE_SEGMENT:
        log.info(
            "%s keeps %s values in each compressed %s, so each region is slow to read; "
            "pixvox data convert %s %s.zarr helps",
            path, values, kind, path, path.name.partition(".")[0],
        )  # fmt: skip

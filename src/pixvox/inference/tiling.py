"""Large images and volumes tile by tile: windows overlap, and their class scores are blended.

A row of tiles needs scores for itself alone: what the next row does not reach is finished and handed on, so memory
follows the tile along the longest way, not the image.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.errors import ConfigError
from pixvox.image_means import ImageMeans
from pixvox.inference.class_scores import Scores, Strip
from pixvox.structures import Size

Blend = Literal["gaussian", "linear", "constant"]
PoolOver = Literal["image", "tile"]

_LEAST = 1e-3
"""Weight at the edge of a window relative to its centre: a pixel that one window sees is still seen."""

_TYPES = {"float32": torch.float32, "float16": torch.float16}


class Tiled:
    """Blends the scores of overlapping tiles.

    Where tiles overlap, each counts by how near its own centre a pixel is, since a network knows least at the
    border of what it sees: "nnU-Net" (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z) weighs by a
    Gaussian. The weights of all tiles are 1 together at every pixel. Tiles begin at multiples of the network's
    strides, so that its grid lies in every tile as it lies in the image. A network that pools globally is given the
    means of the image, which a first pass over tiles that hardly overlap gathers (``pixvox.image_means``).

    Scores take ``classes * (t + o) * rest`` elements: ``t`` is the length of a tile and ``o < t`` that of the overlap
    along the axis with the most tiles, ``rest`` the product of the image's lengths along the other axes. With the
    scores of ``batch_size`` tiles and the network's own memory, this is all that grows with the number of classes.

    Args:
        scores: Of tiles.
        tile_size: Lengths in array order; an image that is shorter along an axis is not padded to it.
        overlap: Least share of a tile that the next one covers too, in [0, 1).
        blend: ``"gaussian"`` with a deviation of an eighth of the tile, ``"linear"`` to the edges of the overlap,
            or ``"constant"``.
        batch_size: Tiles that go through the network together.
        accumulator: ``"float32"``, or ``"float16"`` to halve the memory of the scores.
        divisor: Tiles begin at its multiples, per axis in array order; as ``Segmenter.size_divisor``.
        pool_over: What global pools take the mean of: ``"image"``, or ``"tile"``, which saves the first pass.

    Raises:
        ConfigError: If an option has no such value.

    Example:
        >>> tiled = Tiled(lambda images, ranges: 2 * images, tile_size=(4, 4))
        >>> image = torch.arange(70.0).reshape(1, 7, 10)
        >>> parts = [strip.logits.clone() for strip in tiled.strips(image, torch.zeros(1, 2))]
        >>> [tuple(part.shape) for part in parts]
        [(1, 7, 2), (1, 7, 2), (1, 7, 2), (1, 7, 4)]
        >>> torch.allclose(torch.cat(parts, dim=2), 2 * image)
        True
    """

    def __init__(
        self,
        scores: Scores,
        tile_size: Sequence[int],
        overlap: float = 0.5,
        blend: Blend = "gaussian",
        batch_size: int = 1,
        accumulator: Literal["float32", "float16"] = "float32",
        divisor: Sequence[int] | None = None,
        pool_over: PoolOver = "image",
    ) -> None:
        if not all(length >= 1 for length in tile_size):
            raise ConfigError(f"tile_size must be at least 1 along every axis, got {list(tile_size)}")
        if not 0 <= overlap < 1:
            raise ConfigError(
                f"overlap is the share of a tile that the next covers too, in [0, 1); got {overlap}"
            )
        if blend not in _WINDOWS:
            raise ConfigError(f"blend must be one of {', '.join(_WINDOWS)}; got {blend!r}")
        if accumulator not in _TYPES:
            raise ConfigError(f"accumulator must be one of {', '.join(_TYPES)}; got {accumulator!r}")
        if pool_over not in ("image", "tile"):
            raise ConfigError(f"pool_over must be image or tile; got {pool_over!r}")
        if batch_size < 1:
            raise ConfigError(f"tile_batch_size must be at least 1, got {batch_size}")
        self.scores = scores
        self.tile_size = tuple(tile_size)
        self.overlap = overlap
        self.blend = blend
        self.batch_size = batch_size
        self.dtype = _TYPES[accumulator]
        self.divisor = tuple(divisor or (1,) * len(self.tile_size))
        self.pools = pool_over == "image"  # until the first tile tells that there are none

    def strips(
        self, image: Float[Tensor, "channels *spatial"], intensity_range: Float[Tensor, "channels 2"]
    ) -> Iterator[Strip]:
        """Yield the finished scores of an image, part after part.

        Args:
            image: Un-normalised; tiles alone are moved to the network's device.
            intensity_range: Of the full image.
        """
        layout = self._layout(image, self.overlap, self.blend)
        means = self._means(image, intensity_range) if self.pools and layout.count > 1 else None
        sums: Tensor | None = None
        for row in range(layout.rows):
            for tiles in _batches(layout.tiles(row), self.batch_size):
                with contextlib.nullcontext() if means is None else means.use():
                    logits = self._scores_of(tiles, image, intensity_range)
                if sums is None:
                    sums = logits.new_zeros((logits.shape[1], *layout.row_size), dtype=self.dtype)
                for tile, scored in zip(tiles, logits, strict=True):
                    sums[(slice(None), *tile.place)] += tile.weighted(scored)
            if sums is not None:
                done = layout.finished(row)
                yield Strip(layout.axis, layout.first(row), sums.narrow(layout.axis + 1, 0, done))
                _advance(sums, layout.axis + 1, done)

    def _layout(self, image: Tensor, overlap: float, blend: Blend) -> _Layout:
        return _Layout(tuple(image.shape[1:]), self.tile_size, overlap, blend, self.divisor)

    def _scores_of(self, tiles: Sequence[_Tile], image: Tensor, intensity_range: Tensor) -> Tensor:
        images = torch.stack([image[(slice(None), *tile.region)] for tile in tiles])
        return self.scores(images, intensity_range.expand(len(images), -1, -1))

    def _means(self, image: Tensor, intensity_range: Tensor) -> ImageMeans | None:
        """Return what the network's global pools give for the image; None where it has none."""
        layout, means = self._layout(image, 0.0, "constant"), ImageMeans()
        for row in range(layout.rows):
            for tiles in _batches(layout.tiles(row), self.batch_size):
                with means.gather(torch.tensor([tile.share for tile in tiles])):
                    self._scores_of(tiles, image, intensity_range)
                self.pools = means.found
                if not self.pools:
                    return None
        return means


def tile_starts(length: int, tile: int, overlap: float, align: int = 1) -> list[int]:
    """Return where tiles begin along an axis.

    Args:
        length: Of the image.
        tile: Length of a tile; the last one may be shorter by less than ``align``.
        overlap: Least share of a tile that the next one covers too.
        align: Tiles begin at its multiples, unless they are closer to each other than that.

    Example:
        >>> tile_starts(10, 4, 0.25), tile_starts(3, 4, 0.25), tile_starts(20, 8, 0.5, align=4)
        ([0, 3, 6], [0], [0, 4, 8, 12])
    """
    step = max(1, math.floor(tile * (1 - overlap)))
    align = align if step >= align else 1
    step -= step % align
    last = max(0, math.ceil((length - tile) / align)) * align
    return [*range(0, last, step), last]


def window_shares(
    length: int, tile: int, starts: Sequence[int], overlap: float = 0.5, blend: Blend = "gaussian"
) -> list[Float[Tensor, " tile"]]:
    """Return how much each tile counts at each of its pixels along an axis; all tiles together count 1.

    Tiles stand on a grid and the weight of a pixel is the product of its weights along the axes, so weights that add
    up to 1 along every axis do so in the image: nothing is summed up beside the scores, or divided in the end.

    Args:
        length: Of the image.
        tile: Length of a tile.
        starts: As ``tile_starts`` gives them.
        overlap: Share of a tile in which ``"linear"`` weights rise.
        blend: See ``Tiled``.

    Example:
        >>> [share.tolist() for share in window_shares(6, 4, [0, 2], blend="constant")]
        [[1.0, 1.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    """
    windows = [_WINDOWS[blend](min(tile, length - start), overlap).clamp(min=_LEAST) for start in starts]
    total = torch.zeros(length)
    for start, window in zip(starts, windows, strict=True):
        total[start : start + len(window)] += window
    return [
        window / total[start : start + len(window)] for start, window in zip(starts, windows, strict=True)
    ]


def _gaussian(length: int, overlap: float) -> Tensor:
    distance = torch.arange(length) - (length - 1) / 2
    return torch.exp(-0.5 * (distance / (length / 8)) ** 2)


def _linear(length: int, overlap: float) -> Tensor:
    """Rise over the overlap, which is at most half of a tile where two tiles share it."""
    from_edge = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 0.5
    return (from_edge / max(1.0, min(overlap, 0.5) * length)).clamp(max=1)


def _constant(length: int, overlap: float) -> Tensor:
    return torch.ones(length)


_WINDOWS = {"gaussian": _gaussian, "linear": _linear, "constant": _constant}


@dataclass(frozen=True)
class _Tile:
    """One tile.

    Args:
        region: Its place in the image.
        place: Its place in the scores of its row of tiles.
        shares: What it counts along each axis.
    """

    region: tuple[slice, ...]
    place: tuple[slice, ...]
    shares: tuple[Tensor, ...]

    @property
    def size(self) -> Size:
        return tuple(len(share) for share in self.shares)

    @property
    def share(self) -> float:
        """How many pixels it counts for."""
        return math.prod(float(share.sum()) for share in self.shares)

    def weighted(self, logits: Tensor) -> Tensor:
        """Return logits ``(classes, *tile)`` as much as they count."""
        for axis, share in enumerate(self.shares, start=1):
            shape = [-1 if i == axis else 1 for i in range(logits.ndim)]
            logits = logits * share.to(logits.device).view(shape)
        return logits


class _Layout:
    """Tiles on a grid, in rows along the axis that has the most.

    Args:
        size: Of the image, in array order.
        tile_size: See ``Tiled``.
        overlap: See ``Tiled``.
        blend: See ``Tiled``.
        divisor: See ``Tiled``.
    """

    def __init__(self, size: Size, tile_size: Size, overlap: float, blend: Blend, divisor: Size) -> None:
        self.size = size
        self.starts = [
            tile_starts(length, tile, overlap, align)
            for length, tile, align in zip(size, tile_size, divisor, strict=True)
        ]
        self.shares = [
            window_shares(length, tile, starts, overlap, blend)
            for length, tile, starts in zip(size, tile_size, self.starts, strict=True)
        ]
        self.axis = max(range(len(size)), key=lambda axis: len(self.starts[axis]))
        self.rows = len(self.starts[self.axis])
        self.count = math.prod(map(len, self.starts))
        thick = min(size[self.axis], tile_size[self.axis])
        self.row_size = tuple(thick if axis == self.axis else length for axis, length in enumerate(size))

    def first(self, row: int) -> int:
        """Return where a row begins."""
        return self.starts[self.axis][row]

    def finished(self, row: int) -> int:
        """Return how much of a row the next one does not reach."""
        end = self.first(row + 1) if row + 1 < self.rows else self.size[self.axis]
        return end - self.first(row)

    def tiles(self, row: int) -> Iterator[_Tile]:
        """Yield the tiles of a row."""
        numbers = [[row] if axis == self.axis else range(len(s)) for axis, s in enumerate(self.starts)]
        for tile in product(*numbers):
            firsts = [starts[number] for starts, number in zip(self.starts, tile, strict=True)]
            shares = tuple(shares[number] for shares, number in zip(self.shares, tile, strict=True))
            region = tuple(slice(a, a + len(share)) for a, share in zip(firsts, shares, strict=True))
            place = tuple(
                slice(0, len(shares[axis])) if axis == self.axis else part for axis, part in enumerate(region)
            )
            yield _Tile(region, place, shares)


def _batches(tiles: Iterator[_Tile], most: int) -> Iterator[list[_Tile]]:
    """Yield tiles that follow each other and are of one size, together."""
    for _, alike in groupby(tiles, key=lambda tile: tile.size):
        while batch := list(islice(alike, most)):
            yield batch


def _advance(sums: Tensor, axis: int, done: int) -> None:
    """Move what is not finished to the front, and clear what comes after it."""
    rest = sums.narrow(axis, done, sums.shape[axis] - done).clone()
    sums.zero_()
    sums.narrow(axis, 0, rest.shape[axis]).copy_(rest)

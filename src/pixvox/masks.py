"""Masks of many instances as crops with origins, packed into one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixvox.ops import masks as mask_ops

Size = tuple[int, ...]
"""Lengths per axis in array order: ``(height, width)`` or ``(depth, height, width)``."""


class Masks:
    """Binary masks of one image or volume, each kept as a crop with an origin: never a canvas per instance.

    All crops lie one after the other in one flat tensor, so that a thousand masks move to a device, or into
    a weighted sum of rows, in one operation. Build them with the ``from_*`` methods.

    Args:
        data: The crops, row-major, one after the other.
        origins: First corner of each crop in array order.
        shapes: Lengths of each crop in array order.
        size: Size of the canvas.

    Example:
        >>> label_map = torch.tensor([[1, 1, 0], [0, 2, 2]])
        >>> masks = Masks.from_label_map(label_map)
        >>> masks.areas().tolist(), masks.boxes().tolist()
        ([2, 2], [[0.0, 0.0, 2.0, 1.0], [1.0, 1.0, 3.0, 2.0]])
        >>> torch.equal(masks.label_map(), label_map.int())
        True
    """

    def __init__(
        self,
        data: Bool[Tensor, " elements"],
        origins: Int[Tensor, "n dims"],
        shapes: Int[Tensor, "n dims"],
        size: Sequence[int],
    ) -> None:
        self.data = data
        self.origins = origins.to(torch.int64)
        self.shapes = shapes.to(torch.int64)
        self.size: Size = tuple(int(length) for length in size)
        lengths = self.shapes.prod(dim=1)
        self._ends = lengths.cumsum(0)
        if int(lengths.sum()) != data.numel():
            raise ValueError(
                f"crops of shapes {self.shapes.tolist()} need {int(lengths.sum())} elements, "
                f"but data has {data.numel()}; build masks with Masks.from_crops"
            )

    @classmethod
    def empty(cls, size: Sequence[int], device: torch.device | str | None = None) -> Masks:
        """Return no masks on a canvas of ``size``."""
        corners = torch.zeros((0, len(size)), dtype=torch.int64, device=device)
        return cls(torch.zeros(0, dtype=torch.bool, device=device), corners, corners, size)

    @classmethod
    def from_crops(
        cls, crops: Sequence[Tensor], origins: Sequence[Sequence[int]] | Tensor, size: Sequence[int]
    ) -> Masks:
        """Build masks from crops (any dtype, non-zero is inside) and the first corner of each."""
        if len(crops) == 0:
            return cls.empty(size)
        device = crops[0].device
        return cls(
            torch.cat([crop.reshape(-1).bool() for crop in crops]),
            torch.as_tensor(origins, dtype=torch.int64, device=device).reshape(len(crops), len(size)),
            torch.tensor([crop.shape for crop in crops], dtype=torch.int64, device=device),
            size,
        )

    @classmethod
    def from_dense(cls, masks: Tensor) -> Masks:
        """Crop full-size masks ``(n, *spatial)`` to their tight boxes; an empty mask keeps a crop of length 0."""
        crops, origins = mask_ops.crop_dense_masks(masks.bool())
        return cls.from_crops(crops, origins, masks.shape[1:]).to(masks.device)

    @classmethod
    def from_label_map(cls, label_map: Tensor, ids: Sequence[int] | Tensor | None = None) -> Masks:
        """Split a label map (0 is background) into masks in the order of ``ids``, by default ascending."""
        crops, origins = mask_ops.crop_label_map(label_map, ids)
        return cls.from_crops(crops, origins, label_map.shape).to(label_map.device)

    @classmethod
    def from_rle(cls, rles: Sequence[mask_ops.RLE]) -> Masks:
        """Decode run-length encodings, compressed or not, straight into crops.

        Raises:
            ValueError: If there is no encoding to tell the size, or if one does not fill its size.
        """
        if len(rles) == 0:
            raise ValueError("an empty list of RLE does not tell the size; use Masks.empty(size)")
        crops, origins = mask_ops.crop_rles(rles)
        return cls.from_crops(crops, origins, rles[0]["size"])

    @classmethod
    def from_polygons(
        cls, polygons: Sequence[Sequence[Sequence[float]]], size: Sequence[int], on_invalid: str = "raise"
    ) -> Masks:
        """Rasterise polygons, per instance a list of ``[x0, y0, x1, y1, ...]``, as COCO's tools do (2-D only)."""
        return (
            cls.from_rle([mask_ops.polygons_to_rle(parts, size, on_invalid) for parts in polygons])
            if len(polygons)
            else cls.empty(size)
        )

    @classmethod
    def cat(cls, masks: Sequence[Masks]) -> Masks:
        """Join masks of one canvas."""
        if any(part.size != masks[0].size for part in masks):
            raise ValueError(f"masks of canvases {sorted({part.size for part in masks})} cannot be joined")
        return cls(
            torch.cat([part.data for part in masks]),
            torch.cat([part.origins for part in masks]),
            torch.cat([part.shapes for part in masks]),
            masks[0].size,
        )

    def __len__(self) -> int:
        return self.shapes.shape[0]

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> Masks:
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        index = torch.as_tensor(index, device=self.shapes.device)
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        picked = index.long().tolist()
        if picked == list(range(len(self))):
            return self
        crops = [self.data[start:end] for start, end in map(self._span, picked)]
        data = torch.cat(crops) if crops else self.data[:0]
        return Masks(data, self.origins[index.long()], self.shapes[index.long()], self.size)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.crop(i) for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Masks({len(self)} on {'x'.join(map(str, self.size))}, {self.data.numel()} elements)"

    def _span(self, i: int) -> tuple[int, int]:
        end = int(self._ends[i])
        return end - math.prod(self.shapes[i].tolist()), end

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.data.device

    @property
    def starts(self) -> Int[Tensor, " n"]:
        """Index in ``data`` of the first element of each crop."""
        return self._ends - self.shapes.prod(dim=1)

    def crop(self, i: int) -> Tensor:
        """Return crop ``i`` as a view, ``shapes[i]`` large."""
        start, end = self._span(i)
        return self.data[start:end].view(self.shapes[i].tolist())

    def region(self, i: int) -> tuple[slice, ...]:
        """Return where crop ``i`` lies on the canvas."""
        return tuple(
            slice(first, first + length)
            for first, length in zip(self.origins[i].tolist(), self.shapes[i].tolist(), strict=True)
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Masks:
        """Return the masks on ``device``."""
        if self.device == torch.device(device):
            return self
        return Masks(
            self.data.to(device, non_blocking=non_blocking),
            self.origins.to(device, non_blocking=non_blocking),
            self.shapes.to(device, non_blocking=non_blocking),
            self.size,
        )

    def pin_memory(self) -> Masks:
        """Return the masks in page-locked memory."""
        return Masks(self.data.pin_memory(), self.origins.pin_memory(), self.shapes.pin_memory(), self.size)

    def dense(self) -> Bool[Tensor, "n *spatial"]:
        """Return one full canvas per mask: for those who ask; a thousand canvases are large."""
        canvases = torch.zeros((len(self), *self.size), dtype=torch.bool, device=self.device)
        for i in range(len(self)):
            canvases[i][self.region(i)] = self.crop(i)
        return canvases

    def areas(self) -> Int[Tensor, " n"]:
        """Return the number of pixels or voxels of each mask."""
        totals = torch.cat([self.data.new_zeros(1, dtype=torch.int64), self.data.cumsum(0)])
        return totals[self._ends] - totals[self.starts]

    def centroids(self) -> Float[Tensor, "n dims"]:
        """Return the centre of mass of each mask in pixels (array order, the first pixel's centre at 0.5).

        An empty mask has the first corner of its crop.
        """
        inside = self.data.nonzero()[:, 0]
        owner = torch.searchsorted(self._ends, inside, right=True)
        place = inside - self.starts[owner]
        total = torch.zeros_like(self.origins)
        for axis in reversed(range(len(self.size))):
            length = self.shapes[owner, axis]
            total[:, axis].index_add_(0, owner, place % length)
            place = place // length
        areas = self.areas()[:, None]
        return self.origins + torch.where(areas > 0, total / areas.clamp(min=1) + 0.5, 0.0)

    def boxes(self) -> Float[Tensor, "n sides"]:
        """Return the tight box of each mask; an empty mask gets a box of size 0 at its origin."""
        return mask_ops.crop_boxes(list(self), self.origins)

    def label_map(self, order: Sequence[int] | Tensor | None = None) -> Int[Tensor, "*spatial"]:
        """Paint all masks on one int32 canvas as 1, 2, ...; where masks overlap, the first wins.

        Args:
            order: Masks from the one that wins to the one that loses; by default as they stand. The ids are
                positions in this order, counted from 1.
        """
        order = list(range(len(self))) if order is None else [int(i) for i in order]
        canvas = torch.zeros(self.size, dtype=torch.int32, device=self.device)
        for rank in range(len(order) - 1, -1, -1):
            canvas[self.region(order[rank])][self.crop(order[rank])] = rank + 1
        return canvas

    def rle(self) -> list[mask_ops.RLE]:
        """Return COCO's compressed run-length encoding of each mask (column-major, 2-D and 3-D)."""
        return [
            mask_ops.encode_rle(self.crop(i).cpu(), self.origins[i].tolist(), self.size)
            for i in range(len(self))
        ]

    def polygons(self) -> list[list[list[float]]]:
        """Return the outlines of each mask as COCO polygons (2-D only)."""
        return [
            mask_ops.mask_to_polygons(self.crop(i).cpu(), self.origins[i].tolist()) for i in range(len(self))
        ]

    def crop_and_resize(
        self, boxes: Float[Tensor, "n sides"], output_size: Sequence[int], sampling_ratio: int = 2
    ) -> Float[Tensor, "n *output"]:
        """Sample mask ``i`` within box ``i`` on a grid of ``output_size``, as RoIAlign (not aligned) would."""
        return mask_ops.crop_and_resize(
            self.data, self.starts, self.origins, self.shapes, self.size, boxes, output_size, sampling_ratio
        )

    def at(self, places: Float[Tensor, "points dims"]) -> Float[Tensor, "n points"]:
        """Interpolate every mask at places in pixels (array order, the first pixel's centre at 0.5)."""
        return mask_ops.sample_crops(self.data, self.starts, self.origins, self.shapes, places)

    def pool(
        self, grid: Sequence[int], size: Sequence[int], valid_size: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "n *grid"], Float[Tensor, "*grid"]]:
        """Return the share of each cell that each mask fills, and the valid share of each cell.

        Args:
            grid: Lengths of a grid of cells.
            size: Canvas that the grid covers; it may be larger than the masks' own.
            valid_size: Part of the canvas that counts, by default the masks' own; shares are of this part.
        """
        valid_size = self.size if valid_size is None else valid_size
        return mask_ops.pool_crops(list(self), self.origins, grid, size, valid_size)

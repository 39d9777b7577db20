"""Masks as crops with an origin: from dense masks and label maps, boxes, pasting, and sampling within boxes.

Run-length encoding (``rle``), polygons to masks (``polygons``) and masks to polygons (``contours``) are
re-exported from here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pixvox.ops.boxes import mask_bounds
from pixvox.ops.contours import mask_to_polygons
from pixvox.ops.polygons import polygons_to_rle
from pixvox.ops.rle import RLE, crop_rles, decode_rle, encode_rle

__all__ = [
    "RLE",
    "crop_and_resize",
    "crop_boxes",
    "crop_dense_masks",
    "crop_label_map",
    "crop_rles",
    "decode_rle",
    "encode_rle",
    "mask_to_polygons",
    "paste_crops",
    "polygons_to_rle",
    "pool_crops",
    "sample_crops",
]

_MOST_COUNTED = 2**20  # ids below are looked up in a list with a place for each
_PAIRS = 2**21  # pairs of a mask and a place that are looked at together


def crop_dense_masks(masks: Shaped[Tensor, "n *spatial"]) -> tuple[list[Tensor], Int[Tensor, "n dims"]]:
    """Cut full-size masks down to their tight crops; an empty mask has a crop of length 0 at the origin.

    Args:
        masks: One canvas per mask; non-zero is inside.

    Returns:
        The crops (bool) and their origins in array order.
    """
    inside = masks != 0
    low, high = mask_bounds(inside)
    crops = [
        inside[i][_region(first, last)]
        for i, (first, last) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
    ]
    return crops, low


def crop_label_map(
    label_map: Int[Tensor, "*spatial"], ids: Sequence[int] | Tensor | None = None
) -> tuple[list[Tensor], Int[Tensor, "n dims"]]:
    """Split a label map into tight crops in one pass over its labelled pixels.

    Args:
        label_map: Instance ids of any size; 0 is background.
        ids: Ids to take, in this order (by default all, ascending). An id that does not occur has a crop of
            length 0.

    Returns:
        The crops (bool) and their origins in array order.
    """
    dims = label_map.ndim
    present, low, high = _label_bounds(label_map)
    if ids is None:
        wanted = present
    else:
        wanted = torch.as_tensor(ids, dtype=torch.int64, device=label_map.device).reshape(-1)
        if len(present) == 0:
            low, high = low.new_zeros((len(wanted), dims)), low.new_zeros((len(wanted), dims))
        else:
            place = torch.searchsorted(present, wanted).clamp(max=len(present) - 1)
            found = (present[place] == wanted)[:, None]
            low, high = low[place] * found, high[place] * found
    crops = [
        label_map[_region(first, last)] == number
        for number, first, last in zip(wanted.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    return crops, low


def _label_bounds(label_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ids of a label map, ascending, and the first corner and the last of each, in array order."""
    least, most = (int(bound) for bound in label_map.aminmax()) if label_map.numel() else (0, 0)
    if label_map.device.type == "cpu" and least >= 0 and most < _MOST_COUNTED:
        return _counted_bounds(label_map)
    positions = label_map.nonzero()
    present, row = torch.unique(label_map[label_map != 0].to(torch.int64), return_inverse=True)
    low = torch.full((len(present), label_map.ndim), torch.iinfo(torch.int64).max, device=label_map.device)
    index = row[:, None].expand_as(positions)
    low = low.scatter_reduce(0, index, positions, "amin")
    return present, low, torch.zeros_like(low).scatter_reduce(0, index, positions, "amax") + 1


def _counted_bounds(label_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``_label_bounds`` does, without sorting, for ids that a list can hold."""
    from scipy.ndimage import find_objects

    labels = label_map.numpy()
    found = find_objects(labels.astype(np.uint8) if labels.dtype == bool else labels)
    present = [number for number, place in enumerate(found, 1) if place is not None]
    corners = np.array(
        [[(part.start, part.stop) for part in found[number - 1]] for number in present], dtype=np.int64
    ).reshape(len(present), label_map.ndim, 2)
    low, high = torch.from_numpy(corners).unbind(-1)
    return torch.tensor(present, dtype=torch.int64), low.contiguous(), high.contiguous()


def crop_boxes(
    crops: Sequence[Tensor], origins: Int[Tensor, "n dims"] | Sequence[Sequence[int]]
) -> Float[Tensor, "n sides"]:
    """Return the tight box of each mask; an empty one gets a box of size 0 at its origin.

    Args:
        crops: Masks within their crops, which need not be tight.
        origins: First corner of each crop in array order.
    """
    origins = torch.as_tensor(origins)
    if len(crops) == 0:
        return torch.zeros((0, 2 * origins.shape[-1]), device=origins.device)
    bounds = [mask_bounds((crop != 0)[None]) for crop in crops]
    low, high = (torch.cat(side).to(origins.device) + origins for side in zip(*bounds, strict=True))
    return torch.cat([low.flip(1), high.flip(1)], dim=1).to(torch.float32)


def paste_crops(
    probabilities: Float[Tensor, "n *mask"],
    boxes: Float[Tensor, "n sides"],
    size: Sequence[int],
    threshold: float = 0.5,
) -> tuple[list[Tensor], Int[Tensor, "n dims"]]:
    """Resize the mask of each box to the pixels of that box: crops with origins, never a canvas.

    A pixel takes the multilinear value of the mask at the pixel's centre; beyond its outermost cells the mask
    fades to 0 within half a cell. The resize is a product with one small matrix per axis, so that it is the
    same for any number of dimensions.

    Args:
        probabilities: What a mask head gives for each box, on its own small grid. For logits, take the
            threshold in their scale only if 0 outside the box means what you want.
        boxes: Box of each mask, in continuous pixel coordinates.
        size: Size of the canvas; crops are clipped to it.
        threshold: Pixels above it are inside.

    Returns:
        The crops (bool) and their origins in array order, ready for ``Masks.from_crops``.
    """
    dims = len(size)
    grid = probabilities.shape[1:]
    # A threshold below one half is passed up to half a cell outside the box as well.
    margin = 0.0 if threshold >= 0.5 else 0.5
    matrices, bounds = [], []
    for axis in range(dims):
        low, high = boxes[:, dims - 1 - axis].double(), boxes[:, 2 * dims - 1 - axis].double()
        cell = (high - low).clamp(min=1e-6) / grid[axis]
        first = (low - margin * cell - 0.5).ceil().clamp(0, size[axis]).long()
        last = (high + margin * cell + 0.5).floor().clamp(0, size[axis]).long()
        last = torch.maximum(first, last)
        rows, pixel = _ragged(last - first)
        place = (first[rows] + pixel + 0.5 - low[rows]) / cell[rows] - 0.5
        columns = torch.arange(grid[axis], device=boxes.device)
        weight = (1 - (place[:, None] - columns).abs()).clamp(min=0)
        matrices.append(torch.split(weight.to(probabilities.dtype), (last - first).tolist()))
        bounds.append(first)
    crops = []
    for i, values in enumerate(probabilities):
        crops.append(_separable(values, [matrix[i] for matrix in matrices]) > threshold)
    return crops, torch.stack(bounds, dim=1)


def crop_and_resize(
    data: Shaped[Tensor, " elements"],
    starts: Int[Tensor, " n"],
    origins: Int[Tensor, "n dims"],
    shapes: Int[Tensor, "n dims"],
    size: Sequence[int],
    boxes: Float[Tensor, "n sides"],
    output_size: Sequence[int],
    sampling_ratio: int = -1,
) -> Float[Tensor, "n *output"]:
    """Sample crop ``i`` within box ``i`` as RoIAlign (not aligned) would on the full canvas.

    Equal to ``torchvision.ops.roi_align(canvases, boxes, output_size, 1.0, sampling_ratio)``, N-D, but no
    canvas is made: RoIAlign is separable, so each output is the crop times one matrix per axis.

    Args:
        data: All crops, row-major, one after the other.
        starts: Index in ``data`` of the first element of each crop.
        origins: First corner of each crop in array order.
        shapes: Lengths of each crop in array order.
        size: Size of the canvas; samples beyond it are clamped as RoIAlign does.
        boxes: One box per crop.
        output_size: Lengths of each output in array order.
        sampling_ratio: Samples per bin and axis; at most 0 for as many as the bin has pixels.
    """
    dims = len(size)
    matrices = [
        _bin_matrices(
            boxes[:, dims - 1 - axis].float(),
            boxes[:, 2 * dims - 1 - axis].float(),
            int(output_size[axis]),
            sampling_ratio,
            int(size[axis]),
            origins[:, axis],
            shapes[:, axis],
        )
        for axis in range(dims)
    ]
    output = torch.zeros((len(boxes), *output_size), device=data.device)
    lengths = shapes.prod(dim=1).tolist()
    for i, (start, length, shape) in enumerate(zip(starts.tolist(), lengths, shapes.tolist(), strict=True)):
        if length:
            crop = data[start : start + length].view(shape).to(output.dtype)
            output[i] = _separable(crop, [matrix[i] for matrix in matrices])
    return output


def sample_crops(
    data: Shaped[Tensor, " elements"],
    starts: Int[Tensor, " n"],
    origins: Int[Tensor, "n dims"],
    shapes: Int[Tensor, "n dims"],
    places: Float[Tensor, "points dims"],
) -> Float[Tensor, "n points"]:
    """Interpolate every crop at the same places; outside of it a mask is 0.

    Equal to ``grid_sample`` (bilinear, zeros, not aligned) on full canvases, but only the pairs of a mask and a place
    within reach of its crop are looked at.

    Args:
        data: All crops, row-major, one after the other.
        starts: Index in ``data`` of the first element of each crop.
        origins: First corner of each crop in array order.
        shapes: Lengths of each crop in array order.
        places: In pixels, array order; the centre of the first pixel is at 0.5.
    """
    output = torch.zeros((len(origins), len(places)), device=places.device)
    if data.numel() == 0 or len(places) == 0:
        return output
    rows = max(1, _PAIRS // len(places))
    for first in range(0, len(origins), rows):
        few = slice(first, first + rows)
        near = torch.ones((len(origins[few]), len(places)), dtype=torch.bool, device=places.device)
        for axis in range(places.shape[1]):
            place = places[None, :, axis] - 0.5 - origins[few, None, axis]
            near &= (place > -1) & (place < shapes[few, None, axis])
        mask, point = near.nonzero(as_tuple=True)
        mask = mask + first
        local = places[point] - 0.5 - origins[mask]
        output[mask, point] = _interpolate_crops(data, starts[mask], shapes[mask], local)
    return output


def _interpolate_crops(data: Tensor, starts: Tensor, shapes: Tensor, local: Tensor) -> Tensor:
    """Return the value at one place of each crop; ``local`` is in its pixels, with centres at whole numbers."""
    dims = local.shape[1]
    value, low = torch.zeros(len(local), device=local.device), local.floor().long()
    for corner in range(2**dims):
        index, weight = torch.zeros_like(starts), torch.ones_like(value)
        for axis in range(dims):
            length, cell = shapes[:, axis], low[:, axis] + (corner >> axis & 1)
            weight = weight * (1 - (local[:, axis] - cell).abs()) * ((cell >= 0) & (cell < length))
            index = index * length + cell.clamp(min=0).minimum(length - 1)
        value += weight * data[starts + index]
    return value


def pool_crops(
    crops: Sequence[Tensor],
    origins: Int[Tensor, "n dims"],
    grid: Sequence[int],
    size: Sequence[int],
    valid_size: Sequence[int],
) -> tuple[Float[Tensor, "n *grid"], Float[Tensor, "*grid"]]:
    """Return the share of each cell that each mask fills, and the valid share of each cell.

    Args:
        crops: Masks within their crops.
        origins: First corner of each crop in array order.
        grid: Lengths of a grid of cells.
        size: Canvas that the grid covers, in array order.
        valid_size: Part of the canvas that counts; what a mask fills is a share of the valid part of a cell.
    """
    device = origins.device
    axes = [
        _cell_shares(cells, length, valid, device)
        for cells, length, valid in zip(grid, size, valid_size, strict=True)
    ]
    valid_shares = [axis.sum(dim=1) for axis in axes]
    valid = valid_shares[0]
    for more in valid_shares[1:]:
        valid = valid[..., None] * more
    axes = [axis / share.clamp(min=1e-12)[:, None] for axis, share in zip(axes, valid_shares, strict=True)]
    output = torch.zeros((len(crops), *grid), device=device)
    for i, (crop, origin) in enumerate(zip(crops, origins.tolist(), strict=True)):
        if crop.numel():
            region, matrices = [], []
            for axis, first, length, extent, cells in zip(axes, origin, crop.shape, size, grid, strict=True):
                low, high = first * cells // extent, -(-(first + length) * cells // extent)
                columns = axis[low:high, first : first + length]
                matrices.append(F.pad(columns, (0, length - columns.shape[1])))
                region.append(slice(low, high))
            output[i][tuple(region)] = _separable(crop.to(output.dtype), matrices)
    return output, valid


def _cell_shares(cells: int, length: int, valid: int, device: torch.device) -> Float[Tensor, "cells valid"]:
    """Return the share of each cell of one axis that each of its valid pixels is."""
    cell = length / cells
    low = torch.arange(cells, device=device, dtype=torch.float64)[:, None] * cell
    pixel = torch.arange(valid, device=device, dtype=torch.float64)
    shared = torch.minimum(low + cell, pixel + 1) - torch.maximum(low, pixel)
    return (shared.clamp(min=0) / cell).float()


def _region(low: Sequence[int], high: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, last) for first, last in zip(low, high, strict=True))


def _ragged(lengths: Int[Tensor, " n"]) -> tuple[Int[Tensor, " total"], Int[Tensor, " total"]]:
    """Return, for lists of these lengths laid one after the other, the list and the place in it."""
    rows = torch.repeat_interleave(lengths)
    return rows, torch.arange(len(rows), device=lengths.device) - (lengths.cumsum(0) - lengths)[rows]


def _separable(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each axis of ``values`` by its matrix ``(out, in)``."""
    for matrix in matrices:  # the axis in work is the first one, and leaves as the last one
        lead = values.shape[0]
        values = (values.reshape(lead, -1).T @ matrix.T).reshape(*values.shape[1:], matrix.shape[0])
    return values


def _bin_matrices(
    low: Tensor,
    high: Tensor,
    bins: int,
    sampling_ratio: int,
    length: int,
    origins: Tensor,
    crop_lengths: Tensor,
) -> list[Tensor]:
    """Return, for one axis, the matrix ``(bins, crop length)`` that averages each box's samples per bin."""
    extent = (high - low).clamp(min=1.0)
    bin_size = extent / bins
    samples = bin_size.ceil().long()
    if sampling_ratio > 0:
        samples.fill_(sampling_ratio)
    box, tap = _ragged(samples * bins)
    bin_index, sample = tap // samples[box], tap % samples[box]
    place = low[box] + bin_index * bin_size[box] + (sample + 0.5) * bin_size[box] / samples[box]
    inside = (place >= -1.0) & (place <= length)
    place = place.clamp(min=0, max=length - 1)
    lower = place.floor()
    fraction = place - lower
    flat = torch.zeros(int((crop_lengths * bins).sum()), device=low.device)
    row_start = ((crop_lengths * bins).cumsum(0) - crop_lengths * bins)[box] + bin_index * crop_lengths[box]
    for corner, weight in ((lower.long(), 1 - fraction), (lower.long() + 1, fraction)):
        local = corner - origins[box]
        used = inside & (local >= 0) & (local < crop_lengths[box])
        flat.index_add_(0, (row_start + local)[used], (weight / samples[box])[used])
    parts = torch.split(flat, (crop_lengths * bins).tolist())
    return [part.view(bins, -1) if len(part) else part.view(bins, 0) for part in parts]

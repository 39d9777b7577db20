"""Deformable attention compiled for the CPU: forward and a backward written by hand, for any number of dimensions.

Nothing but the output is written in the forward pass, and nothing but the inputs is kept for the backward:
the taps of one query and head (the pixels around its points, and how much of each) are made, used and
forgotten. Queries share the work of the forward. In the backward every thread owns whole heads, and with them
the rows that it adds to: no two threads write to one place, and sums have the same order in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pixvox.ops.kernels.cpu import _Array, _compiled, _inlined, _share

# The axes 0, 1[, 2]. Kernels are compiled for the length of this tuple, so their loops over axes and corners have
# known ends. (A function made for each number of axes would be compiled anew, and stored anew, by every process.)
_Axes = tuple[int, ...]


def forward(value: Tensor, locations: Tensor, attention: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
    """Return ``(batch, queries, heads, channels)``; all tensors contiguous and of one type, on the CPU."""
    batch, _, heads, channels = value.shape
    queries, dims = locations.shape[1], locations.shape[-1]
    output = value.new_empty(batch, queries, heads, channels)
    inputs = (value.numpy(), *_levels(shapes), locations.numpy(), attention.numpy())
    result, axes = output.numpy(), tuple(range(dims))
    _share(batch * queries, lambda first, last: _weighted_sums(axes, *inputs, result, first, last))
    return output


def backward(
    gradient: Tensor,
    value: Tensor,
    locations: Tensor,
    attention: Tensor,
    shapes: Sequence[Sequence[int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and attention from that of the output."""
    gradients = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(attention)
    inputs = (value.numpy(), *_levels(shapes), locations.numpy(), attention.numpy(), gradient.numpy())
    outputs, axes = [tensor.numpy() for tensor in gradients], tuple(range(locations.shape[-1]))
    slices = value.shape[0] * value.shape[2]  # of an image and a head
    _share(slices, lambda first, last: _gradients(axes, *inputs, *outputs, first, last))
    return gradients


def _levels(shapes: Sequence[Sequence[int]]) -> tuple[_Array, _Array]:
    sizes = np.array(shapes, dtype=np.int64)
    lengths = sizes.prod(axis=1)
    return sizes, lengths.cumsum() - lengths


@_inlined
def _taps(
    axes: _Axes, places: _Array, at: int, sizes: _Array, level: int, start: int, row: _Array, weight: _Array,
    first: int, fraction: _Array, reach: _Array,
) -> None:  # fmt: skip
    """Write rows and weights (times what ``weight[first]`` holds) of the corners around a point.

    Upper neighbours along axis ``axis`` (0 is x) are the corners with that bit. ``fraction`` gets the way
    from the lower to the upper neighbours, ``reach`` 1 or 0 for neighbours inside or outside.
    """
    one = weight.dtype.type(1)
    zero = weight.dtype.type(0)
    row[first], step = start, 1
    for axis in axes:
        length = sizes[level, len(axes) - 1 - axis]
        place = places[at + axis] * weight.dtype.type(length) - weight.dtype.type(0.5)
        if place != place:  # what is not a number must be seen in the result
            weight[first] = place
        is_near = place > -1 and place < length
        if not is_near:
            place = -one
        lower = int(place + one) - 1  # the floor of what is not below -1
        part = place - weight.dtype.type(lower)
        has_lower = one if lower >= 0 else zero
        has_upper = one if is_near and lower + 1 < length else zero
        fraction[axis], reach[axis, 0], reach[axis, 1] = part, has_lower, has_upper
        lower_row, upper_row = max(lower, 0) * step, min(lower + 1, length - 1) * step
        lower_weight, upper_weight = (one - part) * has_lower, part * has_upper
        for corner in range(first, first + (1 << axis)):
            other = corner + (1 << axis)
            row[other] = row[corner] + upper_row
            row[corner] += lower_row
            weight[other] = weight[corner] * upper_weight
            weight[corner] *= lower_weight
        step *= length


@_compiled
def _weighted_sums(
    axes: _Axes, value: _Array, sizes: _Array, starts: _Array, locations: _Array, attention: _Array, output: _Array,
    first: int, last: int,
) -> None:  # fmt: skip
    dims, corners = len(axes), 1 << len(axes)
    heads, channels = value.shape[2:]
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    count = levels * points * corners
    row, weight = np.empty(count, np.int64), np.empty(count, value.dtype)
    fraction, reach = np.empty(dims, value.dtype), np.empty((dims, 2), value.dtype)
    places = locations.reshape(-1)  # views of parts of an array are too dear in the inner loops
    for piece in range(first, last):
        image, query = piece // queries, piece % queries
        for head in range(heads):
            tap, at = 0, (piece * heads + head) * levels * points * dims
            for level in range(levels):
                for point in range(points):
                    weight[tap] = attention[image, query, head, level, point]
                    _taps(axes, places, at, sizes, level, starts[level], row, weight, tap, fraction, reach)
                    tap += corners
                    at += dims
            for c in range(channels):
                output[image, query, head, c] = 0
            for tap in range(0, count, 4):  # four rows at once: the sum is written a quarter as often
                row0, row1, row2, row3 = row[tap], row[tap + 1], row[tap + 2], row[tap + 3]
                w0, w1, w2, w3 = weight[tap], weight[tap + 1], weight[tap + 2], weight[tap + 3]
                for c in range(channels):
                    output[image, query, head, c] += (
                        w0 * value[image, row0, head, c]
                        + w1 * value[image, row1, head, c]
                        + w2 * value[image, row2, head, c]
                        + w3 * value[image, row3, head, c]
                    )


@_compiled
def _gradients(
    axes: _Axes, value: _Array, sizes: _Array, starts: _Array, locations: _Array, attention: _Array, given: _Array,
    value_gradient: _Array, location_gradient: _Array, attention_gradient: _Array, first: int, last: int,
) -> None:  # fmt: skip
    dims, corners = len(axes), 1 << len(axes)
    images, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    one, zero = value.dtype.type(1), value.dtype.type(0)
    row, weight = np.empty(corners, np.int64), np.empty(corners, value.dtype)
    fraction, reach = np.empty(dims, value.dtype), np.empty((dims, 2), value.dtype)
    dots, slopes = np.empty(corners, value.dtype), np.empty((dims, corners), value.dtype)
    places = locations.reshape(-1)
    for image in range(images):
        first_head = min(max(first - image * heads, 0), heads)
        last_head = min(max(last - image * heads, 0), heads)
        for query in range(queries):
            for head in range(first_head, last_head):
                at = ((image * queries + query) * heads + head) * levels * points * dims
                for level in range(levels):
                    for point in range(points):
                        factor = attention[image, query, head, level, point]
                        weight[0] = one
                        _taps(axes, places, at, sizes, level, starts[level], row, weight, 0, fraction, reach)
                        at += dims
                        for corner in range(corners):
                            place, share, dot = row[corner], weight[corner] * factor, zero
                            for c in range(channels):
                                dot += given[image, query, head, c] * value[image, place, head, c]
                            for c in range(channels):
                                value_gradient[image, place, head, c] += share * given[image, query, head, c]
                            for axis in axes:
                                dot *= reach[axis, (corner >> axis) & 1]
                            dots[corner] = dot
                        # Along each axis: the difference of neighbours, and their mixture for the axes after it.
                        for axis in axes:
                            part = fraction[axis]
                            for pair in range(corners >> (axis + 1)):
                                lower, upper = dots[2 * pair], dots[2 * pair + 1]
                                slopes[axis, pair] = upper - lower
                                dots[pair] = lower + part * (upper - lower)
                                for earlier in range(axis):
                                    lower, upper = slopes[earlier, 2 * pair], slopes[earlier, 2 * pair + 1]
                                    slopes[earlier, pair] = lower + part * (upper - lower)
                        attention_gradient[image, query, head, level, point] = dots[0]
                        for axis in axes:
                            length = value.dtype.type(sizes[level, dims - 1 - axis])
                            location_gradient[image, query, head, level, point, axis] = (
                                slopes[axis, 0] * factor * length
                            )

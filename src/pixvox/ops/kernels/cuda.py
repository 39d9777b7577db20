"""Deformable attention in Triton, for CUDA: forward and backward, for images and volumes.

Compiled on first use by the Triton that comes with torch; nothing is compiled at install. **It has been proven
equal in Triton's interpreter, but neither run nor timed on a GPU yet**: the block size below is a guess.

A program owns a block of queries of one image and head, and goes through its points; channels lie side by side
in memory, so every neighbour of a point is one contiguous read. The backward adds to the values' gradient with
atomics, whose order differs from run to run: who asks for deterministic algorithms gets another backend.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES_PER_PROGRAM = 16


def forward(value: Tensor, locations: Tensor, attention: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
    """Return ``(batch, queries, heads, channels)``; all tensors contiguous and of one type, on one device."""
    batch, _, heads, channels = value.shape
    output = value.new_empty(batch, locations.shape[1], heads, channels)
    if output.numel():
        with _on_device_of(value):
            _weighted_sums[_grid(locations)](
                value, locations, attention, output, _levels(shapes, value.device), **_sizes(value, locations)
            )
    return output


def backward(
    gradient: Tensor,
    value: Tensor,
    locations: Tensor,
    attention: Tensor,
    shapes: Sequence[Sequence[int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and attention from that of the output."""
    gradients = torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(attention)
    if gradient.numel():
        with _on_device_of(value):
            _gradients[_grid(locations)](
                gradient, value, locations, attention, *gradients, _levels(shapes, value.device),
                **_sizes(value, locations),
            )  # fmt: skip
    return gradients


def _on_device_of(value: Tensor) -> AbstractContextManager[None]:
    """Start kernels where the tensor is: the current device may be another one."""
    return torch.cuda.device(value.device) if value.is_cuda else nullcontext()


def _grid(locations: Tensor) -> tuple[int, int]:
    batch, queries, heads = locations.shape[:3]
    return triton.cdiv(queries, _QUERIES_PER_PROGRAM), batch * heads


def _sizes(value: Tensor, locations: Tensor) -> dict[str, int]:
    _, positions, heads, channels = value.shape
    return {
        "positions": positions,
        "queries": locations.shape[1],
        "heads": heads,
        "channels": channels,
        "channel_block": triton.next_power_of_2(channels),
        "levels": locations.shape[3],
        "points": locations.shape[4],
        "dims": locations.shape[5],
        "query_block": _QUERIES_PER_PROGRAM,
    }


def _levels(shapes: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return _levels_on(tuple(map(tuple, shapes)), device)


@functools.lru_cache(maxsize=256)  # copied to the device once: a copy makes the host wait
def _levels_on(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return first row, depth, height and width of each level; images have one slice."""
    rows, start = [], 0
    for shape in shapes:
        depth, height, width = (1,) * (3 - len(shape)) + shape
        rows.append((start, depth, height, width))
        start += depth * height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _compiled(kernel: Callable[..., Any]) -> Any:
    # The checker of types that the tests wrap around every function is unwrapped: Triton reads the source.
    return triton.jit(inspect.unwrap(kernel))


@_compiled
def _neighbour(location, length, upper: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return place, weight, slope and presence of a point's lower or upper neighbour along one axis."""
    place = location * length - 0.5
    lower = tl.floor(place)
    # Compared before they become integers, which far or undefined places do not fit.
    is_inside = (lower + upper >= 0) & (lower + upper < length)
    weight = place - lower if upper else 1 - (place - lower)
    slope = length if upper else -length
    is_number = place == place
    row = tl.where(is_inside, lower + upper, 0).to(tl.int32)
    return row, weight, slope, is_inside | ~is_number


@_compiled
def _weighted_sums(  # type: ignore[no-untyped-def]
    value, locations, attention, output, level_table, positions, queries,
    heads: tl.constexpr, channels: tl.constexpr, channel_block: tl.constexpr, levels: tl.constexpr,
    points: tl.constexpr, dims: tl.constexpr, query_block: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * query_block + tl.arange(0, query_block)
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    channel = tl.arange(0, channel_block)
    is_query, is_channel = query < queries, channel < channels
    pair = (image.to(tl.int64) * queries + query) * heads + head
    table = value + (image.to(tl.int64) * positions * heads + head) * channels
    total = tl.zeros((query_block, channel_block), dtype=value.dtype.element_ty)
    for sample in range(levels * points):
        level = level_table + sample // points * 4
        start, depth = tl.load(level), tl.load(level + 1)
        height, width = tl.load(level + 2), tl.load(level + 3)
        point = pair * (levels * points) + sample
        factor = tl.load(attention + point, mask=is_query, other=0.0)
        x = tl.load(locations + point * dims, mask=is_query, other=0.0)
        y = tl.load(locations + point * dims + 1, mask=is_query, other=0.0)
        z = tl.load(locations + point * dims + 2, mask=is_query, other=0.0) if dims == 3 else x * 0 + 0.5
        for corner in tl.static_range(2**dims):
            column, wx, _, has_x = _neighbour(x, width, corner % 2)
            line, wy, _, has_y = _neighbour(y, height, corner // 2 % 2)
            plane, wz, _, has_z = _neighbour(z, depth, corner // 4)
            row = start + (plane * height + line) * width + column
            is_there = is_query & has_x & has_y & has_z
            weight = tl.where(is_there, factor * wx * wy * wz, 0.0)
            place = row.to(tl.int64)[:, None] * (heads * channels) + channel[None, :]
            seen = tl.load(table + place, mask=is_there[:, None] & is_channel[None, :], other=0.0)
            total += weight[:, None] * seen
    place = pair[:, None] * channels + channel[None, :]
    tl.store(output + place, total, mask=is_query[:, None] & is_channel[None, :])


@_compiled
def _gradients(  # type: ignore[no-untyped-def]
    gradient, value, locations, attention, value_gradient, location_gradient, attention_gradient, level_table,
    positions, queries,
    heads: tl.constexpr, channels: tl.constexpr, channel_block: tl.constexpr, levels: tl.constexpr,
    points: tl.constexpr, dims: tl.constexpr, query_block: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * query_block + tl.arange(0, query_block)
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    channel = tl.arange(0, channel_block)
    is_query, is_channel = query < queries, channel < channels
    pair = (image.to(tl.int64) * queries + query) * heads + head
    first = (image.to(tl.int64) * positions * heads + head) * channels
    both = is_query[:, None] & is_channel[None, :]
    given = tl.load(gradient + pair[:, None] * channels + channel[None, :], mask=both, other=0.0)
    for sample in range(levels * points):
        level = level_table + sample // points * 4
        start, depth = tl.load(level), tl.load(level + 1)
        height, width = tl.load(level + 2), tl.load(level + 3)
        point = pair * (levels * points) + sample
        factor = tl.load(attention + point, mask=is_query, other=0.0)
        x = tl.load(locations + point * dims, mask=is_query, other=0.0)
        y = tl.load(locations + point * dims + 1, mask=is_query, other=0.0)
        z = tl.load(locations + point * dims + 2, mask=is_query, other=0.0) if dims == 3 else x * 0 + 0.5
        of_factor, of_x, of_y, of_z = x * 0, x * 0, x * 0, x * 0
        for corner in tl.static_range(2**dims):
            column, wx, slope_x, has_x = _neighbour(x, width, corner % 2)
            line, wy, slope_y, has_y = _neighbour(y, height, corner // 2 % 2)
            plane, wz, slope_z, has_z = _neighbour(z, depth, corner // 4)
            row = start + (plane * height + line) * width + column
            is_there = is_query & has_x & has_y & has_z
            weight = tl.where(is_there, factor * wx * wy * wz, 0.0)
            place = first + row.to(tl.int64)[:, None] * (heads * channels) + channel[None, :]
            mask = is_there[:, None] & is_channel[None, :]
            seen = tl.load(value + place, mask=mask, other=0.0)
            tl.atomic_add(value_gradient + place, weight[:, None] * given, mask=mask, sem="relaxed")
            dot = tl.sum(given * seen, axis=1)  # 0 where nothing is there
            of_factor += wx * wy * wz * dot
            of_x += slope_x * wy * wz * dot
            of_y += slope_y * wx * wz * dot
            of_z += slope_z * wx * wy * dot
        tl.store(attention_gradient + point, of_factor, mask=is_query)
        tl.store(location_gradient + point * dims, factor * of_x, mask=is_query)
        tl.store(location_gradient + point * dims + 1, factor * of_y, mask=is_query)
        if dims == 3:
            tl.store(location_gradient + point * dims + 2, factor * of_z, mask=is_query)

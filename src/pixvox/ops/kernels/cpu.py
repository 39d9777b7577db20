"""Compiled twins for the CPU, by numba: optional, imported on first use, nothing is compiled at install.

Kernels are serial and release Python's lock; rows are shared among as many threads as torch uses. That
keeps numba's own thread pools out, which do not survive the fork of data loading workers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_Array = npt.NDArray[Any]
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def weighted_sum(
    table: Float[Tensor, "rows channels"],
    index: Int[Tensor, "samples taps"],
    weight: Float[Tensor, "samples taps"],
) -> Float[Tensor, "samples channels"]:
    """Twin of ``multilinear_sampling`` with a compiled backward; all tensors contiguous, on the CPU."""
    output: Tensor = _WeightedSum.apply(table, index, weight)
    return output


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        # The stock operator is the faster one in this direction.
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, index, weight = ctx.saved_tensors
        given = gradient.contiguous().numpy()
        rows, factors = index.numpy(), weight.detach().numpy()
        table_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            table_gradient = torch.zeros_like(table)
            summed = table_gradient.numpy()
            # Threads own channels, not samples: two samples may add to one row.
            _share(
                table.shape[1], lambda first, last: _spread_rows(given, rows, factors, summed, first, last)
            )
        if ctx.needs_input_grad[2]:
            weight_gradient = torch.empty_like(weight)
            values, dots = table.detach().numpy(), weight_gradient.numpy()
            _share(len(index), lambda first, last: _row_products(values, rows, given, dots, first, last))
        return table_gradient, None, weight_gradient


def nms(boxes: Float[Tensor, "n sides"], iou_threshold: float) -> Int[Tensor, " kept"]:
    """Return what greedy suppression keeps of boxes sorted by falling score; CPU, contiguous."""
    keep: _Array = _suppress(boxes.detach().numpy(), iou_threshold)
    return torch.from_numpy(keep)


def _share(length: int, work: Callable[[int, int], None]) -> None:
    """Run ``work(first, last)`` over ``range(length)``, cut into one piece per thread of torch."""
    threads = min(torch.get_num_threads(), length)
    if threads <= 1:
        work(0, length)
        return
    pool = _pools.setdefault(
        (os.getpid(), threads), ThreadPoolExecutor(threads)
    )  # pools do not survive a fork
    edges = [length * i // threads for i in range(threads + 1)]
    list(pool.map(work, edges[:-1], edges[1:]))


def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel that may reorder its sums."""
    # The checker of types that the tests wrap around every function is unwrapped: numba cannot compile it.
    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})(
        inspect.unwrap(kernel)
    )
    return compiled


def _inlined(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Make a part of kernels that is copied to where it is called: worth a fifth in an inner loop."""
    part: Callable[..., Any] = numba.njit(inline="always")(inspect.unwrap(kernel))
    return part


def _compiled_exactly(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose rounding must be that of the plain form."""
    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(inspect.unwrap(kernel))
    return compiled


@_compiled
def _spread_rows(
    gradient: _Array, index: _Array, weight: _Array, summed: _Array, first: int, last: int
) -> None:
    for sample in range(index.shape[0]):
        for tap in range(index.shape[1]):
            factor = weight[sample, tap]
            if factor != 0:
                row = index[sample, tap]
                for c in range(first, last):
                    summed[row, c] += factor * gradient[sample, c]


@_compiled
def _row_products(
    table: _Array, index: _Array, gradient: _Array, dots: _Array, first: int, last: int
) -> None:
    for sample in range(first, last):
        for tap in range(index.shape[1]):
            row = index[sample, tap]
            total = gradient[sample, 0] * 0
            for c in range(table.shape[1]):
                total += gradient[sample, c] * table[row, c]
            dots[sample, tap] = total


@_compiled_exactly
def _suppress(boxes: _Array, iou_threshold: float) -> _Array:
    n, dims = boxes.shape[0], boxes.shape[1] // 2
    dead = np.zeros(n, dtype=np.bool_)
    keep = np.empty(n, dtype=np.int64)
    volume = np.ones(n, dtype=boxes.dtype)
    for axis in range(dims):
        volume *= boxes[:, dims + axis] - boxes[:, axis]
    kept = 0
    for i in range(n):
        if dead[i]:
            continue
        keep[kept] = i
        kept += 1
        for j in range(i + 1, n):
            if dead[j]:
                continue
            overlap = volume[i] * 0 + 1
            for axis in range(dims):
                extent = min(boxes[i, dims + axis], boxes[j, dims + axis]) - max(
                    boxes[i, axis], boxes[j, axis]
                )
                if extent <= 0:
                    overlap = overlap * 0
                    break
                overlap *= extent
            if overlap > 0 and overlap / (volume[i] + volume[j] - overlap) > iou_threshold:
                dead[j] = True
    return keep[:kept]

"""Sums, means and gathers over all processes; in a single process they return what they were given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_apart = ContextVar("apart", default=False)


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _together() else 1


def process_rank() -> int:
    """Return the number of this process among those that train together."""
    return dist.get_rank() if _together() else 0


@contextmanager
def apart() -> Iterator[None]:
    """Count for this process alone: inside, the world is one process and nothing is exchanged.

    Training steps are taken together, so their losses are divided by counts of the whole batch. A validation
    batch stands for itself; its loss must not depend on what the other processes look at.

    Example:
        >>> with apart():
        ...     world_mean(3.0).item()
        3.0
    """
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def world_mean(value: Tensor | float, minimum: float = 1.0) -> Tensor:
    """Return the mean of ``value`` over all processes, such as the number of positives.

    A loss that is a sum over the process's own items, divided by this mean, becomes the mean over the items of
    all processes once gradients are averaged over processes, as data-parallel training does.

    Args:
        value: A count, or a tensor of counts that are averaged one by one.
        minimum: Least **sum** over all processes, so that nothing to count is no division by zero.

    Every process must call it, also one with nothing to count.
    """
    total = torch.as_tensor(value, dtype=torch.float32).detach().clone()
    if world_size() == 1:
        return total.clamp(min=minimum)
    total = total.to(_exchange_device(total))
    dist.all_reduce(total)
    return total.clamp(min=minimum) / world_size()


def world_sum(value: Tensor) -> Tensor:
    """Return the sum of ``value`` over all processes; gradients pass to this process's part.

    The gradient is multiplied by the number of processes: its mean over processes, which data-parallel training
    takes, is then the gradient of a loss of the whole sum. Every process must call it.
    """
    if world_size() == 1:
        return value
    total: Tensor = _WorldSum.apply(value)
    return total


class _WorldSum(torch.autograd.Function):
    """Sum over processes without a collective in the backward pass, where ranks may differ in order."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * world_size()


def world_max(value: float) -> float:
    """Return the largest ``value`` of all processes; every process must call it."""
    if world_size() == 1:
        return value
    largest = torch.tensor(float(value))
    largest = largest.to(_exchange_device(largest))
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.item()


def gather_objects(value: T) -> list[T]:
    """Return the picklable ``value`` of every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[T | None] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def _together() -> bool:
    return not _apart.get() and dist.is_available() and dist.is_initialized()


def _exchange_device(value: Tensor) -> torch.device:
    """Return where ``value`` can be exchanged: NCCL takes tensors on the GPU only."""
    if value.device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return value.device

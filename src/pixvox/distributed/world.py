"""Sums, means and gathers over all processes; in a single process they return what they were given."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process among those that train together."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_mean(value: Tensor | float, minimum: float = 1.0) -> Tensor:
    """Return the mean of ``value`` over all processes, at least ``minimum``, such as the number of positives.

    Every process must call it, also one with nothing to count.
    """
    total = torch.as_tensor(value, dtype=torch.float32)
    total = total.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
        total = total / world_size()
    return total.clamp(min=minimum)


def gather_objects(value: T) -> list[T]:
    """Return the picklable ``value`` of every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[T | None] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]

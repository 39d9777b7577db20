"""Compare checkpoints bit by bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

INCIDENTAL = (
    "seconds", "dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models",
    "current_score",
)  # fmt: skip
"""Entries that tell how long a run took, where it is and what was looked at last, not what it learned."""


def differences(first: Any, second: Any, ignored: Collection[str] = INCIDENTAL, path: str = "") -> list[str]:
    """Return where two checkpoints differ, as paths of keys; none when they are equal to the last bit.

    Args:
        first: Content of a checkpoint: mappings, sequences, tensors and plain values.
        second: Content of another.
        ignored: Keys whose values do not count.
        path: Where these two stand in a larger whole.

    Example:
        >>> differences({"a": [1, torch.zeros(2)]}, {"a": [1, torch.ones(2)], "b": 2})
        ['a.1', 'b']
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = [key for key in {**first, **second} if key not in ignored]
        missing = object()
        return [
            line
            for key in keys
            for line in differences(
                first.get(key, missing), second.get(key, missing), ignored, f"{path}.{key}".lstrip(".")
            )
        ]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, ignored, f"{path}.{i}".lstrip("."))]
    return [] if _same(first, second) else [path]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        both = (first.detach().cpu().contiguous(), second.detach().cpu().contiguous())
        bits = [tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor for tensor in both]
        return torch.equal(*bits)
    if isinstance(first, float) and isinstance(second, float) and first != first:
        return second != second
    return type(first) is type(second) and bool(first == second)

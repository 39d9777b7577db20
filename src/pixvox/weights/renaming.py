"""What converters of foreign checkpoints share: new names for keys, and levels in another order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

Rename = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern for a whole key, and its new name: with groups as in ``re.sub``, or made from the match."""


def renamed(key: str, table: Iterable[Rename]) -> str | None:
    r"""Return the new name of a key by the first pattern that fits all of it, None when none does.

    Example:
        >>> renamed("fc1.weight", [(r"fc(\d)\.(.*)", r"linear\1.\2")])
        'linear1.weight'
    """
    for pattern, replacement in table:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    return None


def count(state: Iterable[str], pattern: str) -> int:
    r"""Return how many different numbers the beginnings of keys hold, such as the layers of a decoder.

    Sizes are read off the weights: what a configuration says of them may be anything, and may take all memory.

    Args:
        state: The keys.
        pattern: What a key begins with; its first group is the number.

    Example:
        >>> count(["layers.0.weight", "layers.0.bias", "layers.1.weight"], r"layers\.(\d+)\.")
        2
    """
    return len({match[1] for match in (re.match(pattern, key) for key in state) if match})


def reorder_levels(value: Tensor, num_heads: int, order: Sequence[int]) -> Tensor:
    """Return weight or bias of deformable attention's offsets, or weights, with its levels in another order.

    Args:
        value: Rows are heads, levels, points (and axes), the last fastest.
        num_heads: Heads.
        order: For each new level its old place.
    """
    rows = value.reshape(num_heads, len(order), -1, *value.shape[1:])
    return rows[:, list(order)].flatten(0, 2)


def split_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the joint projection of each ``nn.MultiheadAttention`` as three.

    ``in_proj_weight`` becomes ``query.weight``, ``key.weight`` and ``value.weight``, ``out_proj`` becomes
    ``output``: the names of ``pixvox.transformer.attention.Attention``.
    """
    parts: dict[str, Tensor] = {}
    for name, value in state.items():
        match = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name)
        if match:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                parts[f"{match[1]}{part}.{match[2]}"] = rows.clone()
        else:
            parts[re.sub(r"\.out_proj\.", ".output.", name)] = value
    return parts

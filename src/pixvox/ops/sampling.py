"""Multilinear sampling for any number of dimensions: a weighted sum of rows of a channels-last table.

RoIAlign and deformable attention are thin layers on ``multilinear_sampling``: they only say which rows (the
``2 ** dims`` pixels around each sample) and how much of each.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_NUMBA_TYPES = (torch.float32, torch.float64)


def multilinear_sampling(
    table: Float[Tensor, "rows channels"],
    index: Int[Tensor, "*samples taps"],
    weight: Float[Tensor, "*samples taps"],
    backend: str = "auto",
) -> Float[Tensor, "*samples channels"]:
    """Return for each sample the sum of its rows of the table, each times its weight.

    Differentiable in the table and in the weights, and through these in the coordinates they come from.

    Args:
        table: Features, channels last; made contiguous if it is not.
        index: Rows of each sample.
        weight: Weight of each of them. It is cast to the table's type, also under autocast: compute it from
            float32 coordinates.
        backend: ``"torch"`` is one ``embedding_bag``; ``"gather"`` gathers and sums, which exporters
            understand and which can be differentiated twice, but needs ``taps`` times the memory;
            ``"numba"`` has a compiled backward for the CPU, which pays when the weights need gradients.
            ``"auto"`` takes ``"gather"`` while exporting, ``"numba"`` where it pays, else ``"torch"``.

    Raises:
        ValueError: If the backend is unknown, or cannot work with this table.

    Example:
        >>> table = torch.tensor([[0.0], [10.0], [20.0]])
        >>> multilinear_sampling(table, torch.tensor([[1, 2]]), torch.tensor([[0.75, 0.25]])).tolist()
        [[12.5]]
    """
    if backend == "auto":
        backend = _best_backend(table, weight)
    weight = weight.to(table.dtype)
    if backend == "gather":
        index = index.long()  # what exporters turn this into takes no int32
        return (table[index] * weight[..., None]).sum(dim=-2)
    samples, taps = index.shape[:-1], index.shape[-1]
    if index.numel() == 0:  # keeps the graph: gradients of nothing are zeros, not an error
        return (table.sum() + weight.sum()) * 0 + table.new_zeros((*samples, table.shape[1]))
    flat_index, flat_weight = index.reshape(-1, taps), weight.reshape(-1, taps)
    table = table.contiguous()  # embedding_bag is 18-30 times slower on a strided view
    if table.shape[0] <= torch.iinfo(torch.int32).max:
        flat_index = flat_index.to(torch.int32)  # its backward is up to 3 times faster than with int64
    if backend == "torch":
        output = F.embedding_bag(flat_index, table, per_sample_weights=flat_weight.contiguous(), mode="sum")
    elif backend == "numba":
        _check_numba(table)
        from pixvox.ops.kernels.cpu import weighted_sum

        output = weighted_sum(table, flat_index.contiguous(), flat_weight.contiguous())
    else:
        raise ValueError(f'backend is "auto", "torch", "gather" or "numba", got {backend!r}')
    return output.view(*samples, table.shape[1])


def corner_taps(
    coordinates: Float[Tensor, "*samples dims"], size: Sequence[int], padding: str = "zeros"
) -> tuple[Int[Tensor, "*samples corners"], Float[Tensor, "*samples corners"]]:
    """Return the rows and weights of the ``2 ** dims`` pixels around each coordinate.

    Args:
        coordinates: Positions in pixels, **array order**, with pixel centres at whole numbers.
        size: Size of the map in array order; its rows are numbered row-major.
        padding: ``"zeros"``: pixels outside count as 0, ``"border"``: coordinates are clamped to the map;
            both as in ``grid_sample``.

    Returns:
        Row numbers and float32 (or float64) weights, which carry the gradient to the coordinates.

    Raises:
        ValueError: If the padding is unknown or the size has another number of axes.

    Example:
        >>> index, weight = corner_taps(torch.tensor([0.0, 1.25]), size=(2, 3))
        >>> index.tolist(), weight.tolist()
        ([1, 2, 4, 5], [0.75, 0.25, 0.0, 0.0])
    """
    if padding not in ("zeros", "border"):
        raise ValueError(f'padding is "zeros" or "border", got {padding!r}')
    if coordinates.shape[-1] != len(size):
        raise ValueError(
            f"coordinates of {coordinates.shape[-1]} axes do not index a map of size {tuple(size)}"
        )
    if coordinates.dtype not in _NUMBA_TYPES:  # half precision cannot tell neighbouring pixels apart
        coordinates = coordinates.float()
    axes = []
    for axis, length in enumerate(size):
        place = coordinates[..., axis]
        if padding == "border":
            place = place.clamp(min=0, max=length - 1)
        lower = place.detach().floor()
        fraction = place - lower
        corner = torch.stack([lower, lower + 1], dim=-1)
        weight = torch.stack([1 - fraction, fraction], dim=-1)
        if padding == "zeros":
            weight = weight * ((corner >= 0) & (corner < length))
        axes.append((corner.clamp(min=0, max=length - 1).long(), weight))
    return combine_taps(axes, size)


def combine_taps(
    axes: Sequence[tuple[Int[Tensor, "..."], Float[Tensor, "..."]]], size: Sequence[int]
) -> tuple[Int[Tensor, "..."], Float[Tensor, "..."]]:
    """Return the product of per-axis taps: row numbers and weights of every combination, last axis fastest.

    Args:
        axes: Per axis, in array order, places along it and their weights, ``(*samples, taps of the axis)``.
        size: Size of the map in array order.
    """
    index, weight = axes[0]
    for (place, factor), length in zip(axes[1:], size[1:], strict=True):
        index = (index[..., :, None] * length + place[..., None, :]).flatten(-2)
        weight = (weight[..., :, None] * factor[..., None, :]).flatten(-2)
    return index, weight


def channels_last_table(
    features: Float[Tensor, "batch channels *spatial"],
) -> Float[Tensor, "rows channels"]:
    """Return a feature map as rows of channels; without a copy when it is in channels-last memory format."""
    return features.movedim(1, -1).reshape(-1, features.shape[1]).contiguous()


def is_exporting() -> bool:
    """Tell whether a graph is being made for another program."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def _best_backend(table: Tensor, weight: Tensor) -> str:
    if is_exporting():
        return "gather"
    trains_weights = torch.is_grad_enabled() and weight.requires_grad
    if not trains_weights or torch.compiler.is_compiling() or not has_numba():
        return "torch"
    return "numba" if table.device.type == "cpu" and table.dtype in _NUMBA_TYPES else "torch"


@functools.cache
def has_numba() -> bool:
    """Tell whether numba can be imported, without importing it."""
    return importlib.util.find_spec("numba") is not None


def _check_numba(table: Tensor) -> None:
    if table.device.type != "cpu" or table.dtype not in _NUMBA_TYPES:
        raise ValueError(
            f"the numba backend is for the CPU, float32 and float64; got {table.dtype} on {table.device}; "
            'use backend="torch"'
        )
    if not has_numba():
        raise ValueError('numba is not installed; pip install numba, or use backend="torch"')

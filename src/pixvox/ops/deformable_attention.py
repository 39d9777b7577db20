"""Multi-scale deformable attention for any number of dimensions.

"Deformable DETR" (Zhu et al., 2020, https://arxiv.org/abs/2010.04159).
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.ops.sampling import has_numba, is_exporting, multilinear_sampling

_BACKENDS = ("auto", "torch", "gather", "numba", "triton")
_DIMS_OF_TWINS = (2, 3)


def multi_scale_deformable_attention(
    value: Float[Tensor, "batch positions heads channels"],
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Float[Tensor, "batch queries heads levels points dims"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    backend: str = "auto",
) -> Float[Tensor, "batch queries features"]:
    """Sum values sampled at a few points of each level, weighted, for each query and head.

    Arguments and order are those of transformers' function of this name, for images and volumes alike.

    Args:
        value: Features of all levels, one level after the other, each row-major.
        spatial_shapes: Size of each level in array order.
        sampling_locations: ``(x, y[, z])`` relative to each level, 0 and 1 being its outer edges; what is
            outside counts as 0. Half precision cannot tell neighbouring pixels apart: give float32.
        attention_weights: Weight of each point, usually of sum 1 over levels and points.
        backend: ``"numba"`` is compiled for the CPU, ``"triton"`` for CUDA, both with a backward of their own
            and no memory but inputs and output. ``"torch"`` is one ``embedding_bag``, whatever the number of
            levels and dimensions; ``"gather"`` is for exporters, and can be differentiated twice. ``"auto"``
            takes ``"gather"`` while exporting, else the compiled twin of the device if its compiler is
            installed, else ``"torch"``.

    Returns:
        ``heads * channels`` features per query, in the type of ``value``.

    Raises:
        ValueError: If the tensors do not fit each other or the levels, or the backend is unknown or not for
            this device.

    Example:
        >>> row = torch.tensor([0.0, 10.0, 20.0, 30.0]).view(1, 4, 1, 1)  # one level of 1 x 4 pixels
        >>> middle = torch.full((1, 1, 1, 1, 1, 2), 0.5)
        >>> multi_scale_deformable_attention(row, [(1, 4)], middle, torch.ones(1, 1, 1, 1, 1)).item()
        15.0
    """
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    shapes = [tuple(shape) for shape in spatial_shapes]
    _check(shapes, value, sampling_locations, attention_weights)
    if backend not in _BACKENDS:
        raise ValueError(f"backend is one of {', '.join(_BACKENDS)}, got {backend!r}")
    if backend == "auto":
        backend = _best_backend(value, sampling_locations.shape[-1])
    if sampling_locations.dtype != torch.float64:
        sampling_locations = sampling_locations.float()
    if backend in ("numba", "triton"):
        _check_twin(backend, value, sampling_locations.shape[-1])
        from pixvox.ops.kernels.deformable import deformable_attention

        output = deformable_attention(value, shapes, sampling_locations, attention_weights, backend)
    else:
        rows = _rows(value, shapes, sampling_locations, attention_weights)
        output = multilinear_sampling(value.reshape(-1, value.shape[-1]), *rows, backend)
    return output.flatten(2)


def _rows(
    value: Float[Tensor, "batch positions heads channels"],
    shapes: Sequence[Sequence[int]],
    locations: Float[Tensor, "batch queries heads levels points dims"],
    attention: Float[Tensor, "batch queries heads levels points"],
) -> tuple[Int[Tensor, "batch queries heads taps"], Float[Tensor, "batch queries heads taps"]]:
    """Return the rows around all points of a query and head, and how much of each.

    All levels at once, in the smallest integers: this part is bound by memory. What differs by level, head
    or image alone is added before corners are combined, where there is least to add it to.
    """
    batch, positions, heads, _ = value.shape
    device, dims = value.device, locations.shape[-1]
    integer = torch.int32 if value.numel() // value.shape[-1] <= torch.iinfo(torch.int32).max else torch.int64
    lengths = [math.prod(shape) for shape in shapes]
    starts = [sum(lengths[:level]) for level in range(len(shapes))]
    # Row of the table: position and head of one image lie side by side.
    index = torch.tensor(starts, dtype=integer, device=device)[:, None] * heads
    index = index + torch.arange(heads, dtype=integer, device=device)[:, None, None]
    image = torch.arange(batch, dtype=integer, device=device) * (positions * heads)
    index = (index + image[:, None, None, None, None])[..., None]
    weight = attention[..., None]
    for axis in range(dims):
        length = torch.tensor([shape[axis] for shape in shapes], dtype=integer, device=device)[:, None]
        step = torch.tensor([math.prod(shape[axis + 1 :]) for shape in shapes], dtype=integer, device=device)
        place = locations[..., dims - 1 - axis] * length - 0.5
        lower = place.detach().floor()
        fraction = place - lower
        lower = lower.to(integer)
        corner = torch.stack([lower, lower + 1], dim=-1)
        length = length[:, None]
        inside = (corner >= 0) & (corner < length)
        share = torch.stack([1 - fraction, fraction], dim=-1) * inside
        corner = torch.minimum(corner.clamp_(min=0), length - 1) * (step[:, None, None] * heads)
        index = (index[..., :, None] + corner[..., None, :]).flatten(-2)
        weight = (weight[..., :, None] * share[..., None, :]).flatten(-2)
    return index.flatten(3), weight.flatten(3)


def _best_backend(value: Tensor, dims: int) -> str:
    if is_exporting():
        return "gather"
    if dims not in _DIMS_OF_TWINS:
        return "torch"
    if value.device.type == "cpu" and has_numba():
        return "numba"
    # Triton's twin adds with atomics, in another order every time.
    if value.device.type == "cuda" and has_triton() and not torch.are_deterministic_algorithms_enabled():
        return "triton"
    return "torch"


@functools.cache
def has_triton() -> bool:
    """Tell whether Triton can be imported, without importing it."""
    return importlib.util.find_spec("triton") is not None


def _check(shapes: Sequence[Sequence[int]], value: Tensor, locations: Tensor, attention: Tensor) -> None:
    """Refuse what does not fit together: compiled kernels would read outside of memory."""
    lengths = [math.prod(shape) for shape in shapes]
    if sum(lengths) != value.shape[1] or len(shapes) != locations.shape[3]:
        raise ValueError(
            f"levels of {list(map(tuple, shapes))} have {sum(lengths)} positions, but value has "
            f"{value.shape[1]} and the sampling locations {locations.shape[3]} levels"
        )
    if any(len(shape) != locations.shape[-1] for shape in shapes):
        raise ValueError(
            f"levels of {list(map(tuple, shapes))} are not sampled at locations of {locations.shape[-1]} "
            "coordinates; give one coordinate (x, y[, z]) per axis"
        )
    if any(length < 1 for shape in shapes for length in shape):
        raise ValueError(f"levels of {list(map(tuple, shapes))} must have at least one position per axis")
    batch, heads = value.shape[0], value.shape[2]
    if (locations.shape[0], locations.shape[2]) != (batch, heads) or attention.shape != locations.shape[:-1]:
        raise ValueError(
            f"value has {batch} images and {heads} heads, but the sampling locations are {tuple(locations.shape)} and "
            f"the attention weights {tuple(attention.shape)}; give (batch, queries, heads, levels, points, dims) and "
            "the same without dims"
        )


def _check_twin(backend: str, value: Tensor, dims: int) -> None:
    if dims not in _DIMS_OF_TWINS:
        raise ValueError(
            f'the {backend} backend is for images and volumes, not {dims} axes; use backend="torch"'
        )
    device = {"numba": "cpu", "triton": "cuda"}[backend]
    if value.device.type != device and not (backend == "triton" and "TRITON_INTERPRET" in os.environ):
        raise ValueError(
            f'the {backend} backend is for {device}, value is on {value.device}; use backend="torch"'
        )
    if not (has_numba() if backend == "numba" else has_triton()):
        raise ValueError(f'{backend} is not installed; pip install {backend}, or use backend="torch"')

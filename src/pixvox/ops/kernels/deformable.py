"""Deformable attention as one operator of torch over its compiled twins.

An operator, so that ``torch.compile`` and ``torch.export`` see one opaque step of known shape, not a kernel
that they would trace into.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def deformable_attention(
    value: Float[Tensor, "batch positions heads channels"],
    shapes: Sequence[Sequence[int]],
    locations: Float[Tensor, "batch queries heads levels points dims"],
    attention: Float[Tensor, "batch queries heads levels points"],
    backend: str,
) -> Float[Tensor, "batch queries heads channels"]:
    """Run the twin ``"numba"`` (CPU) or ``"triton"`` (CUDA), differentiable once in all three tensors.

    Sums are made in float32, or float64 where value or locations are: numpy knows no bfloat16, and the
    cast of the table costs little beside the sampling. The result has the type of ``value``.
    """
    is_double = torch.float64 in (value.dtype, locations.dtype)
    inputs = [
        tensor.to(torch.float64 if is_double else torch.float32).contiguous()
        for tensor in (value, locations, attention)
    ]
    flat = [length for shape in shapes for length in shape]
    output: Tensor = _operator(*inputs, flat, backend)
    return output.to(value.dtype)


def _twin(backend: str) -> ModuleType:
    if backend == "triton":
        from pixvox.ops.kernels import cuda

        return cuda
    from pixvox.ops.kernels import cpu_deformable

    return cpu_deformable


def _levels(flat: Sequence[int], dims: int) -> list[list[int]]:
    return [list(flat[start : start + dims]) for start in range(0, len(flat), dims)]


@torch.library.custom_op(
    "pixvox::deformable_attention",
    mutates_args=(),
    schema="(Tensor value, Tensor locations, Tensor attention, int[] shapes, str backend) -> Tensor",
)
def _operator(value: Tensor, locations: Tensor, attention: Tensor, shapes: list[int], backend: str) -> Tensor:
    levels = _levels(shapes, locations.shape[-1])
    output: Tensor = _twin(backend).forward(value, locations, attention, levels)
    return output


@torch.library.custom_op(
    "pixvox::deformable_attention_backward",
    mutates_args=(),
    schema=(
        "(Tensor gradient, Tensor value, Tensor locations, Tensor attention, int[] shapes, str backend)"
        " -> (Tensor, Tensor, Tensor)"
    ),
)
def _operator_backward(
    gradient: Tensor, value: Tensor, locations: Tensor, attention: Tensor, shapes: list[int], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    levels = _levels(shapes, locations.shape[-1])
    gradients: tuple[Tensor, Tensor, Tensor] = _twin(backend).backward(
        gradient.contiguous(), value, locations, attention, levels
    )
    return gradients


@_operator.register_fake
def _(value: Tensor, locations: Tensor, attention: Tensor, shapes: list[int], backend: str) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], *value.shape[2:])


@_operator_backward.register_fake
def _(
    gradient: Tensor, value: Tensor, locations: Tensor, attention: Tensor, shapes: list[int], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(attention)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.shapes, ctx.backend = inputs[3:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _operator_backward(gradient, *ctx.saved_tensors, ctx.shapes, ctx.backend)
    return (*gradients, None, None)


_operator.register_autograd(_differentiate, setup_context=_remember)

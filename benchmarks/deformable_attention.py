"""Deformable attention against transformers' function and grid_sample, side by side in one interleaved run.

    python benchmarks/deformable_attention.py [--threads 1] [--rounds 9] [--json file] [encoder2d decoder2d encoder3d]

Every candidate's result and gradients are compared with the first one's before it is timed.
"""  # fmt: skip

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timing import compare, machine, write_json
from torch import Tensor

from pixvox.ops import multi_scale_deformable_attention

Shapes = Sequence[Sequence[int]]
LEVELS_OF_512_PIXELS = [(64, 64), (32, 32), (16, 16), (8, 8)]
LEVELS_OF_64X128X128_VOXELS = [(8, 16, 16), (4, 8, 8), (2, 4, 4)]


def inputs(batch: int, shapes: Shapes, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """8 heads of 32 channels, 4 points per level, scattered round a reference as in a trained model."""
    generator = torch.Generator().manual_seed(0)
    heads, channels, points, dims = 8, 32, 4, len(shapes[0])
    value = torch.randn(batch, sum(map(math.prod, shapes)), heads, channels, generator=generator)
    reference = torch.rand(batch, queries, 1, 1, 1, dims, generator=generator)
    offsets = torch.rand(batch, queries, heads, len(shapes), points, dims, generator=generator)
    attention = torch.randn(batch, queries, heads, len(shapes) * points, generator=generator).softmax(-1)
    locations = (reference + (offsets - 0.5) * 0.2).clamp(-0.1, 1.1)
    return value, locations, attention.unflatten(-1, (len(shapes), points))


def of_transformers(shapes: Shapes) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module, sizes = MultiScaleDeformableAttention(), torch.tensor(shapes)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return lambda value, locations, attention: module(value, sizes, shapes, starts, locations, attention, 64)


def by_grid_sample(shapes: Shapes) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One ``grid_sample`` per level: the usual form, which exists in 3-D as well."""

    def attend(value: Tensor, locations: Tensor, attention: Tensor) -> Tensor:
        batch, _, heads, channels = value.shape
        queries, dims = locations.shape[1], locations.shape[-1]
        parts = value.permute(0, 2, 3, 1).flatten(0, 1).split([math.prod(shape) for shape in shapes], dim=-1)
        grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
        sampled = [
            F.grid_sample(
                part.unflatten(-1, tuple(shape)),
                grids[:, :, level].view(batch * heads, queries, -1, *[1] * (dims - 2), dims),
                align_corners=False,
            ).reshape(batch * heads, channels, queries, -1)
            for level, (part, shape) in enumerate(zip(parts, shapes, strict=True))
        ]
        weight = attention.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
        total = (torch.cat(sampled, dim=-1) * weight).sum(-1)
        return total.view(batch, heads * channels, queries).transpose(1, 2)

    return attend


def of_pixvox(shapes: Shapes, backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda *tensors: multi_scale_deformable_attention(tensors[0], shapes, *tensors[1:], backend)


def case(title: str, batch: int, shapes: Shapes, queries: int | None, rounds: int) -> dict[str, object]:
    tensors = inputs(batch, shapes, queries or sum(map(math.prod, shapes)))
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    reference = of_transformers(shapes) if len(shapes[0]) == 2 else by_grid_sample(shapes)
    attentions = {
        "transformers" if len(shapes[0]) == 2 else "grid_sample per level": reference,
        "pixvox, torch": of_pixvox(shapes, "torch"),
        "pixvox, numba": of_pixvox(shapes, "numba"),
    }
    expected = reference(*leaves)
    given = torch.randn(expected.shape)
    expected_gradients = torch.autograd.grad(expected, leaves, given)

    def both_ways(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(attend(*leaves), leaves, given)

    for attend in attentions.values():
        torch.testing.assert_close(attend(*tensors), expected, rtol=1e-4, atol=1e-5)
        for gradient, right in zip(both_ways(attend)(), expected_gradients, strict=True):
            # Where a point lies on a pixel's centre, rounding decides which side's slope it gets.
            wrong = ~torch.isclose(gradient, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
            if wrong.float().mean() > 1e-4:
                raise SystemExit(f"{title}: gradients differ in {int(wrong.sum())} of {wrong.numel()} places")

    def forward(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: attend(*tensors)

    size = "+".join("x".join(map(str, shape)) for shape in shapes)
    title = f"{title}: batch {batch}, {tensors[1].shape[1]} queries, levels {size}"
    return {
        "forward": compare(f"{title}, forward", {n: forward(a) for n, a in attentions.items()}, rounds),
        "forward and backward": compare(
            f"{title}, forward and backward", {n: both_ways(a) for n, a in attentions.items()}, rounds
        ),
    }


def main() -> None:
    cases = {
        "encoder2d": ("Encoder, 512 pixels", 1, LEVELS_OF_512_PIXELS, None),
        "decoder2d": ("Decoder, 512 pixels", 2, LEVELS_OF_512_PIXELS, 300),
        "encoder3d": ("Encoder, 64x128x128 voxels", 1, LEVELS_OF_64X128X128_VOXELS, None),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(cases), help=", ".join(cases))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    results: dict[str, object] = {name: case(*cases[name], options.rounds) for name in options.cases}
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

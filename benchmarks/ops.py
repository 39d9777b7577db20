"""Operators against torchvision, grid_sample and MONAI, side by side in one interleaved run.

    python benchmarks/ops.py [--threads 1] [--rounds 9] [--json ops.json] [roi2d roi3d nms]

Every candidate's result is compared with the first one's before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from timing import compare, machine, write_json
from torch import Tensor

from pixvox.ops import nms, roi_align


def rois_within(n: int, size: tuple[int, ...], side: float) -> Tensor:
    """Boxes of about ``side`` feature pixels, in feature pixels of one image."""
    generator = torch.Generator().manual_seed(0)
    dims = len(size)
    centres = torch.rand(n, dims, generator=generator) * torch.tensor(size[::-1])
    half = (torch.rand(n, dims, generator=generator) + 0.5) * side / 2
    return torch.cat([torch.zeros(n, 1), centres - half, centres + half], dim=1)


def grid_roi_align(features: Tensor, rois: Tensor, bins: int) -> Tensor:
    """The usual N-D recipe: ``grid_sample`` at 2 samples per bin and axis, then their mean (not aligned)."""
    dims = features.ndim - 2
    size = torch.tensor(features.shape[2:][::-1])
    steps = (torch.arange(2 * bins) + 0.5) / (2 * bins)
    extent = (rois[:, 1 + dims :] - rois[:, 1 : 1 + dims]).clamp(min=1.0)
    places = rois[:, None, 1 : 1 + dims] + extent[:, None] * steps[:, None]  # (k, samples, dims)
    axes = [
        (2 * places[..., axis] + 1).div(size[axis]).sub(1).view(
            len(rois), *[-1 if dims - 1 - axis == other else 1 for other in range(dims)]
        ).expand(len(rois), *[2 * bins] * dims)
        for axis in range(dims)
    ]  # fmt: skip
    grid = torch.stack(axes, dim=-1).reshape(1, -1, *[1] * (dims - 1), dims)
    sampled = F.grid_sample(features, grid, padding_mode="border", align_corners=False)
    sampled = sampled.reshape(features.shape[1], len(rois), *[2 * bins] * dims).transpose(0, 1)
    for axis in range(dims):
        sampled = sampled.unflatten(2 + axis, (bins, 2)).mean(3 + axis)
    return sampled


def both_ways(pool: Callable[[Tensor], Tensor], features: Tensor) -> Callable[[], object]:
    leaf = features.clone().requires_grad_()
    gradient = torch.randn(pool(features).shape)

    def work() -> None:
        leaf.grad = None
        pool(leaf).backward(gradient)

    return work


def roi_case(
    title: str, size: tuple[int, ...], channels: int, n: int, bins: int, rounds: int
) -> dict[str, object]:
    features = torch.randn(1, channels, *size)
    last = features.to(memory_format=torch.channels_last if len(size) == 2 else torch.channels_last_3d)
    rois = rois_within(n, size, 14)
    if len(size) == 3:  # beyond the outermost voxel centres grid_sample and RoIAlign differ
        rois[:, 1:] = torch.minimum(rois[:, 1:].clamp(min=0), torch.tensor(size[::-1] * 2) - 1)

    def reference(x: Tensor) -> Tensor:
        return (
            torchvision.ops.roi_align(x, rois, bins, 1.0, 2)
            if len(size) == 2
            else grid_roi_align(x, rois, bins)
        )

    def ours(x: Tensor) -> Tensor:
        return roi_align(x, rois, bins, 1.0, 2)

    torch.testing.assert_close(ours(features), reference(features), rtol=1e-4, atol=1e-4)
    name = "torchvision" if len(size) == 2 else "grid_sample + mean"
    forward = {
        name: lambda: reference(features),
        "pixvox, channels first": lambda: ours(features),
        "pixvox, channels last": lambda: ours(last),
    }
    whole = {
        name: both_ways(reference, features),
        "pixvox, channels first": both_ways(ours, features),
        "pixvox, channels last": both_ways(ours, last),
    }
    title = f"{title}: {len(rois)} boxes, {bins} bins, {channels} channels, {'x'.join(map(str, size))}"
    return {
        "forward": compare(f"{title}, forward", forward, rounds),
        "forward and backward": compare(f"{title}, forward and backward", whole, rounds),
    }


def nms_case(n: int, dims: int, rounds: int) -> dict[str, object]:
    from monai.data.box_utils import non_max_suppression

    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(n // 10, dims, generator=generator) * 500
    centres = centres[torch.randint(0, n // 10, (n,), generator=generator)]
    centres = centres + torch.randn(n, dims, generator=generator) * 4
    half = torch.rand(n, dims, generator=generator) * 20 + 5
    boxes, scores = torch.cat([centres - half, centres + half], dim=1), torch.rand(n, generator=generator)
    candidates: dict[str, Callable[[], object]] = {"MONAI": lambda: non_max_suppression(boxes, scores, 0.5)}
    if dims == 2:
        candidates = {"torchvision": lambda: torchvision.ops.nms(boxes, scores, 0.5), **candidates}
    candidates["pixvox, numba"] = lambda: nms(boxes, scores, 0.5, "numba")
    candidates["pixvox, pure torch"] = lambda: nms(boxes, scores, 0.5, "torch")
    expected = torch.as_tensor(next(iter(candidates.values()))())
    for name, work in candidates.items():
        if not torch.equal(torch.as_tensor(work()), expected):
            raise SystemExit(f"{name} keeps other boxes than {next(iter(candidates))}")
    result = compare(f"Suppression, {dims}-D, {n} boxes, {len(expected)} kept", candidates, rounds)
    for name in list(candidates)[-2:]:
        result[name]["ratio to MONAI"] = result["MONAI"]["seconds"] / result[name]["seconds"]
        print(f"  {name} against MONAI: x{result[name]['ratio to MONAI']:.1f}")
    return {"forward": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["roi2d", "roi3d", "nms"], help="roi2d, roi3d, nms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    results: dict[str, object] = {}
    if "roi2d" in options.cases:
        results["roi2d_p7"] = roi_case("RoIAlign 2-D", (64, 64), 256, 512, 7, options.rounds)
        results["roi2d_p14"] = roi_case("RoIAlign 2-D", (128, 128), 256, 100, 14, options.rounds)
    if "roi3d" in options.cases:
        results["roi3d_p7"] = roi_case("RoIAlign 3-D", (32, 64, 64), 64, 64, 7, options.rounds)
    if "nms" in options.cases:
        results["nms2d"] = nms_case(2000, 2, options.rounds)
        results["nms3d"] = nms_case(2000, 3, options.rounds)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

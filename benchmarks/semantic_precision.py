"""What bfloat16 and channels-last memory gain in networks for class maps, interleaved in one run.

    python benchmarks/semantic_precision.py [--threads 1] [--rounds 5] [--json precision.json] [fcn_resnet18 ...]

A step is the loss of a batch, its gradients and AdamW; a prediction ends with the class maps. Ratios above 1 say how
many times faster than float32 in the default layout. What a processor gains depends on its bfloat16 instructions.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
from timing import compare, machine, write_json
from torch import Tensor

from pixvox.methods.supervised import Supervised
from pixvox.models import create_model

NETWORKS = (
    "fcn_resnet18", "deeplabv3_resnet18", "deeplabv3plus_resnet18", "lraspp_mobilenetv3", "pspnet_resnet18",
    "upernet_resnet18", "segformer_resnet18", "unet_resnet18", "bisenet_resnet18", "bisenetv2", "enet",
    "sfnet_resnet18", "pidnet", "regseg",
)  # fmt: skip
CLASSES, SIZE = 11, (288, 288)


def stepper(method: Supervised, images: Tensor, labels: Tensor, low: bool) -> Callable[[], float]:
    """Return a step of training."""
    model = method.segmenter
    images = images.contiguous(memory_format=method.memory_format)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> float:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            total = sum(model.loss(images, labels).values(), torch.zeros(()))
        total.backward()
        optimizer.step()
        return float(total.detach())

    return step


def predictor(method: Supervised, images: Tensor, low: bool) -> Callable[[], object]:
    """Return a prediction of a batch, from images as they are read to class maps."""
    precision = "bf16" if low else "fp32"
    return lambda: method.segmenter.predict(images, precision=precision, batch_size=len(images))


def main() -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    results: dict[str, object] = {}
    for network in options.networks:
        torch.manual_seed(0)
        images = torch.randn(options.batch, 3, *SIZE)
        labels = torch.randint(0, CLASSES, (options.batch, *SIZE))
        plain = create_model(network, num_classes=CLASSES)
        adamw = partial(torch.optim.AdamW, lr=1e-6)
        contiguous = Supervised(plain, adamw)
        channels_last = Supervised(copy.deepcopy(plain), adamw, channels_last=True)
        for name, work in {
            "step": lambda method, low, x=images, y=labels: stepper(method, x, y, low),
            "prediction": lambda method, low, x=images: predictor(method, x, low),
        }.items():
            candidates = {
                "float32": work(contiguous, False),
                "float32, channels last": work(channels_last, False),
                "bfloat16": work(contiguous, True),
                "bfloat16, channels last": work(channels_last, True),
            }
            title = f"{network}, {options.batch} x {SIZE[0]} x {SIZE[1]}, {name}"
            results[f"{network} {name}"] = compare(title, candidates, options.rounds)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

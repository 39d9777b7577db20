"""Losses of class maps against torch, MONAI and segmentation-models-pytorch, side by side in one interleaved run.

    python benchmarks/semantic_losses.py [--threads 1] [--rounds 9] [--json losses.json] [images volumes]

Each candidate's loss is compared with ours before it is timed, where both define the same. A figure is a loss with its
gradient; the table says how many times longer than ours the others take.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import monai.losses
import torch
from timing import compare, machine, write_json
from torch import Tensor, nn

from pixvox.losses.boundary import Boundary
from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.losses.dice import Dice
from pixvox.losses.focal import Focal
from pixvox.losses.generalized_dice import GeneralizedDice
from pixvox.losses.lovasz import Lovasz
from pixvox.losses.ohem import OHEM

Loss = Callable[[Tensor, Tensor], Tensor]

SIZES = {"images": (4, 19, (256, 512)), "volumes": (2, 4, (48, 96, 96))}
"""Batch, classes and size."""


class PlainOHEM(nn.Module):
    """Sort the cross-entropy of all pixels, as most published code does."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(logits, labels, reduction="none").flatten()
        losses = losses.sort(descending=True).values
        hard = losses[losses > -torch.tensor(0.7).log()]
        least = losses.numel() // 16
        return hard.mean() if len(hard) >= least else losses[:least].mean()


def channelled(loss: nn.Module) -> Loss:
    """Give a loss labels with a channel of their own, as MONAI takes them."""
    return lambda logits, labels: loss(logits, labels.unsqueeze(1))


def candidates(size: tuple[int, ...], classes: int) -> dict[str, dict[str, Loss]]:
    """Return ours first and the same of others, by loss; those marked with ~ differ in value by definition."""
    softmax = {"to_onehot_y": True, "softmax": True}
    weights = torch.linspace(0.5, 2.0, classes)
    table: dict[str, dict[str, Loss]] = {
        "cross-entropy": {"pixvox": CrossEntropy(), "torch": nn.CrossEntropyLoss()},
        "cross-entropy, weights": {
            "pixvox": CrossEntropy(class_weights=weights.tolist()),
            "torch": nn.CrossEntropyLoss(weights),
        },
        "Dice": {"pixvox": Dice(), "MONAI": channelled(monai.losses.DiceLoss(batch=True, **softmax))},
        "Generalised Dice": {
            "pixvox": GeneralizedDice(),
            "~MONAI": channelled(monai.losses.GeneralizedDiceLoss(batch=True, **softmax)),
        },
        "focal": {
            "pixvox": Focal(),
            "~MONAI": channelled(monai.losses.FocalLoss(to_onehot_y=True, use_softmax=True)),
        },
        "Lovász-Softmax": {"pixvox": Lovasz()},
        "hard pixels": {"pixvox": OHEM(), "sort all": PlainOHEM()},
    }
    if hasattr(monai.losses, "BoundaryLoss"):
        boundary = monai.losses.BoundaryLoss(include_background=False, **softmax)
        table["boundary"] = {"pixvox": Boundary(), "~MONAI": channelled(boundary)}
    if importlib.util.find_spec("segmentation_models_pytorch") and len(size) == 2:
        from segmentation_models_pytorch import losses as smp

        table["Dice"]["smp"] = smp.DiceLoss("multiclass", eps=1e-7)
        table["focal"]["~smp"] = smp.FocalLoss("multiclass")
        table["Lovász-Softmax"]["smp"] = smp.LovaszLoss("multiclass")
    return table


def with_gradient(loss: Loss, logits: Tensor, labels: Tensor) -> Callable[[], object]:
    def work() -> Tensor:
        return torch.autograd.grad(loss(logits, labels), logits)[0]

    return work


def blobs(batch: int, classes: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return logits and labels of smooth regions, so that boundaries and rare errors are as in real maps."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, classes, *(side // 16 for side in size), generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    scores = nn.functional.interpolate(3 * coarse, size=size, mode=mode)
    return scores + torch.randn(scores.shape, generator=generator), scores.argmax(dim=1)


def run_case(name: str, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    batch, classes, size = SIZES[name]
    logits, labels = blobs(batch, classes, size)
    logits.requires_grad_()
    results = {}
    for title, losses in candidates(size, classes).items():
        expected = losses["pixvox"](logits, labels)
        for other, loss in losses.items():
            if not other.startswith("~") and not torch.allclose(loss(logits, labels), expected, rtol=1e-3):
                raise SystemExit(f"{title}: {other} gives {loss(logits, labels)}, pixvox {expected}")
        works = {other: with_gradient(loss, logits, labels) for other, loss in losses.items()}
        results[title] = compare(f"{title}, {batch} {name} of {size}, {classes} classes", works, rounds)
    return results


def markdown(name: str, results: dict[str, dict[str, dict[str, float]]]) -> str:
    batch, classes, size = SIZES[name]
    lines = [
        "",
        f"{batch} {name} of {' x '.join(map(str, size))}, {classes} classes, loss and gradient:",
        "",
        "| loss | pixvox, ms | others: times as long |",
        "|---|---|---|",
    ]
    for title, timed in results.items():
        others = ", ".join(
            f"{other.lstrip('~')} {1 / figures['ratio']:.1f}"
            for other, figures in timed.items()
            if other != "pixvox"
        )
        lines.append(f"| {title} | {1000 * timed['pixvox']['seconds']:.1f} | {others} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(SIZES), help=", ".join(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {name: run_case(name, options.rounds) for name in options.cases}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine().items()))
    for name, timed in results.items():
        print(markdown(name, timed))
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

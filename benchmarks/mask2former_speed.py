"""Mask2Former (Swin-T, 512 pixels) beside transformers': same weights, same images, in one interleaved run.

    HF_HUB_OFFLINE=1 python benchmarks/mask2former_speed.py [--threads 1] [--rounds 3] [--profile] [infer step]

Weights are random and nothing is downloaded. Outputs of both are compared before anything is timed. A step is
forward, matching, loss, backward and AdamW, with the 12,544 points per mask of the paper on both sides.
"""  # fmt: skip

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

import torch
from timing import compare, machine, write_json
from torch import Tensor, nn

import pixvox
from pixvox.segmenter import Segmenter
from pixvox.structures import Instances

SIZE = 512


def models() -> tuple[nn.Module, Segmenter]:
    """Transformers' model with random weights, and ours with the same."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=stages)
    reference = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone, num_labels=80)
    )
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        return reference, pixvox.load(folder)


def scene(objects: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """An image, masks of ellipses and their classes."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(objects, 2, 1, 1, generator=generator) * SIZE
    radii = torch.rand(objects, 2, 1, 1, generator=generator) * 60 + 15
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    distance = ((torch.stack([rows, columns]) - centres) / radii).square().sum(1)
    labels = torch.randint(0, 80, (objects,), generator=generator)
    return torch.randn(1, 3, SIZE, SIZE, generator=generator), distance <= 1, labels


def stepper(model: nn.Module, loss: Callable[[], Tensor], low: bool) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> float:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            total = loss()
        total.float().backward()
        optimizer.step()
        return float(total.detach())

    return step


def inference(model: nn.Module, images: Tensor, low: bool) -> Callable[[], object]:
    def infer() -> object:
        model.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            return model(images)

    return infer


def show_profile(title: str, work: Callable[[], object], lines: int = 22) -> None:
    """Print the operators that take the most time, by themselves."""
    with torch.profiler.profile() as profile:
        work()
    print(f"\n{title}")
    print(
        profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=lines, max_name_column_width=50)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["infer", "step"], help="infer, step")
    parser.add_argument("--precision", nargs="*", default=["bf16", "fp32"], help="bf16, fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also print where the time of ours goes")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    reference, model = models()
    images, masks, labels = scene()
    targets = [Instances(masks=masks, labels=labels)]
    ours, theirs = inference(model, images, False)(), inference(reference, images, False)()
    # Rounding may flip which tokens a mask of these weights covers, so a few queries may differ a little.
    differ = ~torch.isclose(ours["mask_logits"], theirs.masks_queries_logits, rtol=1e-3, atol=1e-3)
    if differ.float().mean() > 0.01:
        raise SystemExit(f"mask logits differ in {float(differ.float().mean()):.1%} of the places")

    def their_loss() -> Tensor:
        outputs = reference(images, mask_labels=[masks.float()], class_labels=[labels])
        return outputs.loss.squeeze()

    def our_loss() -> Tensor:
        return sum(model.loss(images, targets).values(), torch.zeros(()))

    results: dict[str, object] = {}
    for precision in options.precision:
        low = precision == "bf16"
        pairs = {
            "infer": {"transformers": inference(reference, images, low), "pixvox": inference(model, images, low)},
            "step": {
                "transformers": stepper(reference, their_loss, low), "pixvox": stepper(model, our_loss, low)
            },
        }  # fmt: skip
        for name in options.cases:
            title = f"Mask2Former Swin-T, {SIZE} pixels, {name}, {precision}"
            results[f"{name} {precision}"] = compare(title, pairs[name], options.rounds)
            if options.profile:
                show_profile(f"pixvox, {name}, {precision}", pairs[name]["pixvox"])
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

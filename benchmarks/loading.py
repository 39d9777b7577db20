"""Loader throughput beside a plain torchvision loader, and how long a training step waits for its batch.

    python benchmarks/loading.py [--data FOLDER] [--rounds 5] [--images 96] [--workers 0 1 2] [--stacked] [--json FILE]
    python benchmarks/loading.py --wait [--data FOLDER] [--steps 24] [--workers 0 2]

The first form writes the same images as JPEG, PNG, Zarr and memory-mapped cache and reads each with the same work:
decode image and label map, turn, scale and cut a patch at random, mirror, change brightness and contrast, split the
label map into masks with boxes, and stack. torchvision does it with the label map as one mask through the transforms,
split at the end: turned whole and then cut, as pixvox's patches look, and cut before it is turned, which costs less
and leaves black corners. ``--stacked`` adds the form of its references, one mask per object from the start. Every
loader takes its turn in every round. Figures are medians: wall time, and CPU time of all processes, which other
programs hardly disturb. Without ``--data`` (a folder of images beside label maps) images are drawn.

The second form trains with the configuration ``experiment=nuclei`` and measures each step's wait for its batch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import torchvision.transforms.v2 as v2
import zarr
from PIL import Image
from timing import machine, write_json
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from pixvox.configuration import compose
from pixvox.data.cache import CachedDataset
from pixvox.data.datamodule import DataModule
from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.data.synthetic.shapes import Shapes
from pixvox.data.transforms import Compose, RandomAffine, RandomBrightnessContrast, RandomFlip

SIZE, BATCH, ROTATION, SCALE = 256, 8, 30.0, (0.8, 1.25)


class TorchvisionFolder(Dataset[dict[str, Any]]):
    """What the detection references of torchvision do, with a label map per image."""

    def __init__(self, pairs: list[tuple[Path, Path]], channels: int, form: str) -> None:
        self.pairs, self.stacked = pairs, form == "stacked masks"
        self.mode = torchvision.io.ImageReadMode.RGB if channels == 3 else torchvision.io.ImageReadMode.GRAY
        turn = v2.RandomAffine(ROTATION, scale=SCALE, interpolation=v2.InterpolationMode.BILINEAR)
        cut = v2.RandomCrop(SIZE, pad_if_needed=True)
        self.transform = v2.Compose(
            [
                *([cut, turn] if form == "cut, turned" else [turn, cut]),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.ColorJitter(brightness=0.1, contrast=0.25),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.pairs[index]
        decoded = tv_tensors.Image(torchvision.io.decode_image(str(image), self.mode))
        labels = torch.from_numpy(np.asarray(Image.open(label)).astype(np.int32))
        if self.stacked:
            ids = torch.unique(labels)
            masks = labels == ids[ids > 0][:, None, None]
            decoded, masks = self.transform(decoded, tv_tensors.Mask(masks))
        else:
            decoded, moved = self.transform(decoded, tv_tensors.Mask(labels[None]))
            ids = torch.unique(moved)
            masks = moved[0] == ids[ids > 0][:, None, None]
        masks = masks[masks.flatten(1).sum(1) >= 4]
        boxes = torchvision.ops.masks_to_boxes(masks) if len(masks) else torch.zeros(0, 4)
        return {"image": decoded, "masks": masks, "boxes": boxes, "labels": torch.zeros(len(masks)).long()}


def write_formats(folder: Path, source: LabelFolder | Shapes, count: int) -> float:
    """Write the same images as PNG, JPEG and Zarr beside one set of label maps; return decoded MB per image."""
    for name in ("png", "jpeg", "zarr", "labels"):
        (folder / name).mkdir(parents=True)
    total = 0
    for index in range(count):
        sample = source[index % len(source)]
        image = np.clip(sample.image.numpy(), 0, 255).astype(np.uint8)
        total += image.nbytes
        picture = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
        picture.save(folder / "png" / f"{index:04d}.png")
        picture.save(folder / "jpeg" / f"{index:04d}.jpg", quality=90)
        array = zarr.create_array(
            folder / "zarr" / f"{index:04d}.zarr", shape=image.shape, chunks=image.shape, dtype=image.dtype,
            dimension_names=["c", "y", "x"],
        )  # fmt: skip
        array[:] = image
        layers = sample.layers if sample.layers is not None else torch.zeros(1, *sample.size)
        Image.fromarray(layers.amax(0).numpy().astype(np.uint16)).save(folder / "labels" / f"{index:04d}.png")
    return total / count / 1e6


def loaders(
    folder: Path, channels: int, workers: int, stacked: bool
) -> dict[str, Callable[[], Iterator[Any]]]:
    """Return every loader by name; each call starts one epoch."""
    labels = folder / "labels"
    ours = {name: LabelFolder(folder / name, labels) for name in ("jpeg", "png", "zarr")}
    parts: dict[str, Any] = {**ours, "cache": CachedDataset(ours["png"], folder / "cache")}
    steps = Compose(
        [
            RandomAffine(ROTATION, SCALE, size=SIZE),
            RandomFlip(),
            RandomBrightnessContrast(0.1, 0.25, probability=1.0),
        ]
    )
    result: dict[str, Callable[[], Iterator[Any]]] = {}
    for name in ("jpeg", "png"):
        pairs = [(image, label) for image, label in ours[name].pairs if label is not None]
        for form in ("turned, cut", "cut, turned", *(["stacked masks"] if stacked else [])):
            plain = TorchvisionFolder(pairs, channels, form)
            loader = DataLoader(
                plain, BATCH, shuffle=True, num_workers=workers, drop_last=True, collate_fn=_stack
            )
            result[f"torchvision, {name}, {form}"] = loader.__iter__
    for name, part in parts.items():
        data = DataModule(
            part, train_transforms=steps, image_size=SIZE, batch_size=BATCH, num_workers=workers
        )
        result[f"pixvox, {name}"] = data.train_dataloader().__iter__
    return result


def _stack(items: list[dict[str, Any]]) -> tuple[Tensor, list[dict[str, Any]]]:
    return torch.stack([item["image"] for item in items]), items


def throughput(epoch: Callable[[], Iterator[Any]], workers: int) -> tuple[float, float]:
    """Return images per second of wall time, and CPU milliseconds per image, of one epoch.

    With workers the wall clock starts at their first batch; their CPU time counts whole, start included.
    """
    cpu = _cpu_seconds()
    start = time.perf_counter()
    batches = epoch()
    count = timed = 0
    for _ in batches:
        count += BATCH
        if workers and count == BATCH:
            start = time.perf_counter()
        else:
            timed += BATCH
    wall = time.perf_counter() - start
    del batches
    return timed / wall, 1000 * (_cpu_seconds() - cpu) / count


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def compare_loaders(source: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    workers: list[int] = arguments.workers
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        megabytes = write_formats(folder, source, arguments.images)
        channels = source.metadata.in_channels
        every = {number: loaders(folder, channels, number, arguments.stacked) for number in workers}
        rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for round_number in range(arguments.rounds + 1):
            for number, named in every.items():
                for name, epoch in named.items():
                    rate = throughput(epoch, number)
                    if round_number:  # the first round fills the disk's cache
                        rates.setdefault((name, number), []).append(rate)
        size = f"{megabytes:.2f} MB decoded, patches of {SIZE}, batches of {BATCH}"
        print(
            f"\n{arguments.images} images of {size}; images/s (MB/s decoded) of wall time; CPU ms per image"
        )
        print(" " * 33 + "".join(f"{n} workers".rjust(24) for n in workers))
        for name in next(iter(every.values())):
            results[name] = {}
            row = ""
            for number in workers:
                rate, cpu = (statistics.median(values) for values in zip(*rates[name, number], strict=True))
                results[name][str(number)] = {"images_per_second": rate, "cpu_ms_per_image": cpu}
                row += f"{rate:6.0f} ({rate * megabytes:4.0f}) {cpu:6.1f} ms".rjust(24)
            print(f"  {name:<31s}{row}")
    return results


def wait_share(data: str | None, workers: int, steps: int) -> dict[str, float]:
    """Train a few steps as ``pixvox train`` does and return the median step and the share spent waiting."""
    from pixvox.assembly import build_datamodule, build_segmenter, complete

    named = ["data=folder", f"data.path={data}"] if data else ["data=shapes"]
    config = compose("train", ["experiment=nuclei", *named, f"num_workers={workers}"])
    datamodule = build_datamodule(config)
    complete(config, datamodule.metadata)
    model = build_segmenter(config, datamodule.metadata)
    layout = torch.channels_last if config.method.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    waits, whole = [], []
    epoch = 0

    def batches() -> Iterator[Any]:
        nonlocal epoch
        while True:
            datamodule.set_epoch(epoch)
            yield from datamodule.train_dataloader()
            epoch += 1

    model.train()
    source = batches()
    for step in range(steps + 2):
        start = time.perf_counter()
        batch = next(source)
        arrived = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.run(batch, with_targets=True, memory_format=layout)["losses"]
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        if step >= 2:  # the first batches pay for starting workers and for warming up
            waits.append(arrived - start)
            whole.append(time.perf_counter() - start)
    return {
        "step": statistics.median(whole),
        "wait": statistics.median(waits),
        "longest wait": max(waits),
        "share": sum(waits) / sum(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of images beside label maps, as pixvox train --data takes it")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--stacked", action="store_true")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print({**machine(), "clock": "wall time"})
    results: dict[str, Any]
    if arguments.wait:
        results = {str(n): wait_share(arguments.data, n, arguments.steps) for n in arguments.workers}
        for number, figures in results.items():
            shown = ", ".join(
                f"{name} {1000 * value:.1f} ms" for name, value in figures.items() if name != "share"
            )
            print(f"  {number} workers: {shown}; waiting {100 * figures['share']:.2f} % of the time")
    else:
        if arguments.data:
            from pixvox.data.datasets.open import open_dataset

            source: Any = open_dataset(arguments.data, "train")
        else:
            source = Shapes(arguments.images, seed=0, image_size=512, count=(20, 60), radius=(8, 24))
        results = compare_loaders(source, arguments)
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()

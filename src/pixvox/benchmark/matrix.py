"""Every backbone under every head: does it learn, predict, and come back from a file?"""

from __future__ import annotations

import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixvox.errors import ConfigError
from pixvox.models import create_model, list_backbones, list_heads, part_class
from pixvox.processes import context_with, run_alone
from pixvox.structures import Instances, Segmentation

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

SECOND_NAMES = {
    "resnet50": "resnet", "resnet18": "resnet", "resnet34": "resnet", "resnet101": "resnet", "resnet152": "resnet",
    "custom_resnet": "resnet", "darknet18": "darknet53", "darknet21": "darknet53", "darknet24": "darknet53",
    "timm": "resnet", "vit": "dino",
}  # fmt: skip
"""Backbones whose cells would be those of another one: other sizes of it, or doors to it."""

SIZES = {2: ((64, 64), (61, 83)), 3: ((16, 32, 32), (9, 37, 25))}
"""Sizes of images and volumes that each model learns from; it predicts the second."""

_CLASSES = 3

REFUSALS: dict[tuple[str, int | str], str] = {
    ("contourformer", 3): "contours are curves in a plane; for volumes there are the other heads",
    (
        "bisenet",
        "windowed_vit",
    ): "its context is that of two levels of different strides, which here are all alike",
}
"""Heads that do not exist for a number of axes, or over a backbone, and why."""

OPTIONS: dict[tuple[str, int], dict[str, Any]] = {("maskrcnn", 3): {"detections_per_image": 100}}
"""Options of some heads: a network that has learned nothing finds a thousand objects in noise, each with a mask."""


@dataclass(frozen=True)
class Cell:
    """What became of one backbone under one head.

    Args:
        backbone: Its name.
        head: Its name.
        spatial_dims: 2 for images, 3 for volumes.
        status: ``"works"``, ``"refused"`` (for a reason that is told before anything is built) or ``"failed"``.
        reason: Why it is refused, or the error.
        options: Options of the model beside its names.
        parameters: Number of weights.
        gmacs: Multiply-adds of a prediction of the second size, in 1e9; convolutions, products and attention.
        seconds: Of the processor, for a step that learns from two images of the second size.
        peak_mib: Most memory that its process held.
    """

    backbone: str
    head: str
    spatial_dims: int
    status: str = "works"
    reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    gmacs: float = 0.0
    seconds: float = 0.0
    peak_mib: float = 0.0

    @property
    def place(self) -> tuple[int, str, str]:
        """Where it stands in the matrix."""
        return self.spatial_dims, self.backbone, self.head


def families(spatial_dims: int) -> list[str]:
    """Return one backbone of each family that exists in ``spatial_dims``."""
    return [name for name in list_backbones(spatial_dims) if name not in SECOND_NAMES]


def pairs(
    backbones: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
) -> list[Cell]:
    """Return the cells of a matrix, not checked yet; what is made for each other stands with nothing else.

    Args:
        backbones: Their names; by default one of each family.
        heads: Their names; by default all that exist for images.
        dims: 2 for images, 3 for volumes; by default both.

    Raises:
        ConfigError: If a name or a number of axes is unknown.
    """
    known: dict[str, tuple[Sequence[Any] | None, Sequence[Any]]] = {
        "backbones": (backbones, list_backbones()),
        "heads": (heads, list_heads()),
        "dims": (dims, [2, 3]),
    }
    for what, (given, existing) in known.items():
        unknown = [value for value in given or () if value not in existing]
        if unknown:
            raise ConfigError(f"--{what}: {unknown[0]!r} is none of {', '.join(map(str, existing))}")
    under = {name: part_class("head", name).branches for name in heads or list_heads()}
    cells = []
    for axes in dims or (2, 3):
        existing = list_backbones(axes)
        for backbone in backbones or families(axes):
            if backbone in existing:
                given = part_class("backbone", backbone).branches
                cells += [
                    Cell(backbone, head, axes, options=dict(OPTIONS.get((head, axes), {})))
                    for head, wanted in under.items()
                    if wanted == given
                ]
    return cells


def check(
    backbone: str,
    head: str,
    spatial_dims: int,
    options: Mapping[str, Any] | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
) -> Cell:
    """Take a model through its life: it learns from two sizes, predicts, is saved, is loaded and predicts again.

    Args:
        backbone: A name of ``list_backbones()``.
        head: A name of ``list_heads()``.
        spatial_dims: 2 or 3.
        options: Options of ``create_model``.
        sizes: Sizes to learn from; by default those of ``SIZES``.

    Returns:
        The cell; an error is its reason, with the step that it came from.
    """
    cell = Cell(backbone, head, spatial_dims, options=dict(options or {}))
    refusal = REFUSALS.get((head, spatial_dims)) or REFUSALS.get((head, backbone))
    if refusal:
        return replace(cell, status="refused", reason=refusal)
    sizes = sizes or SIZES[spatial_dims]
    step = "build"
    try:
        torch.manual_seed(0)
        model = create_model(
            head, backbone, _CLASSES, spatial_dims, 2, class_names=("a", "b", "c"), **cell.options
        )
        for size in sizes:
            step = f"learn from {tuple(size)}"
            seconds = _learn(model, size)
        step = "predict"
        image = torch.rand(2, *sizes[-1], generator=torch.Generator().manual_seed(1))
        first = model.eval().predict(image)
        step = "save and load"
        again = _reloaded(model).predict(image)
        step = "predict alike"
        _compare(first, again)
    except Exception as error:  # whatever it is, it is this cell's result
        return replace(cell, status="failed", reason=f"{step}: {type(error).__name__}: {error}"[:400])
    from pixvox.flops import count_flops

    return replace(
        cell,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gmacs=count_flops(model, sizes[-1])["total"] / 2e9,
        seconds=seconds,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
    )


def check_all(cells: Sequence[Cell], jobs: int = 1, threads: int = 1) -> Iterator[Cell]:
    """Check cells, each in a process of its own, and give them out as they are done.

    Args:
        cells: What to check: backbone, head, axes and options.
        jobs: Processes at a time.
        threads: Threads of torch in each.
    """
    context = context_with(["pixvox.benchmark.matrix", "pixvox.weights", "timm"])
    pool = ThreadPoolExecutor(jobs)
    try:
        for done in as_completed([pool.submit(_check_alone, cell, threads, context) for cell in cells]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check_alone(cell: Cell, threads: int, context: BaseContext) -> Cell:
    try:
        return run_alone(context, _check_here, cell, threads)
    except BrokenProcessPool as error:  # killed, most likely for its memory
        return replace(cell, status="failed", reason=f"its process ended: {error}")


def _check_here(cell: Cell, threads: int) -> Cell:
    torch.set_num_threads(threads)
    return check(cell.backbone, cell.head, cell.spatial_dims, cell.options)


def measured_with(threads: int) -> dict[str, Any]:
    """Return what the cells were measured with."""
    from pixvox.doctor import examine

    found = examine()
    machine = f"{platform.machine()}, {found['cpu_cores']} cores, {found['memory_gib']} GiB"
    return {"pixvox": found["pixvox"], "torch": torch.__version__, "machine": machine, "threads": threads}


def _learn(model: Segmenter, size: Sequence[int]) -> float:
    """Take one step of an optimiser on two images, and return the processor's seconds, of all threads."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    images = torch.randn(2, model.in_channels, *size, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    losses = model.train().loss(images, _targets(model, size))
    total = sum(losses.values(), torch.zeros(()))
    if not bool(total.isfinite()):
        raise FloatingPointError(f"the loss is {float(total)} ({ {k: float(v) for k, v in losses.items()} })")
    total.backward()  # type: ignore[no-untyped-call]
    lost = [
        name
        for name, p in model.named_parameters()
        if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    if lost:
        raise FloatingPointError(f"gradients are not finite: {', '.join(lost[:3])}")
    before = [parameter.detach().clone() for parameter in model.head.parameters()]
    optimizer.step()
    if all(torch.equal(new, old) for new, old in zip(model.head.parameters(), before, strict=True)):
        raise RuntimeError("no weight of the head has moved")
    return time.process_time() - start


def _targets(model: Segmenter, size: Sequence[int]) -> Any:
    """Return two images' objects, one of each class in an image: blocks that do not touch."""
    labels = torch.zeros(tuple(size), dtype=torch.int64)
    thirds = [length // 3 for length in size]
    for i in range(_CLASSES):
        labels[tuple(slice(i * third, i * third + max(third - 1, 1)) for third in thirds)] = i + 1
    if model.task == "semantic":
        return torch.stack([labels, labels.flip(0)]) % _CLASSES
    return [_objects(labels), _objects(labels.flip(0))]


def _objects(labels: Tensor) -> Instances:
    masks = torch.stack([labels == i + 1 for i in range(_CLASSES)])
    return Instances(None, torch.arange(_CLASSES), masks)


def _reloaded(model: Segmenter) -> Segmenter:
    from pixvox.weights import load
    from pixvox.weights.checkpoint import save_safetensors

    with tempfile.TemporaryDirectory() as folder:
        return load(save_safetensors(model, Path(folder) / "model.safetensors"))


def _compare(first: Segmentation, again: Segmentation) -> None:
    """Refuse predictions that differ."""
    before, after = _told(first), _told(again)
    differ = [name for name in before if not torch.equal(before[name], after[name])]
    if differ:
        raise RuntimeError(f"after loading, the prediction has other {', '.join(differ)}")


def _told(result: Segmentation) -> dict[str, Tensor]:
    """Return what a prediction says, by name."""
    found = result.instances
    if found is None:
        return {"classes of pixels": _given(result.class_map)}
    return {"labels": found.labels, "boxes": _given(found.boxes), "scores": _given(found.scores)}


def _given(value: Tensor | None) -> Tensor:
    if value is None:
        raise RuntimeError("the prediction is incomplete")
    return value

"""How much memory a training step takes, and how much there is."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from pixvox.data.suggestions import Budget, StepMemory
from pixvox.segmenter import Segmenter
from pixvox.structures import Batch

_COPIES = 4  # weights, gradients and two moments of an optimiser of Adam's kind
_TEMPORARY = (
    1.4  # gradients of feature maps and the workspace of convolutions, beside what is kept for backward
)
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_memory() -> Budget:
    """Return the free memory of the device that a training will find by itself."""
    if torch.cuda.is_available():
        return Budget("cuda", torch.cuda.mem_get_info()[0], "free memory of the first CUDA device")
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    free, how = _free_of_the_machine()
    limit = _free_of_the_group()
    if limit is not None and limit < free:
        return Budget(device, limit, "limit of this process group")
    return Budget(device, free, how)


def _free_of_the_machine() -> tuple[int, str]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kilobytes) * 1024, "MemAvailable"
    except (OSError, StopIteration, ValueError):
        return _half_of_all()


def _half_of_all() -> tuple[int, str]:
    """Return half of the memory where the system does not tell what is free, 4 GiB where it tells nothing."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2, "half of the machine's memory"
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30, "assumed"


def _free_of_the_group() -> int | None:
    for limit, used in _CGROUP:
        try:
            return int(limit.read_text()) - int(used.read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return None


def measure_step(segmenter: Segmenter, batch: Batch, precision: str) -> StepMemory:
    """Run one forward pass and count what it keeps for the backward pass.

    That number depends on the device hardly at all, so a small step on a CPU tells of a large one elsewhere.

    Args:
        segmenter: The model, in training mode afterwards.
        batch: A training batch.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segmenter.to(device).train()
    images = segmenter.normalize(batch.images.to(device), _moved(batch.intensity_ranges, device))
    given = batch.targets
    if given is None:
        raise ValueError("a training step needs targets, this batch has none")
    targets = given.to(device) if isinstance(given, Tensor) else [each.to(device) for each in given]
    weights = list(segmenter.parameters())
    known = {_place(weight) for weight in weights}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _place(tensor) not in known:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with (
        torch.autocast(device.type, dtype=mixed, enabled=mixed is not None),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        losses = segmenter.loss(images, targets)
    del losses
    fixed = _COPIES * sum(weight.numel() * weight.element_size() for weight in weights)
    per_image = int(_TEMPORARY * (sum(kept.values()) + images.untyped_storage().nbytes()) / len(images))
    return StepMemory(fixed, per_image, f"measured with a batch of {len(images)}")


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)

"""What to say, and to do, when memory runs out in a training."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from pixvox.errors import TrainingError

SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
"""What the errors of CUDA, of torch's CPU allocator and of the system have in common."""


class OutOfMemory(TrainingError):  # noqa: N818 (it is what it says)
    """The memory of the device or of the machine is exhausted."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of torch or of Python means that memory ran out.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
        True
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def out_of_memory(config: DictConfig, error: BaseException, parameters: int) -> OutOfMemory:
    """Return an error with the numbers of the run, and what helps in the order of its price."""
    from pixvox.callbacks.summary import peak_memory_mib

    peak = ", ".join(f"{mib / 1024:.1f} GiB on the {name}" for name, mib in peak_memory_mib().items())
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    smaller = smaller_batch(config)
    first = (
        f"batch_size={smaller[0]} with accumulate_grad_batches={smaller[1]}, which learns the same in more steps "
        "(on_out_of_memory=halve_batch does so by itself)"
        if smaller
        else "the batch is one image already"
    )
    precision = "" if "bf16" in config.precision else " precision=bf16-mixed;"
    return OutOfMemory(
        f"out of memory with batch_size={config.batch_size}, image_size={config.image_size}, "
        f"precision={config.precision}, {parameters / 1e6:.1f} million parameters; peak {peak} ({reason[:160]}). "
        f"In this order: {first}; a smaller image_size;{precision} "
        "gradient checkpointing (gradient_checkpointing=true); a smaller backbone"
    )


def smaller_batch(config: DictConfig) -> tuple[int, int] | None:
    """Return the largest part of the batch up to its half, and the accumulation that makes up for it.

    Example:
        >>> from omegaconf import OmegaConf
        >>> smaller_batch(OmegaConf.create({"batch_size": 6, "accumulate_grad_batches": 2}))
        (3, 4)
    """
    batch = int(config.batch_size)
    part = next((size for size in range(batch // 2, 0, -1) if batch % size == 0), None)
    return None if part is None else (part, int(config.accumulate_grad_batches) * (batch // part))


def halve(config: DictConfig) -> list[str]:
    """Set the smaller batch and return it as overrides.

    Raises:
        OutOfMemory: If the batch is one image.
    """
    smaller: Any = smaller_batch(config)
    if smaller is None:
        raise OutOfMemory("the batch is one image already and cannot be halved")
    config.batch_size, config.accumulate_grad_batches = smaller
    return [f"batch_size={smaller[0]}", f"accumulate_grad_batches={smaller[1]}"]

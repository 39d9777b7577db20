"""Where the blocks of a volume are computed: in this process, in several on this machine, or as Ray tasks.

Work is a callable that can be pickled, takes a block and writes what it found: nothing but the note that a block is
done comes back, and the order in which blocks are done changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from pixvox.errors import ConfigError
from pixvox.inference.blocks import Block

Work = Callable[[Block], None]


@runtime_checkable
class Engine(Protocol):
    """Computes blocks somewhere."""

    def run(self, work: Work, blocks: Iterable[Block]) -> Iterator[Block]:
        """Do the work for each block, and yield the blocks as they are done."""


class SerialEngine:
    """In this process, one block after another."""

    def run(self, work: Work, blocks: Iterable[Block]) -> Iterator[Block]:
        """Do the work for each block, and yield the blocks as they are done."""
        for block in blocks:
            work(block)
            yield block


class ProcessEngine:
    """In processes on this machine.

    Args:
        workers: Processes; each holds the model and one tile. On a GPU they share it.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: Work, blocks: Iterable[Block]) -> Iterator[Block]:
        """Do the work for each block, and yield the blocks as they are done.

        Raises:
            ConfigError: If a process was killed, most likely for want of memory.
        """
        from pixvox.processes import context_with

        rest = iter(blocks)
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        context = context_with(["pixvox.inference.engines"])
        with ProcessPoolExecutor(self.workers, context, _begin, (work, threads)) as pool:
            pending = {pool.submit(_do, block) for block in islice(rest, 2 * self.workers)}
            try:
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from _results(done)
                    pending |= {pool.submit(_do, block) for block in islice(rest, len(done))}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class RayEngine:
    """As tasks of Ray, on this machine or on the cluster that ``RAY_ADDRESS`` names; the folder must be shared.

    Args:
        workers: Tasks at a time; more than there are CPUs or GPUs for wait for them.
        gpus: GPUs of a task, 1 where the model is on one: Ray gives it one that no other task has.
    """

    def __init__(self, workers: int, gpus: float = 0.0) -> None:
        self.workers, self.gpus = workers, gpus

    def run(self, work: Work, blocks: Iterable[Block]) -> Iterator[Block]:
        """Do the work for each block, and yield the blocks as they are done.

        Raises:
            ConfigError: If Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise ConfigError("inference.engine=ray needs Ray: pip install pixvox[ray]") from error
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        shared, rest = ray.put(work), iter(blocks)
        task = ray.remote(num_gpus=self.gpus)(_call)
        pending = [task.remote(shared, block) for block in islice(rest, self.workers)]
        while pending:
            done, pending = ray.wait(pending)
            yield from ray.get(done)
            pending += [task.remote(shared, block) for block in islice(rest, len(done))]


def engine(name: str, workers: int | None = None, device: str = "cpu") -> Engine:
    """Return an engine by its name.

    Args:
        name: ``"serial"``, ``"processes"`` or ``"ray"``.
        workers: Processes or tasks at a time; by default one per CPU core, and one process on a GPU, which several
            would only share.
        device: Kind of device that the model is on, as ``torch.device.type``.

    Raises:
        ConfigError: If there is no such engine.

    Example:
        >>> engine("processes", device="cuda").workers, engine("ray", 8, device="cuda").gpus
        (1, 1.0)
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"inference.workers must be at least 1, got {workers}")
    count = workers or os.cpu_count() or 1
    if name == "serial":
        return SerialEngine()
    if name == "processes":
        return ProcessEngine(count if device == "cpu" else workers or 1)
    if name == "ray":
        return RayEngine(count, gpus=1.0 if device == "cuda" else 0.0)
    raise ConfigError(f"inference.engine must be serial, processes or ray; got {name!r}")


_work: list[Work] = []


def _begin(work: Work, threads: int) -> None:
    """Keep the work of a process: it is sent once, not with every block."""
    import torch

    torch.set_num_threads(threads)
    _work[:] = [work]


def _do(block: Block) -> Block:
    return _call(_work[0], block)


def _call(work: Work, block: Block) -> Block:
    work(block)
    return block


def _results(done: Iterable[Future[Any]]) -> Iterator[Any]:
    for future in done:
        try:
            yield future.result()
        except BrokenProcessPool as error:
            raise ConfigError(
                "a process was killed, most likely for its memory; set fewer inference.workers or a smaller "
                "inference.tile_size. The same command goes on where this one ended"
            ) from error

"""Start one process per device, watch over them, and agree among them before training begins.

A training on several devices runs in as many processes. On one machine they are started here, by the process that
was asked to train, which takes no part itself: it hands signals on, ends all when one has failed, and tells what
happened once. So the same call works on the command line, in a script and in a notebook. On several machines each
process is started from outside, by ``torchrun`` or a cluster's scheduler; they find each other in ``join_world``.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf

from pixvox.errors import ConfigError, PixvoxError, TrainingError

log = logging.getLogger("pixvox")

T = TypeVar("T")

WORKER = "PIXVOX_WORKER"
"""Environment variable that marks the processes started here."""

GRACE = 20.0
"""Seconds that the other processes get to end by themselves once one has failed."""


def process_count(config: DictConfig) -> int:
    """Return the number of training processes on this machine: one per device.

    Args:
        config: A composed configuration; ``trainer.devices`` and ``trainer.accelerator`` count.

    Raises:
        ConfigError: If the devices cannot be counted.
    """
    devices = config.trainer.get("devices", "auto")
    if isinstance(devices, str):
        text = devices.strip()
        if text in ("auto", "-1"):
            devices = -1
        elif text.isdigit():
            devices = int(text)
        else:
            devices = [part for part in text.split(",") if part]
    if OmegaConf.is_list(devices) or isinstance(devices, list):
        return max(1, len(devices))
    if devices == -1:
        import torch

        return max(1, torch.cuda.device_count()) if on_cuda(config) else 1
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(
            f"trainer.devices={devices}: give a number from 1 up, a list of GPUs such as [0,1], or auto"
        )
    return devices


def on_cuda(config: DictConfig) -> bool:
    """Tell whether the configuration trains on NVIDIA GPUs."""
    import torch

    return config.trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def started_from_outside(config: DictConfig) -> bool:
    """Tell whether this process is one of several of one training already.

    True in the processes started here, by ``torchrun`` (``RANK`` and ``WORLD_SIZE``) and by ``srun`` when the
    number of tasks is that of the training's processes.

    Args:
        config: A composed configuration.
    """
    return _place(config) is not None


def _place(config: DictConfig) -> tuple[int, int, int] | None:
    """Return rank, number of processes and rank on this machine; None for a process of its own."""
    known = os.environ
    if "RANK" in known and int(known.get("WORLD_SIZE", "1")) > 1:
        return int(known["RANK"]), int(known["WORLD_SIZE"]), int(known.get("LOCAL_RANK", "0"))
    wanted = process_count(config) * int(config.trainer.get("num_nodes", 1))
    interactive = known.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" in known and int(known.get("SLURM_NTASKS", "1")) == wanted > 1 and not interactive:
        return int(known["SLURM_PROCID"]), wanted, int(known["SLURM_LOCALID"])
    return None


@contextmanager
def join_world(config: DictConfig) -> Iterator[None]:
    """Meet the other processes of a training; nothing in a process of its own.

    They meet before anything is built, so that they agree on the run folder; Lightning finds them connected.

    Args:
        config: A composed configuration; ``trainer.strategy.timeout`` bounds the time to wait, in seconds.
    """
    import torch
    import torch.distributed as dist

    place = _place(config)
    if place is None or dist.is_initialized():
        yield
        return
    rank, world, local = place
    if "SLURM_PROCID" in os.environ and "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        cluster = SLURMEnvironment()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
    seconds = OmegaConf.select(config, "trainer.strategy.timeout") or 1800.0
    backend = "gloo"
    if on_cuda(config):
        devices = config.trainer.get("devices", "auto")
        chosen = int(devices[local]) if OmegaConf.is_list(devices) else local
        torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl"  # counts and messages stay on the CPU, gradients on the GPUs
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(seconds=float(seconds)))
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """Return what ``make`` gives in the first process to every process; its error is raised in every process.

    Args:
        make: Called in the first process only; what it returns must be picklable.

    Example:
        >>> from_first(lambda: 3)
        3
    """
    from pixvox.distributed.world import gather_objects, process_rank

    made: tuple[T | None, PixvoxError | None] = (None, None)
    if process_rank() == 0:
        try:
            made = (make(), None)
        except PixvoxError as error:
            made = (None, error)
    value, failure = gather_objects(made)[0]
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def run_together(function: Callable[..., T], arguments: Sequence[Any], count: int, grace: float = GRACE) -> T:
    """Call a function in ``count`` new processes and return what the first of them returned.

    Args:
        function: A function of a module.
        arguments: Its arguments, picklable.
        count: Number of processes.
        grace: Seconds that the others get to end by themselves once one has failed.

    Raises:
        PixvoxError: What the function raised in one of them.
        TrainingError: If one of them has died.
        KeyboardInterrupt: After Ctrl-C, once all have ended.
        SystemExit: With 143 after SIGTERM, once all have ended.
    """
    with tempfile.TemporaryDirectory(prefix="pixvox_") as name:
        folder = Path(name)
        (folder / "call").write_bytes(pickle.dumps((function, tuple(arguments))))
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "pixvox.distributed.worker", name],
                env=_environment(rank, count, port),
                stdin=subprocess.DEVNULL,
                # Away from the terminal's Ctrl-C: it reaches them once, through us.
                start_new_session=True,
            )
            for port in [_free_port()]
            for rank in range(count)
        ]
        try:
            with _signals_to(workers) as received:
                ended = _wait(workers, grace)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        outcomes = [_outcome(folder, rank) for rank in range(count)]
        if received or any(ended):
            _raise(received, ended, outcomes)
        result: T = outcomes[0]
        return result


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what a process needs to know to find the others, and the parts that this one can import."""
    known = dict(os.environ)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    known.setdefault("OMP_NUM_THREADS", threads)
    known["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return known | {
        WORKER: "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _signals_to(workers: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on to the workers, which save and end; a second signal ends them at once."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number if len(received) == 1 else signal.SIGKILL)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[subprocess.Popen[bytes]], grace: float) -> list[int]:
    """Wait until all have ended, and return their exit codes; one that fails ends the others."""
    deadline: float | None = None
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.05)
        if deadline is None and any(worker.poll() for worker in workers):
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            late = [rank for rank, worker in enumerate(workers) if worker.poll() is None]
            codes = [worker.poll() for worker in workers]
            for rank in late:
                workers[rank].kill()
                workers[rank].wait()
            return [0 if code is None else code for code in codes]
    return [worker.wait() for worker in workers]


def _outcome(folder: Path, rank: int) -> Any:
    """Return what a process returned, the error that it raised, or the text of another exception."""
    place = folder / f"outcome{rank}"
    return pickle.loads(place.read_bytes()) if place.exists() else None


def _raise(received: Sequence[int], ended: Sequence[int], outcomes: Sequence[Any]) -> NoReturn:
    """Raise the cause of a failure, as this process would have met it alone."""
    if signal.SIGINT in received or (130 in ended and not received):
        raise KeyboardInterrupt
    if received or 143 in ended:
        raise SystemExit(143)
    for outcome in outcomes:
        if isinstance(outcome, PixvoxError):
            raise outcome
    # A process that was killed breaks the connections of the others, which fail after it.
    rank = min((rank for rank, code in enumerate(ended) if code), key=lambda rank: (ended[rank] > 0, rank))
    if ended[rank] > 0 and isinstance(outcomes[rank], str):
        log.error(outcomes[rank])
    raise TrainingError(
        f"process {rank} of {len(ended)} {_manner(ended[rank])}; the others were ended. The last checkpoint is whole: "
        "continue with pixvox train --resume"
    )


def _manner(code: int) -> str:
    if code > 0:
        return f"failed with exit code {code}, for the reason above"
    name = signal.Signals(-code).name
    hint = ", which is how the system ends processes when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"

"""A loader that continues where it was stopped, and whose worker processes fail in plain words."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler

from pixvox.errors import PixvoxError, TrainingError
from pixvox.structures import Batch


class SkippingSampler(Sampler[Any]):
    """Leave out the first samples of one iteration, without reading them.

    Args:
        sampler: Gives the order; its ``set_epoch`` and ``epoch`` are passed on.
    """

    def __init__(self, sampler: Sampler[Any]) -> None:
        self.sampler = sampler
        self.skip = 0

    @property
    def epoch(self) -> int:
        """Epoch of the next iteration."""
        return int(getattr(self.sampler, "epoch", 0))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        chosen = getattr(self.sampler, "set_epoch", None)
        if chosen is not None:
            chosen(epoch)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        return islice(iter(self.sampler), skip, None)


class ResumableLoader(DataLoader[Batch]):
    """A ``DataLoader`` with the state that Lightning saves and restores: batches consumed in this epoch.

    What worker processes have prepared ahead does not count. A restored loader skips by the sampler: nothing
    is decoded twice. The state is bound to its epoch; another epoch starts at its first batch.

    Args:
        dataset: Map-style.
        batch_size: Samples per batch.
        sampler: Order of the samples, a function of its ``epoch``.
        **options: Further arguments of ``torch.utils.data.DataLoader``.

    Example:
        >>> from torch.utils.data import SequentialSampler
        >>> loader = ResumableLoader(range(6), 2, SequentialSampler(range(6)), collate_fn=list)
        >>> batches = iter(loader)
        >>> next(batches)
        [0, 1]
        >>> again = ResumableLoader(range(6), 2, SequentialSampler(range(6)), collate_fn=list)
        >>> again.load_state_dict(loader.state_dict())
        >>> list(again), list(again)
        ([[2, 3], [4, 5]], [[0, 1], [2, 3], [4, 5]])
    """

    sampler: SkippingSampler

    def __init__(self, dataset: Any, batch_size: int, sampler: Sampler[Any], **options: Any) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=SkippingSampler(sampler),
            worker_init_fn=options.pop("worker_init_fn", leave_interrupts_to_parent),
            **options,
        )
        self._epoch = 0
        self._consumed = 0
        self._resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: Lightning makes its iterators before it tells the epoch, so nothing is asked of the
        # sampler, and no worker is started, until the first batch is.
        self._epoch, self._consumed = self.sampler.epoch, 0
        resumed, self._resumed = self._resumed, None
        if resumed is not None and resumed["epoch"] == self._epoch:
            # In samples, so that a run may go on with another batch size.
            self.sampler.skip = resumed["batches"] * resumed["batch_size"]
            self._consumed = self.sampler.skip // (self.batch_size or 1)
        try:
            for batch in super().__iter__():
                self._consumed += 1
                yield batch
        except PixvoxError as error:
            raise without_traceback(error) from None
        except RuntimeError as error:
            raise worker_failure(error, self.num_workers, self.batch_size) or error from None

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the batches of it that were handed over, and their size."""
        if self._resumed is not None:
            return dict(self._resumed)
        return {"epoch": self._epoch, "batches": self._consumed, "batch_size": int(self.batch_size or 1)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the batches of a state when its epoch is iterated next."""
        self._resumed = {name: int(state_dict[name]) for name in ("epoch", "batches", "batch_size")}


def leave_interrupts_to_parent(worker: int) -> None:
    """Let Ctrl-C, which a terminal sends to every process, be answered by the main process alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def without_traceback(error: PixvoxError) -> PixvoxError:
    """Return an error of a worker process with its own message; torch puts the worker's traceback before it."""
    text = str(error)
    if "in DataLoader worker process" not in text and "in pin memory thread" not in text:
        return error
    kind = type(error)
    message = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2].strip()
    return kind(message) if message else error


def worker_failure(error: RuntimeError, num_workers: int, batch_size: int | None) -> TrainingError | None:
    """Return what to do when a worker process died, or None for another error."""
    text = str(error)
    if "DataLoader worker" not in text or (
        "killed by signal" not in text and "exited unexpectedly" not in text
    ):
        return None
    cause = (
        "the shared memory of this machine or container is full"
        if "Bus error" in text or "shared memory" in text
        else "usually the system ended it because memory ran out"
    )
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return TrainingError(
        f"a process that loads images has died: {cause} ({reason}). Lower num_workers (now {num_workers}; 0 "
        f"loads in the main process) or batch_size (now {batch_size}), or give the machine more memory"
    )

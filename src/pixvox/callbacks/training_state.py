"""What a checkpoint needs so that a resumed run equals an unbroken one, bit by bit.

Beside weights, optimiser and schedule a training consists of random generators, gradients in the middle of an
accumulation, and the place in the epoch. Lightning stores the place as counters that differ by the hook a
checkpoint is written in, and reads some of them back as another place: validations are left out, epochs counted
twice, logged steps shifted. Here the counters are put to rest before they are written: a checkpoint stands
between two batches, before or after a validation, or at the start of an epoch, and nowhere else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from pixvox.callbacks.metrics_table import MetricsTable
from pixvox.data.loader import ResumableLoader
from pixvox.distributed.world import gather_objects, process_rank

KEY = "training_state"
"""Where the state stands in a checkpoint; plain types and tensors."""


class TrainingState(pl.Callback):
    """Add random generators, accumulated gradients and the place in the epoch to every checkpoint.

    It has no options: a run is either exact or not.
    """

    def __init__(self) -> None:
        self._random: dict[str, Any] | None = None
        self._gradients: Mapping[str, Tensor] = {}
        self._loaders: Sequence[Any] = ()
        self._validated = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the generators: a state that is saved because this batch failed is one without it."""
        self._random = random_state()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remember the generators: a validation that is broken off is done again."""
        self._random, self._validated = random_state(), False

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Note that this validation needs no repetition."""
        self._validated = True

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Put accumulated gradients back, now that the parameters are where they stay; set the loaders."""
        for name, parameter in module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter.device, parameter.dtype)
        # Lightning forgets the loaders when an optimiser asked for the number of steps: it then has made them
        # before it reads their states.
        loaders = CombinedLoader(trainer.train_dataloader).flattened if self._loaders else ()
        for loader, state in zip(loaders, self._loaders, strict=False):
            if isinstance(loader, ResumableLoader):
                loader.load_state_dict(state)
        self._gradients, self._loaders = {}, ()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state, put the counters to rest, and write the rows that belong to it."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsTable):
                logger.write()
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        in_batch = batches["current"]["ready"] > batches["current"]["completed"]
        in_validation = trainer.validating and not self._validated
        steps = _rest(trainer, loops, in_validation)
        remembered = self._random if in_batch or in_validation else None
        checkpoint[KEY] = {
            "steps": steps,
            "random": gather_objects(remembered or random_state()),
            "gradients": _accumulated(trainer, module, batches),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the generators; later would be too late for loaders that draw from them when they start."""
        if trainer.state.fn != "fit":  # a test at the end takes the weights, and the table keeps all its rows
            return
        state = checkpoint.get(KEY, {"steps": checkpoint["global_step"]})
        for logger in trainer.loggers:
            if isinstance(logger, MetricsTable):
                logger.keep_before(int(state["steps"]))
        if "random" in state:
            states = state["random"]
            set_random_state(states[process_rank() if process_rank() < len(states) else 0])
            self._gradients = state["gradients"]
        self._loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", ())
        datamodule = getattr(trainer, "datamodule", None)
        _convert_batches(checkpoint["loops"]["fit_loop"], getattr(datamodule, "batch_size", None))


def random_state() -> dict[str, Any]:
    """Return the generators of Python, numpy, torch and the current CUDA device as plain types."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 (others may draw from it)
    state = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [
            str(numpy_state[0]),
            torch.from_numpy(numpy_state[1].astype(np.int64)),
            *(float(value) if isinstance(value, float) else int(value) for value in numpy_state[2:]),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what ``random_state`` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _rest(trainer: pl.Trainer, loops: dict[str, Any], in_validation: bool) -> int:
    """Put the counters of the loops to rest and return the number of steps that were logged so far.

    Args:
        trainer: Tells where it is.
        loops: Lightning's state of the fit loop, changed in place.
        in_validation: A validation has begun and must be done again.
    """
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    done, length = batches["current"]["completed"], trainer.num_training_batches
    pending = batches["current"]["ready"] - done
    last = batches["is_last_batch"] and not pending
    epoch_over = epochs["current"]["processed"] >= epochs["current"]["ready"] and (last or done >= length)
    stepped = done % trainer.accumulate_grad_batches == 0 or last
    steps: int = loops["epoch_loop.state_dict"]["_batches_that_stepped"]
    if trainer.validating and stepped:
        steps += 1  # Lightning counts a batch after its validation

    for key in ("epoch_loop.batch_progress", "epoch_loop.scheduler_progress"):
        _settle(loops[key])
    for progress in loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values():
        _settle(progress)
    for state in loops["state_dict"].get("combined_loader", ()):
        if "batches" in state:
            state["batches"] -= pending
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counters in (validation["total"], validation["current"]):
        counters.update(dict.fromkeys(counters, 0))
    validation["is_last_batch"] = False
    if in_validation:  # what Lightning takes for the middle of a validation; it will start at its first batch
        validation["total"].update(ready=1, started=1)

    for counters in (epochs["total"], epochs["current"]):
        begun = counters["ready"]
        finished = begun if epoch_over else max(0, begun - 1)
        counters.update(started=begun, processed=finished, completed=finished)
    batches["is_last_batch"] = bool(last and not epoch_over)
    if epoch_over:
        for progress in (batches, loops["epoch_loop.scheduler_progress"],
                         *loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values()):  # fmt: skip
            progress["current"].update(dict.fromkeys(progress["current"], 0))
        done, stepped = 0, True
    # Where a resumed run passes over a validation, Lightning counts the step before it once more.
    again = stepped and _passes_validation(trainer, loops, done, epoch_over)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - int(again)
    return steps


def _settle(progress: dict[str, Any]) -> None:
    """Let everything that was begun be what was completed."""
    for counters in (progress["total"], progress["current"]):
        counters.update(dict.fromkeys(counters, counters["completed"]))


def _passes_validation(trainer: pl.Trainer, loops: dict[str, Any], done: int, epoch_over: bool) -> bool:
    """Tell whether Lightning, resuming here, first looks for the validation after the last batch."""
    resumes_as_restart = not epoch_over or trainer.max_steps != -1
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not (resumes_as_restart and trainer.enable_validation) or interval is None or math.isinf(interval):
        return False
    if every is None:
        return bool(loops["epoch_loop.batch_progress"]["total"]["completed"] % interval == 0)
    return bool((loops["epoch_progress"]["current"]["completed"] + 1) % every == 0 and done % interval == 0)


def _accumulated(
    trainer: pl.Trainer, module: pl.LightningModule, batches: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the gradients of batches whose optimiser step is still to come."""
    done = batches["current"]["completed"]
    if done % trainer.accumulate_grad_batches == 0 or batches["is_last_batch"]:
        return {}
    gradients = {n: p.grad.detach() for n, p in module.named_parameters() if p.grad is not None}
    if isinstance(trainer.strategy, DDPStrategy):  # each process has its own part until the step
        gradients = {name: trainer.strategy.reduce(grad.clone()) for name, grad in gradients.items()}
    return gradients


def _convert_batches(loops: dict[str, Any], batch_size: int | None) -> None:
    """Count the batches of an unfinished epoch anew when a run goes on with another batch size."""
    states = [state for state in loops["state_dict"].get("combined_loader", ()) if "batch_size" in state]
    progress = loops["epoch_loop.batch_progress"]
    done = progress["current"]["completed"]
    if batch_size is None or not states or not done or states[0]["batch_size"] == batch_size:
        return
    now = done * states[0]["batch_size"] // batch_size
    for counters in (progress["total"], progress["current"]):
        counters.update({name: value + now - done for name, value in counters.items()})

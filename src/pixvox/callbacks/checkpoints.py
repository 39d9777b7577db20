"""The checkpoints of a run: ``last``, ``previous``, ``best`` and ``epoch_0010``, whatever ends the run."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pixvox.callbacks.nan_guard import NonFiniteLossError, state_is_finite
from pixvox.distributed.world import world_size
from pixvox.errors import TrainingError
from pixvox.files import check_sum, sum_path, summed_file, whole_file
from pixvox.training.interruption import Interrupted
from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")


class SaveError(TrainingError):
    """A checkpoint cannot be written; what stood in its place is whole."""


def checkpoint_callbacks(
    run: RunFolder,
    monitor: str | None,
    mode: str,
    every_n_steps: int | None = None,
    keep_every: int | None = None,
) -> list[pl.Callback]:
    """Return the callbacks that keep the newest state and the best one.

    Args:
        run: Where they go.
        monitor: Score that tells the best epoch; without one there is no ``best.ckpt``.
        mode: ``"max"`` or ``"min"``.
        every_n_steps: Optimiser steps between two states in the middle of an epoch.
        keep_every: Epochs between two states that are kept for good.
    """
    callbacks: list[pl.Callback] = [LastCheckpoint(run, every_n_steps, keep_every)]
    if monitor is not None:
        best = ModelCheckpoint(
            dirpath=run.checkpoints,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        # The best is judged right after validation, so that the newest state knows of it.
        callbacks.insert(0, best)
    return callbacks


class LastCheckpoint(Checkpoint):
    """Save ``last.ckpt`` after each epoch, in its middle, and when a signal or an error ends the run.

    The state before it stays as ``previous.ckpt``. States are taken where a resumed run continues exactly: what
    fails in the middle of a batch is not saved, the newest state before it is.

    Args:
        run: Where they go.
        every_n_steps: Optimiser steps between two states in the middle of an epoch; None for none there.
        keep_every: Epochs between two states that are kept as ``epoch_0010.ckpt``; None keeps none.
    """

    def __init__(
        self, run: RunFolder, every_n_steps: int | None = None, keep_every: int | None = None
    ) -> None:
        self.run = run
        self.every_n_steps = every_n_steps
        self.keep_every = keep_every
        self._saved = 0
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A run that is resumed here stands on a saved state."""
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save between two batches: only now everything about the one before is counted and logged."""
        step = trainer.global_step
        # Several batches of one accumulation begin at the same step.
        if self.every_n_steps and step > self._step and step % self.every_n_steps == 0:
            self._step = step
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the end of the epoch; now and then keep it."""
        self.save(trainer)
        epoch = trainer.current_epoch + 1
        if self.keep_every and epoch % self.keep_every == 0 and trainer.is_global_zero:
            _keep(self.run.last, self.run.checkpoints / f"epoch_{epoch:04d}.ckpt")

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Save the state unless a resumed run could not continue from it exactly."""
        if not trainer.training and not trainer.validating:
            return
        asked = isinstance(exception, (SIGTERMException, Interrupted))  # raised where nothing is half done
        # A second Ctrl-C may come anywhere, and a full disk is full.
        if not asked and isinstance(exception, (KeyboardInterrupt, SaveError)):
            return
        # Another error may have come to one process alone: the others would not join it in saving.
        if world_size() > 1 and not (asked or isinstance(exception, NonFiniteLossError)):
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        unlearned = (
            isinstance(exception, NonFiniteLossError)
            and progress.completed % trainer.accumulate_grad_batches == 0
        )
        if progress.ready > progress.completed and not (asked or unlearned):
            return
        # The validation after the last step: a run that is resumed behind its last step would leave it out.
        if trainer.validating and trainer.should_stop:
            return
        finite = bool(trainer.strategy.reduce_boolean_decision(state_is_finite(module)))
        if finite and self.save(trainer):
            log.info("saved step %d in %s", trainer.global_step, self.run.last)

    def save(self, trainer: pl.Trainer) -> bool:
        """Save unless nothing happened since the last time; return whether it did."""
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        if done == self._saved:
            return False
        if trainer.is_global_zero and self.run.last.is_file():
            _keep(self.run.last, self.run.previous)
        trainer.save_checkpoint(self.run.last)
        self._saved = done
        return True


def _keep(source: Path, target: Path) -> None:
    """Let ``target`` be another name of a checkpoint, with its sum; a copy where the file system has no links.

    Checkpoints are replaced and never written to, so two names of one file are as good as two files.
    """
    sum_path(target).unlink(missing_ok=True)
    try:
        with whole_file(target) as part:
            try:
                os.link(source, part)
            except OSError:
                shutil.copyfile(source, part)
        if sum_path(source).is_file():
            digest = sum_path(source).read_text().partition(" ")[0]
            with whole_file(sum_path(target)) as part:
                part.write_text(f"{digest}  {target.name}\n")
    except OSError as error:
        log.warning("%s was not kept: %s", target, error.strerror or error)


class SummedCheckpoints(TorchCheckpointIO):
    """Write a sum beside each checkpoint, and compare before one is loaded.

    Args:
        on_error: ``"raise"`` ends the run when a checkpoint cannot be written, ``"warn"`` goes on without.
    """

    def __init__(self, on_error: Literal["raise", "warn"] = "raise") -> None:
        super().__init__()
        self.on_error = on_error

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint whole or not at all, then its sum.

        Raises:
            SaveError: If it cannot be written and ``on_error`` is ``"raise"``.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with summed_file(path) as part:
                super().save_checkpoint(checkpoint, part, storage_options)
        except (OSError, RuntimeError) as error:
            message = _not_written(path, error)
            if self.on_error == "raise":
                raise SaveError(f"{message}; or go on without it: on_save_error=warn") from error
            log.warning("%s", message)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> Any:
        """Load a checkpoint that matches its sum, or has none."""
        check_sum(Path(path))
        return super().load_checkpoint(path, *arguments, **options)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint with its sum."""
        sum_path(Path(path)).unlink(missing_ok=True)
        super().remove_checkpoint(path)


def _not_written(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free there"
    except OSError:
        free = "the folder cannot be reached"
    kept = "the one before it is whole" if path.is_file() else "there was none before it"
    return f"{path}: the checkpoint was not written ({reason}); {free}, {kept}. Make room, or set runs_dir elsewhere"


def keep_sums(trainer: pl.Trainer, on_error: Literal["raise", "warn"] = "raise") -> None:
    """Let a trainer write sums, unless its strategy or a plugin has its own way of writing checkpoints."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SummedCheckpoints(on_error)

"""``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt``, whatever ends the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from pixvox.callbacks.nan_guard import state_is_finite
from pixvox.files import check_sum, sum_path, summed_file
from pixvox.run_folder import RunFolder

log = logging.getLogger("pixvox")


def checkpoint_callbacks(run: RunFolder, monitor: str | None, mode: str) -> list[pl.Callback]:
    """Return the callbacks that keep the newest state, the best one, and the state at an interruption.

    Args:
        run: Where they go.
        monitor: Score that tells the best epoch; without one only ``last.ckpt`` is kept.
        mode: ``"max"`` or ``"min"``.
    """
    last = ModelCheckpoint(
        dirpath=run.checkpoints,
        filename="last",
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    callbacks: list[pl.Callback] = [last, SaveWhenInterrupted(run)]
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


class SaveWhenInterrupted(pl.Callback):
    """Save ``last.ckpt`` when a signal, an error or the NaN guard ends a run in the middle of an epoch.

    Args:
        run: Where it goes.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Save the state unless it is damaged or nothing was learned yet."""
        if not trainer.training and not trainer.validating:
            return
        if trainer.global_step == 0 or not state_is_finite(module):
            return
        trainer.save_checkpoint(self.run.last)
        log.info("saved step %d in %s", trainer.global_step, self.run.last)


class SummedCheckpoints(TorchCheckpointIO):
    """Write a sum beside each checkpoint, and compare before one is loaded."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint whole or not at all, then its sum."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with summed_file(path) as part:
            super().save_checkpoint(checkpoint, part, storage_options)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> Any:
        """Load a checkpoint that matches its sum, or has none."""
        check_sum(Path(path))
        return super().load_checkpoint(path, *arguments, **options)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint with its sum."""
        sum_path(Path(path)).unlink(missing_ok=True)
        super().remove_checkpoint(path)


def keep_sums(trainer: pl.Trainer) -> None:
    """Let a trainer write sums, unless its strategy or a plugin has its own way of writing checkpoints."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SummedCheckpoints()

"""Log elsewhere: one class whose methods are called with plain values when something happened in a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO

log = logging.getLogger("pixvox")


class Hooks(pl.Callback):
    """Override the methods that matter to you; what they raise is said and never ends a run.

    They are called by the first process alone. Name your class in the configuration group ``callbacks``, or on the
    command line: ``+callbacks.mine._target_=my_package.MyHooks``; its arguments stand beside ``_target_``.

    Example:
        >>> class Printed(Hooks):
        ...     def on_job_epoch_ended(self, stage, epoch, metrics):
        ...         print(stage, epoch, metrics["loss"])
        >>> Printed().on_job_epoch_ended("val", 0, {"loss": 0.5})
        val 0 0.5
    """

    def on_running_metrics_updated(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Numbers were logged during training: ``loss`` and its terms, ``learning_rate``, ...

        Args:
            step: Optimiser steps so far.
            epoch: Counted from 0.
            metrics: Latest numbers by name.
        """

    def on_job_epoch_ended(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """An epoch of training or a validation ended.

        Args:
            stage: ``"train"`` or ``"val"``.
            epoch: Counted from 0.
            metrics: Losses, and the scores of a validation, by name.
        """

    def on_snapshots_created(self, paths: list[Path]) -> None:
        """Pictures were written into the run folder.

        Args:
            paths: New or drawn anew, in alphabetical order.
        """

    def on_checkpoint_saved(self, path: Path, step: int) -> None:
        """A checkpoint is whole on disk.

        Args:
            path: The file.
            step: Optimiser steps that it holds.
        """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen to what writes checkpoints."""
        self._drawn: dict[Path, int] = {}
        if stage == "fit" and trainer.is_global_zero:
            strategy: Any = trainer.strategy
            strategy.checkpoint_io = _Announced(strategy.checkpoint_io, self._saved)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the trainer as it was."""
        strategy: Any = trainer.strategy
        if isinstance(strategy.checkpoint_io, _Announced):
            strategy.checkpoint_io = strategy.checkpoint_io.writer

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call ``on_running_metrics_updated`` as often as numbers are logged."""
        step = trainer.global_step
        if trainer.is_global_zero and step and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            metrics = _numbers(trainer.callback_metrics, "train")
            self._call(self.on_running_metrics_updated, step, trainer.current_epoch, metrics)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call ``on_job_epoch_ended``."""
        if trainer.is_global_zero:
            metrics = _numbers(trainer.callback_metrics, "train")
            self._call(self.on_job_epoch_ended, "train", trainer.current_epoch, metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call ``on_job_epoch_ended``, and ``on_snapshots_created`` for new pictures."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            metrics = _numbers(trainer.callback_metrics, "val")
            self._call(self.on_job_epoch_ended, "val", trainer.current_epoch, metrics)
            self._pictures(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call ``on_snapshots_created`` for the last pictures."""
        if trainer.is_global_zero:
            self._pictures(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Call ``on_snapshots_created`` for what was drawn of an interrupted run."""
        if trainer.is_global_zero:
            self._pictures(trainer)

    def _pictures(self, trainer: pl.Trainer) -> None:
        seen = {
            path: path.stat().st_mtime_ns for path in sorted(Path(trainer.default_root_dir).glob("*.png"))
        }
        new = [path for path, written in seen.items() if self._drawn.get(path) != written]
        self._drawn = seen
        if new:
            self._call(self.on_snapshots_created, new)

    def _saved(self, path: Path, step: int) -> None:
        self._call(self.on_checkpoint_saved, path, step)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception as error:
            name = f"{type(self).__name__}.{method.__name__}"
            log.warning("%s failed: %s: %s. The run goes on", name, type(error).__name__, error)


class _Announced(CheckpointIO):
    """Says when a checkpoint is written.

    Args:
        writer: Writes and reads.
        announce: Called with path and step.
    """

    def __init__(self, writer: CheckpointIO, announce: Callable[[Path, int], None]) -> None:
        self.writer, self.announce = writer, announce

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, then say so."""
        self.writer.save_checkpoint(checkpoint, path, storage_options)
        self.announce(Path(path), int(checkpoint.get("global_step", 0)))

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read."""
        return self.writer.load_checkpoint(path, *arguments, **options)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove."""
        self.writer.remove_checkpoint(path)

    def teardown(self) -> None:
        """Close the writer."""
        self.writer.teardown()


def _numbers(metrics: Mapping[str, Any], stage: str) -> dict[str, float]:
    """Return the numbers of a stage without its name; what belongs to none is training's."""
    other = {"train": "val/", "val": "train/"}[stage]
    named = {name: float(value) for name, value in metrics.items() if not name.startswith(other)}
    if stage == "val":
        named = {name: value for name, value in named.items() if name.startswith("val/")}
    return {name.removeprefix(f"{stage}/"): value for name, value in named.items()}

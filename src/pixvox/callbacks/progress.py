"""Progress of a run: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

log = logging.getLogger("pixvox")


def progress_callbacks(interval: float = 15.0) -> list[pl.Callback]:
    """Return a bar when standard error is a terminal; lines go to the log in any case.

    Args:
        interval: Seconds between two lines.
    """
    lines = ProgressLines(interval)
    return [Bar(), lines] if sys.stderr.isatty() else [lines]


class Bar(RichProgressBar):
    """Lightning's bar on standard error, without what says nothing here."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the loss alone."""
        loss = trainer.callback_metrics.get("train/loss")
        return {} if loss is None else {"loss": f"{float(loss):.3g}"}


class ProgressLines(pl.Callback):
    """Log a line every few seconds, and one per validation.

    Args:
        interval: Seconds between two lines.
    """

    def __init__(self, interval: float = 15.0) -> None:
        self.interval = interval
        self._started = self._last = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = self._last = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say where the run is, how fast it goes and how long it will take."""
        now = time.perf_counter()
        if not trainer.is_global_zero or now - self._last < self.interval:
            return
        self._last = now
        values = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step}{self._of(trainer)}"]
        parts += [
            f"{name.removeprefix('train/')} {values[name]:.4g}" for name in ("train/loss",) if name in values
        ]
        parts += [f"learning rate {group['lr']:.2g}" for group in trainer.optimizers[0].param_groups[-1:]]
        if "images_per_second" in values:
            parts.append(f"{values['images_per_second']:.1f} images/s")
        parts += [self._remaining(trainer, now)]
        log.info("  ".join(part for part in parts if part))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Say what the validation gave."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        scores = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        log.info(
            "epoch %d  step %d  validation: %s", trainer.current_epoch, trainer.global_step, headline(scores)
        )

    def _of(self, trainer: pl.Trainer) -> str:
        total = trainer.estimated_stepping_batches
        return "" if total == float("inf") else f"/{int(total)}"

    def _remaining(self, trainer: pl.Trainer, now: float) -> str:
        total, done = trainer.estimated_stepping_batches, trainer.global_step - self._first_step
        if total == float("inf") or done <= 0:
            return ""
        seconds = (now - self._started) / done * (total - trainer.global_step)
        return f"{clock(seconds)} left"


HEADLINES = ("loss", "AP", "AP50", "box_AP50", "mask_AP50", "matched_AP50", "PQ", "mIoU", "mDice", "acc")
"""Scores that a line shows when they exist; the table holds all."""


def headline(scores: Mapping[str, float]) -> str:
    """Write the main scores on one line; the first few of those that have none of the usual names.

    Example:
        >>> headline({"AP50": 0.5, "box_ARm": 0.1, "loss": 1.25})
        'loss 1.25  AP50 0.5'
    """
    chosen = [name for name in HEADLINES if name in scores]
    if not set(chosen) - {"loss"}:
        chosen += [name for name in scores if name not in chosen][:6]
    return "  ".join(f"{name} {scores[name]:.4g}" for name in chosen)


def clock(seconds: float) -> str:
    """Write a duration for people.

    Example:
        >>> clock(75), clock(3700)
        ('1:15', '1:01:40')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

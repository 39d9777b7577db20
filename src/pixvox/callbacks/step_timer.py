"""Where the time of a training step goes."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

log = logging.getLogger("pixvox")

PARTS = ("data", "forward", "backward", "optimizer")
"""Parts of a step: waiting for the batch and moving it to the device, model and loss, gradients, update."""


class StepTimer(pl.Callback):
    """Measure the parts of each training step, and say their shares at the end.

    Validation, checkpoints and the first steps, which pay for starting up, are left out.

    Args:
        exact: Wait for the device at each border, so that its work is counted where it was asked for; this costs
            some speed on a GPU. Without it the time of a GPU shows where the host waits for it.
        skip: Steps that are left out at the start of each epoch.
    """

    def __init__(self, exact: bool = False, skip: int = 1) -> None:
        self.exact, self.skip = exact, skip
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.steps = 0
        self._border: float | None = None
        self._step = dict.fromkeys(PARTS, 0.0)
        self._seen = 0
        self._elsewhere = False
        self._said = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to wait for the first batch."""
        self._border, self._seen, self._elsewhere = self._now(), 0, False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        self._step = dict.fromkeys(PARTS, 0.0)
        self._until("data")
        if self._elsewhere:  # the time was spent on something else than waiting for the batch
            self._step["data"], self._elsewhere = 0.0, False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave checkpoints out."""
        self.leave_out()

    def leave_out(self) -> None:
        """Leave what happens between this step and the next out."""
        self._elsewhere = True

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The loss is known."""
        self._until("forward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The gradients are known."""
        self._until("backward")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over."""
        self._until("optimizer")
        self._seen += 1
        if self._seen > self.skip:
            self.steps += 1
            for part, seconds in self._step.items():
                self.seconds[part] += seconds

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave validation out."""
        self._border = self._now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say the shares."""
        self._say(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say the shares so far."""
        self._say(trainer)

    def shares(self) -> dict[str, float]:
        """Return the share of each part in [0, 1]; nothing before a step was measured."""
        total = sum(self.seconds.values())
        return {part: seconds / total for part, seconds in self.seconds.items()} if total else {}

    def summary(self) -> dict[str, Any]:
        """Return seconds per step and shares, for ``summary.json``."""
        if not self.steps:
            return {}
        parts = {part: round(share, 4) for part, share in self.shares().items()}
        return {"step": {"seconds": round(sum(self.seconds.values()) / self.steps, 5), "shares": parts}}

    def line(self) -> str:
        """Return one line for people."""
        words = {
            "data": "waiting for data",
            "forward": "forward",
            "backward": "backward",
            "optimizer": "optimiser",
        }
        shares = ", ".join(f"{words[part]} {share:.1%}" for part, share in self.shares().items())
        return f"{sum(self.seconds.values()) / self.steps:.3g} s per step: {shares}"

    def _say(self, trainer: pl.Trainer) -> None:
        """Once: a signal may come after the end of the last step, too."""
        if trainer.is_global_zero and self.steps and not self._said:
            self._said = True
            log.info("%s", self.line())

    def _until(self, part: str) -> None:
        now = self._now()
        if self._border is not None:
            self._step[part] += now - self._border
        self._border = now

    def _now(self) -> float:
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

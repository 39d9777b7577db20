"""Stop all processes of a training at the same step when one of them is asked to."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pixvox.distributed.world import world_max
from pixvox.training.interruption import Interrupted


class StopTogether(pl.Callback):
    """Turn SIGTERM or Ctrl-C in any process into a stop of all between two batches.

    Processes that stop at different steps leave the others waiting, and state that no checkpoint can hold. So
    a signal is only noted where it arrives; before each batch the processes compare notes.
    """

    def __init__(self) -> None:
        self._noted = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Note signals from here on; Lightning restores the handlers of before when it is done."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before a batch that begins an optimiser step: everything before is complete."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._compare()

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do not wait for the end of a long validation."""
        self._compare()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number

    def _compare(self) -> None:
        number = int(world_max(self._noted))
        if number == signal.SIGTERM:
            raise SIGTERMException
        if number == signal.SIGINT:
            raise Interrupted

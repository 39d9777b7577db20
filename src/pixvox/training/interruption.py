"""Ctrl-C and SIGTERM: between two batches while a training runs, at once before and after."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl

log = logging.getLogger("pixvox")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, answered where the state of the training can be saved."""


class Interruption(pl.Callback):
    """Note the first signal and let the trainer stop where a checkpoint continues exactly.

    Lightning stops so for SIGTERM; a first Ctrl-C is turned into one. A second Ctrl-C ends the run at once, and
    what was saved before is what there is. Use it as a context around everything, and as a callback.
    """

    def __init__(self) -> None:
        self.number = 0
        self._process = os.getpid()
        self._deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        with contextlib.suppress(ValueError):  # signals are for the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """From here on there is something to save."""
        self._deferred = True

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Everything is saved."""
        self.answer_at_once()

    def answer_at_once(self) -> None:
        """Nothing more will be saved: from here on a signal ends the process where it comes."""
        self._deferred = False

    def answer(self) -> None:
        """End the process when a signal came that nothing else has answered.

        Raises:
            KeyboardInterrupt: If it was Ctrl-C.
            SystemExit: With 143, if it was SIGTERM.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number == signal.SIGTERM:
            raise SystemExit(143)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and os.getpid() != self._process:
            return  # a loading process that has just been forked: Ctrl-C is for the main process to answer
        again, self.number = self.number, self.number or number
        if number == signal.SIGINT and (again == signal.SIGINT or not self._deferred):
            raise KeyboardInterrupt
        if not self._deferred:
            raise SystemExit(143)
        if number == signal.SIGINT:
            log.info("stopping after this batch; Ctrl-C again stops at once")
            signal.raise_signal(signal.SIGTERM)  # Lightning listens to this one

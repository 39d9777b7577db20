"""Stop when a score no longer improves, also when such a run is resumed."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping


class StopEarly(EarlyStopping):
    """Lightning's ``EarlyStopping``, which a resume does not make forget that the run had stopped.

    Lightning's own would train for another validation each time. A patience that the resumed run is given anew
    counts, and lets a run go on that had stopped by another.
    """

    def __init__(self, monitor: str, patience: int, **options: Any) -> None:
        super().__init__(monitor, patience=patience, **options)
        self.stopped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stay where the run had stopped."""
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge a score of the validation."""
        before = trainer.should_stop
        super().on_validation_end(trainer, pl_module)
        self.stopped = trainer.should_stop and not before

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge a score of the training."""
        before = trainer.should_stop
        super().on_train_epoch_end(trainer, pl_module)
        self.stopped = self.stopped or (trainer.should_stop and not before)

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and whether the run has stopped."""
        return {**super().state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on waiting, with the patience of this run."""
        patience = self.patience
        super().load_state_dict(state_dict)
        self.stopped = state_dict["stopped"] and self.patience == patience
        self.patience = patience

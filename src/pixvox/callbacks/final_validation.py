"""Let every run end with a validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class FinalValidation(pl.Callback):
    """Validate after the last epoch or step, also where neither is one of every ``val_every_n_epoch`` epochs.

    Without, the weights that learned longest would have no scores, and could not become the best checkpoint.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Have the last epoch validated."""
        if trainer.max_epochs == trainer.current_epoch + 1 and trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop at the last step: Lightning validates before a stop, but not when steps run out."""
        if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
            trainer.check_val_every_n_epoch = 1
            trainer.should_stop = True

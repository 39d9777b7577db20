"""Validate the last step of a run that ends in the middle of an epoch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class FinalValidation(pl.Callback):
    """Let a run of ``max_steps`` end with a validation, or it has neither scores nor a best checkpoint."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop at the last step: Lightning validates before a stop, but not when steps run out."""
        if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
            trainer.check_val_every_n_epoch = 1
            trainer.should_stop = True

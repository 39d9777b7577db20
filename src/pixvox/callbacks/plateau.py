"""Step the schedules that watch a score."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from pixvox.errors import ConfigError
from pixvox.signatures import nearest


class PlateauSteps(pl.Callback):
    """Step ``ReduceLROnPlateau`` right after each validation, before any checkpoint is written.

    Lightning steps it after the newest state of the epoch was saved, and not at all when that state is resumed:
    a resumed run would count one validation less than an unbroken one.
    """

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Hand each schedule its score."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for config in trainer.lr_scheduler_configs:
            if config.monitor is None:
                continue
            scores: dict[str, Any] = trainer.callback_metrics
            if config.monitor not in scores:
                known = [name for name in scores if name.startswith("val/")]
                raise ConfigError(f"scheduler.monitor={config.monitor}: {nearest(config.monitor, known)}")
            plateau: Any = config.scheduler
            plateau.step(float(scores[config.monitor]))

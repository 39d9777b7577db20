"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pixvox.errors import ConfigError


class EMA(WeightAveraging):
    """Validate and keep an average of the weights over the last steps, while training goes on with the newest.

    "Mean teachers are better role models" (Tarvainen & Valpola, 2017, https://arxiv.org/abs/1703.01780) with the
    warm-up usual since: after ``n`` updates the decay is at most ``(1 + n) / (10 + n)``, so that an average of a
    short run forgets its random start. Buffers such as running means are averaged too, counters copied.
    ``state_dict`` of a checkpoint holds the average; the newest weights stand beside it for a resume.

    Args:
        decay: Share of the average that each step keeps, in (0, 1); 0.999 looks back on about 1,000 steps.

    Raises:
        ConfigError: If it is not such a share.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(
                f"ema_decay={decay}: it is the share that is kept, between 0 and 1, such as 0.999"
            )
        self.decay = decay
        self._swapped = False
        super().__init__(device=None, use_buffers=True, multi_avg_fn=self.average)

    def average(self, averages: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        """Move ``averages``, all of one type and ``count`` updates old, towards ``current``."""
        if not torch.is_floating_point(averages[0]):
            for ours, theirs in zip(averages, current, strict=True):
                ours.copy_(theirs)
            return
        decay = min(self.decay, (1 + float(count)) / (10 + float(count)))
        update: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(list(averages), list(current), count)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in place of the weights."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take weights and average apart to train on; whoever tests or validates wants the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Put the weights back, before a state is saved, when a validation was broken off."""
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)

"""Which validation was the best."""

from __future__ import annotations

import lightning.pytorch as pl


class BestScore:
    """Tell whether the latest validation is the best so far; without a score each one is.

    Args:
        monitor: Logged name of the score.
        mode: ``"max"`` or ``"min"``.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.monitor = monitor
        self.mode = mode
        self.value: float | None = None

    def improved(self, trainer: pl.Trainer) -> bool:
        """Look at the latest scores; NaN never improves on a number."""
        if self.monitor is None or self.monitor not in trainer.callback_metrics:
            return True
        score = float(trainer.callback_metrics[self.monitor])
        if score != score:
            return self.value is None
        if self.value is None or (score > self.value if self.mode == "max" else score < self.value):
            self.value = score
            return True
        return False

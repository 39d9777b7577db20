"""A picture of the first training images as the model gets them, which shows faults of labels at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from pixvox.callbacks.step_timer import StepTimer
from pixvox.structures import Batch, Segmentation, parts_of

log = logging.getLogger("pixvox")


class TrainSamples(pl.Callback):
    """Write ``train_samples.png`` once the first batches came; a failing picture never ends a run.

    Args:
        folder: Where the picture goes: the run folder.
        max_images: Images in the picture.
        timer: Told to leave the drawing out of the steps' time.
    """

    def __init__(self, folder: Path, max_images: int = 8, timer: StepTimer | None = None) -> None:
        self.timer = timer
        self.path = folder / "train_samples.png"
        self.max_images = max_images
        self._samples: list[Segmentation] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep images until there are enough, then draw them."""
        if (
            not isinstance(batch, Batch | Mapping)
            or not trainer.is_global_zero
            or len(self._samples) >= self.max_images
        ):
            return
        from pixvox.visualization.samples import training_samples

        names = tuple(getattr(getattr(pl_module, "segmenter", None), "class_names", ()))
        for part in parts_of(batch):
            self._samples += training_samples(part, names)
        if len(self._samples) >= self.max_images:
            self.draw()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what there is after a training of few images."""
        if 0 < len(self._samples) < self.max_images:
            self.draw()

    def draw(self) -> None:
        """Write the picture."""
        if self.timer is not None:
            self.timer.leave_out()
        from pixvox.visualization.samples import draw_samples

        try:
            draw_samples(self._samples[: self.max_images], self.path)
        except Exception as error:
            log.warning("%s was not drawn: %s: %s", self.path, type(error).__name__, error)

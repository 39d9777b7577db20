"""Pictures of every validation, to see how a model learns: predictions, and the confusion matrix of class maps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from pixvox.callbacks.pictures import Pair, confusion_matrix, first_pairs, try_to_draw
from pixvox.callbacks.tracking import log_picture, trackers
from pixvox.structures import Batch

log = logging.getLogger("pixvox")


class Snapshots(pl.Callback):
    """Write ``val/snapshot_0000.png`` and ``val/cm_0000.png`` of each epoch that is validated, and hand them on.

    Each row of a snapshot is an image, its truth and its prediction; the same images every time. Loggers get both
    under one name with the step. The pictures of the best epoch are in the run folder in any case.

    Args:
        max_images: Rows of a snapshot.
        every: Epochs between two of them.
    """

    def __init__(self, max_images: int = 4, every: int = 1) -> None:
        self.max_images, self.every = max_images, every
        self._pairs: list[Pair] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        self._pairs = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first predictions with their truth."""
        self._pairs += first_pairs(outputs, batch, self.max_images - len(self._pairs))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them, and the confusion matrix."""
        epoch = trainer.current_epoch
        if trainer.sanity_checking or epoch % self.every:
            return
        matrix = confusion_matrix(getattr(pl_module, "metrics", None))  # a collective: every process asks
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "val"
        segmenter: Any = getattr(pl_module, "segmenter", None)
        threshold = 0.5 if segmenter is None else segmenter.head.confident_score
        pictures = {"snapshot": folder / f"snapshot_{epoch:04d}.png", "cm": folder / f"cm_{epoch:04d}.png"}
        title = f"epoch {epoch}"
        try_to_draw(
            "grids.draw_predictions",
            pictures["snapshot"],
            self._pairs,
            max_images=self.max_images,
            score_threshold=threshold,
            title=title,
        )
        if matrix is not None:
            try_to_draw("confusion_matrix.draw_confusion_matrix", pictures["cm"], *matrix, title=title)
        for name, path in pictures.items():
            for logger in trackers(trainer) if path.exists() else ():
                log_picture(logger, f"val_{name}", path, trainer)

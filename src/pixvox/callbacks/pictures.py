"""Pictures of a run: validation predictions, curves, precision-recall curves or confusion matrix, table of classes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pixvox.callbacks.best_score import BestScore
from pixvox.callbacks.metrics_table import MetricsTable
from pixvox.metrics.class_table import ClassTable
from pixvox.signatures import locate
from pixvox.structures import Batch, Segmentation
from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")

Pair = tuple[Segmentation, Segmentation]
"""Prediction and truth of one image."""


class Pictures(pl.Callback):
    """Keep the first validation images of the best epoch and draw them; a failing picture never ends a run.

    Args:
        run: Where the pictures go.
        monitor: Score that tells the best epoch; without one every validation is drawn.
        mode: ``"max"`` or ``"min"``.
        max_images: Images in ``val_predictions.png``.
        interval: Seconds between two drawings during the run; the end of the run always draws.
    """

    def __init__(
        self,
        run: RunFolder,
        monitor: str | None = None,
        mode: str = "max",
        max_images: int = 8,
        interval: float = 120.0,
    ) -> None:
        self.run = run
        self.best = BestScore(monitor, mode)
        self.max_images = max_images
        self.interval = interval
        self.pairs: list[Pair] = []
        self.curves: list[Any] = []
        self.matrix: tuple[Any, tuple[str, ...]] | None = None
        self.classes: ClassTable | None = None
        self.least_score = 0.5
        self._running: list[Pair] = []
        self._drawn = time.perf_counter()

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start a new collection."""
        self._running = []
        segmenter: Any = getattr(module, "segmenter", None)
        if segmenter is not None:
            self.least_score = segmenter.head.confident_score

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep predictions with their truth until there are enough."""
        self._running += first_pairs(outputs, batch, self.max_images - len(self._running))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep what belongs to the best epoch so far; draw when the last drawing is old."""
        if not trainer.sanity_checking and self.best.improved(trainer):
            self.pairs = self._running
            metrics: Any = getattr(module, "metrics", None)
            # All are collectives: every process asks.
            self.curves = list(metrics.curves()) if hasattr(metrics, "curves") else []
            self.matrix = confusion_matrix(metrics)
            self.classes = metrics.class_table() if hasattr(metrics, "class_table") else None
        if trainer.is_global_zero and time.perf_counter() - self._drawn > self.interval:
            self.draw()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw everything."""
        if trainer.is_global_zero:
            _save_tables(trainer)
            self.draw()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Draw what there is also when an error ended the run; who sends a signal is not to be kept waiting."""
        if trainer.is_global_zero:
            _save_tables(trainer)
            if not isinstance(exception, (SIGTERMException, KeyboardInterrupt)):
                self.draw()

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, so that a resumed run keeps the pictures of the best epoch."""
        return {"score": self.best.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best.value = state_dict["score"]

    def draw(self) -> None:
        """Write the pictures."""
        folder = self.run.path
        if self.run.metrics.exists():
            try_to_draw("curves.draw_curves", folder / "curves.png", self.run.metrics)
        if self.pairs:
            try_to_draw(
                "grids.draw_predictions",
                folder / "val_predictions.png",
                self.pairs,
                max_images=self.max_images,
                score_threshold=self.least_score,
            )
        if self.curves:
            try_to_draw(
                "precision_recall.draw_precision_recall", folder / "precision_recall.png", self.curves
            )
        if self.matrix is not None:
            try_to_draw(
                "confusion_matrix.draw_confusion_matrix", folder / "confusion_matrix.png", *self.matrix
            )
        if self.classes is not None:
            try:
                self.classes.save(folder / "per_class.csv")
            except OSError as error:
                log.warning("per_class.csv was not written: %s", error)
        self._drawn = time.perf_counter()


def first_pairs(outputs: Any, batch: Batch, count: int) -> list[Pair]:
    """Return up to ``count`` predictions of a validation step with their truths; none where there is no truth."""
    if count < 1 or batch.truths is None or not isinstance(outputs, Mapping):
        return []
    return list(zip(outputs["predictions"], batch.truths, strict=True))[:count]


def confusion_matrix(metrics: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Return confusion matrix and class names of a semantic metric, if there is one."""
    for metric in getattr(metrics, "metrics", {}).values():
        if hasattr(metric, "confusion_matrix"):
            return metric.confusion_matrix, tuple(metric.class_names)
    return None


def _save_tables(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        logger.write() if isinstance(logger, MetricsTable) else logger.save()


def try_to_draw(function: str, path: Path, *arguments: Any, **options: Any) -> None:
    """Draw; a run is worth more than a picture, so a failure is said and passed over."""
    try:
        locate(f"pixvox.visualization.{function}")(*arguments, path=path, **options)
    except Exception as error:
        log.warning("%s was not drawn: %s: %s", path, type(error).__name__, error)

"""Hand configuration, best scores and pictures of a run to its loggers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from pixvox.callbacks.metrics_table import MetricsTable
from pixvox.callbacks.summary import summary_of
from pixvox.loggers.tracker import Tracker
from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")


class Tracking(pl.Callback):
    """Log every hyper-parameter at the start, best scores and pictures at the end.

    Args:
        run: Where the pictures are.
        config: The resolved configuration.
        resumed: A resumed run has its hyper-parameters already; trackers refuse to change them.
    """

    def __init__(self, run: RunFolder, config: Mapping[str, Any], resumed: bool = False) -> None:
        self.run, self.config, self.resumed = run, dict(config), resumed

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Log the configuration."""
        if self.resumed or not trainer.is_global_zero:
            return
        for logger in trackers(trainer):
            _try(logger, "its hyper-parameters", lambda logger=logger: logger.log_hyperparams(self.config))

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Log the best scores and the pictures."""
        self._finish(trainer)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Log them also when the run was interrupted."""
        self._finish(trainer)

    def _finish(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        best = {f"best/{name}": value for name, value in (summary_of(trainer).get("best") or {}).items()}
        pictures = sorted(self.run.path.glob("*.png"))
        for logger in trackers(trainer):
            if best:
                _try(
                    logger,
                    "the best scores",
                    lambda logger=logger: logger.log_metrics(best, trainer.global_step),
                )
            for path in pictures:
                log_picture(logger, path.stem, path, trainer)


def trackers(trainer: pl.Trainer) -> list[Logger]:
    """Return the loggers of a run that take more than numbers."""
    return [logger for logger in trainer.loggers if not isinstance(logger, MetricsTable)]


def log_picture(logger: Logger, name: str, path: Path, trainer: pl.Trainer) -> None:
    """Hand a picture to a logger under a name; what fails is said and passed over."""
    _try(logger, path.name, lambda: _hand_on(logger, name, path, trainer))


def _hand_on(logger: Logger, name: str, path: Path, trainer: pl.Trainer) -> None:
    if isinstance(logger, Tracker):
        logger.log_picture(name, path, trainer.global_step)
    elif isinstance(logger, TensorBoardLogger):
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


def _try(logger: Logger, what: str, act: Any) -> None:
    """Act; a run is worth more than what a tracker shows of it."""
    try:
        act()
    except Exception as error:
        log.warning("%s did not take %s: %s", type(logger).__name__, what, error)

"""``summary.json``: what a run reached, and what it cost."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch

from pixvox.callbacks.best_score import BestScore
from pixvox.callbacks.nan_guard import NaNGuard
from pixvox.callbacks.profiler import Profiler
from pixvox.callbacks.step_timer import StepTimer
from pixvox.training.run_folder import RunFolder


class Summary(pl.Callback):
    """Keep the scores of the best validation and write them with seconds, peak memory and parameters.

    The best scores and the seconds are part of each checkpoint, so a resumed run adds to them.

    Args:
        run: Where the file goes.
        monitor: Score that tells the best epoch.
        mode: ``"max"`` or ``"min"``.
    """

    def __init__(self, run: RunFolder, monitor: str | None, mode: str) -> None:
        self.run = run
        self.best = BestScore(monitor, mode)
        self.best_metrics: dict[str, float] = {}
        self.best_epoch: int | None = None
        self.content: dict[str, Any] = {}
        self._earlier = 0.0
        self._started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """From here on this is the newest run: what was wrong with its configuration would have been said."""
        if trainer.is_global_zero:
            self.run.point_last()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the scores when they are the best."""
        if not trainer.sanity_checking and self.best.improved(trainer):
            self.best_metrics = _scores(trainer)
            self.best_epoch = trainer.current_epoch

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the file."""
        self._write(trainer, module, "finished")

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Write the file also when the run was interrupted."""
        self._write(trainer, module, f"interrupted: {type(exception).__name__}")

    def state_dict(self) -> dict[str, Any]:
        """Return plain types for the checkpoint."""
        return {
            "score": self.best.value,
            "metrics": self.best_metrics,
            "epoch": self.best_epoch,
            "seconds": self._seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best.value = state_dict["score"]
        self.best_metrics = dict(state_dict["metrics"])
        self.best_epoch = state_dict["epoch"]
        self._earlier = state_dict["seconds"]

    def _seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._started

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, status: str) -> None:
        # Of a teacher and its student, one model counts.
        parameters = list(getattr(module, "segmenter", module).parameters())
        self.content = {
            "status": status,
            "monitor": self.best.monitor,
            "mode": self.best.mode,
            "best": self.best_metrics,
            "best_epoch": self.best_epoch,
            "last": _scores(trainer),
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "skipped_steps": _skipped(trainer),
            "seconds": round(self._seconds(), 1),
            "peak_memory_mib": peak_memory_mib(),
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            **_measured(trainer),
        }
        if trainer.is_global_zero:
            self.run.write_json(self.run.summary, self.content)


def _scores(trainer: pl.Trainer) -> dict[str, float]:
    return {
        name.removeprefix("val/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/")
    }


def _skipped(trainer: pl.Trainer) -> int:
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks", [])
    return sum(len(callback.skipped) for callback in callbacks if isinstance(callback, NaNGuard))


def _measured(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what the callbacks that measure have found."""
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks", [])
    measuring = [callback for callback in callbacks if isinstance(callback, (StepTimer, Profiler))]
    return {name: value for callback in measuring for name, value in callback.summary().items()}


def summary_of(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what the trainer's ``Summary`` wrote."""
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks", [])
    return next(callback.content for callback in callbacks if isinstance(callback, Summary))


def peak_memory_mib() -> dict[str, float]:
    """Return the most memory this process has used so far, on the host and on the device."""
    peak: dict[str, float] = {}
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak["host"] = round(used / (2**20 if sys.platform == "darwin" else 2**10), 1)
    except ImportError:  # not on Windows
        pass
    if torch.cuda.is_available():
        peak["cuda"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak

"""Record some steps with torch's profiler, and count the model's arithmetic."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from pixvox.callbacks.step_timer import StepTimer
from pixvox.flops import count_flops
from pixvox.structures import parts_of
from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")

WARM_UP = 2
"""Steps before the recorded ones."""


class Profiler(pl.Callback):
    """Write ``profile/trace.json`` (for ``chrome://tracing`` or Perfetto) and ``profile/operators.txt``.

    Args:
        run: The run folder.
        steps: Steps to record, after two that warm up.
        timer: Told when writing takes time that is not the training's.
        rows: Operators in the table.
    """

    def __init__(
        self, run: RunFolder, steps: int = 10, timer: StepTimer | None = None, rows: int = 25
    ) -> None:
        self.folder = run.path / "profile"
        self.steps, self.rows, self.timer = steps, rows, timer
        self.flops: dict[str, int] = {}
        self.utilization: list[float] = []
        self._profile: Any = None
        self._seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start over, also when a run is resumed."""
        self._seen = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the arithmetic once; begin to record."""
        if not trainer.is_global_zero:
            return
        if self._seen == 0:
            shape = tuple(parts_of(batch)[0].images.shape[2:])
            self.flops = count_flops(pl_module.segmenter, shape)
            size = " x ".join(map(str, shape))
            parts = ", ".join(f"{part} {count / 1e9:.3g}" for part, count in self.flops.items())
            log.info("billions of operations to predict one image of %s: %s", size, parts)
        if self._seen == WARM_UP and self._profile is None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, profile_memory=True)
            self._profile.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the last recorded step."""
        self._seen += 1
        self._ask_device()
        if self._seen == WARM_UP + self.steps:
            self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what a short run gave."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write what an interrupted run gave."""
        self._stop()

    def summary(self) -> dict[str, Any]:
        """Return operations by part, and the GPU's utilisation where it is known, for ``summary.json``."""
        content: dict[str, Any] = {"flops": dict(self.flops)} if self.flops else {}
        if self.utilization:
            content["gpu_utilization_percent"] = round(sum(self.utilization) / len(self.utilization), 1)
        return content

    def _ask_device(self) -> None:
        """Ask the GPU how busy it is, once a step of those that are recorded."""
        if self._profile is None or not torch.cuda.is_available():
            return
        try:
            self.utilization.append(float(torch.cuda.utilization()))
        except Exception as error:  # needs the driver's library, and its Python package
            if not self.utilization:
                log.info("the GPU's utilisation is not known: %s", str(error).splitlines()[0])
            self.utilization = []

    def _stop(self) -> None:
        recorder, self._profile = self._profile, None
        if recorder is None:
            return
        if self.timer is not None:
            self.timer.leave_out()
        recorder.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / "trace.json"
        recorder.export_chrome_trace(str(trace))
        averages = recorder.key_averages()
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = averages.table(sort_by=by, row_limit=self.rows, max_name_column_width=60)
        (self.folder / "operators.txt").write_text(table + "\n", encoding="utf-8")
        key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        first = sorted(averages, key=lambda event: float(getattr(event, key)), reverse=True)[:5]
        whole = sum(float(getattr(event, key)) for event in averages) or 1.0
        shares = ", ".join(f"{event.key} {float(getattr(event, key)) / whole:.0%}" for event in first)
        log.info("profile of %d steps: %s; %s, operators.txt", self.steps, shares, trace)

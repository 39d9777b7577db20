"""Stop before weights become NaN."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from pixvox.distributed.sharding import local_part
from pixvox.distributed.world import gather_objects
from pixvox.errors import TrainingError
from pixvox.structures import Batch, parts_of

log = logging.getLogger("pixvox")


class NonFiniteLossError(TrainingError):
    """The loss or its gradients are NaN or infinite; the weights are still as they were."""


class NaNGuard(pl.Callback):
    """Refuse an optimiser step whose loss or gradients are not finite, naming the images of the step.

    The check comes before the step, so the weights stay finite. With ``16-mixed`` infinite gradients of a
    finite loss are the loss scale's business and no error.

    Args:
        checkpoint: Where the last finite state will be found, for the message.
        skip: So many steps are left out instead, weights and running means staying as they were; the next one
            ends the run.
    """

    def __init__(self, checkpoint: Path | None = None, skip: int = 0) -> None:
        self.checkpoint = checkpoint
        self.skip = skip
        self.skipped: list[str] = []
        self._losses: list[Tensor] = []
        self._sources: deque[str] = deque(maxlen=64)
        self._buffers: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which images the next step learns from, and what they may spoil in passing."""
        if self.skip and not (self._losses and self._buffers):
            self._buffers = [buffer.clone() for buffer in module.buffers()]
        for part in parts_of(batch) if isinstance(batch, Batch | Mapping) else ():
            self._sources.extend(part.sources or [f"index {index}" for index in part.indices])

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the losses that the step is made of."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check losses and gradients together: one wait for the device per step."""
        checks = (
            # Those of before a resume are on the CPU.
            [
                torch.stack([loss.float().to(self._losses[-1].device) for loss in self._losses])
                .isfinite()
                .all()
            ]
            if self._losses
            else []
        )
        if trainer.precision != "16-mixed":
            gradients = [
                local_part(parameter.grad)
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            gradients = [gradient for gradient in gradients if gradient.numel()]  # a share may be empty
            if gradients:
                norms = torch._foreach_norm(gradients, float("inf"))
                checks.append(torch.stack([norm.float() for norm in norms]).isfinite().all())
        finite = bool(torch.stack(checks).all()) if checks else True
        # Every process decides alike, so that none waits for the others.
        finite = bool(trainer.strategy.reduce_boolean_decision(finite, all=True))
        losses, self._losses = [float(loss) for loss in self._losses], []
        sources, self._sources = list(self._sources), deque(maxlen=64)
        if finite:
            return
        everyone = gather_objects((losses, sources))  # the cause may be another process's
        losses = [loss for theirs, _ in everyone for loss in theirs]
        sources = [source for _, theirs in everyone for source in theirs]
        if len(self.skipped) >= self.skip:
            raise NonFiniteLossError(self._message(trainer, losses, sources))
        self._leave_out(trainer, module, optimizer)
        self.skipped.append(
            f"step {trainer.global_step} of epoch {trainer.current_epoch}: {', '.join(sources) or 'unknown'}"
        )
        log.warning(
            "left out %s (loss %s; %d of %d such steps)",
            self.skipped[-1],
            ", ".join(f"{loss:.4g}" for loss in losses),
            len(self.skipped),
            self.skip,
        )

    def _leave_out(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients away: an optimiser passes over parameters without."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for buffer, before in zip(module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """List what was left out."""
        if self.skipped:
            listed = "\n".join(self.skipped)
            log.warning("%d steps were left out, their loss was not finite:\n%s", len(self.skipped), listed)

    def state_dict(self) -> dict[str, Any]:
        """Return what was left out, and what an accumulation that is under way is made of."""
        return {
            "skipped": list(self.skipped),
            "losses": [float(loss) for loss in self._losses],
            "sources": list(self._sources) if self._losses else [],
            "buffers": list(self._buffers) if self._losses else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, and with the accumulation."""
        self.skipped = list(state_dict["skipped"])
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]
        self._sources.extend(state_dict["sources"])
        self._buffers = list(state_dict["buffers"])

    def _message(self, trainer: pl.Trainer, losses: list[float], sources: list[str]) -> str:
        kept = f" The last finite state is in {self.checkpoint}." if self.checkpoint is not None else ""
        return (
            f"the loss or its gradients are not finite at step {trainer.global_step} of epoch "
            f"{trainer.current_epoch}: loss {', '.join(f'{loss:.4g}' for loss in losses)}, images "
            f"{', '.join(sources) or 'unknown'}.{kept} Check these images (pixvox data check), lower "
            "learning_rate (or lengthen scheduler.warmup), use precision=32-true, or leave out some such steps: "
            f"skip_nan_steps={max(5, 2 * self.skip)}"
        )


def state_is_finite(module: torch.nn.Module) -> bool:
    """Tell whether every floating-point weight and buffer is finite."""
    tensors = [
        local_part(tensor) for tensor in module.state_dict().values() if torch.is_floating_point(tensor)
    ]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)

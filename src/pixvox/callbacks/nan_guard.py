"""Stop before weights become NaN."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from pixvox.errors import PixvoxError
from pixvox.structures import Batch


class NonFiniteLossError(PixvoxError):
    """The loss or its gradients are NaN or infinite; the weights are still as they were."""


class NaNGuard(pl.Callback):
    """Refuse an optimiser step whose loss or gradients are not finite, naming the images of the step.

    The check comes before the step, so the weights stay finite. With ``16-mixed`` infinite gradients of a
    finite loss are the loss scale's business and no error.

    Args:
        checkpoint: Where the last finite state will be found, for the message.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self._losses: list[Tensor] = []
        self._sources: deque[str] = deque(maxlen=64)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which images the next step learns from."""
        labelled = batch if isinstance(batch, Batch) else None
        if labelled is not None:
            names = labelled.sources or [f"index {index}" for index in labelled.indices]
            self._sources.extend(names)

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the losses that the step is made of."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check losses and gradients together: one wait for the device per step."""
        checks = (
            [torch.stack([loss.float() for loss in self._losses]).isfinite().all()] if self._losses else []
        )
        if trainer.precision != "16-mixed":
            gradients = [
                parameter.grad
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            if gradients:
                norms = torch._foreach_norm(gradients, float("inf"))
                checks.append(torch.stack([norm.float() for norm in norms]).isfinite().all())
        finite = bool(torch.stack(checks).all()) if checks else True
        # Every process decides alike, so that none waits for the others.
        finite = bool(trainer.strategy.reduce_boolean_decision(finite, all=True))
        losses, self._losses = [float(loss) for loss in self._losses], []
        sources, self._sources = list(self._sources), deque(maxlen=64)
        if not finite:
            raise NonFiniteLossError(self._message(trainer, losses, sources))

    def _message(self, trainer: pl.Trainer, losses: list[float], sources: list[str]) -> str:
        kept = f" The last finite state is in {self.checkpoint}." if self.checkpoint is not None else ""
        return (
            f"the loss or its gradients are not finite at step {trainer.global_step} of epoch "
            f"{trainer.current_epoch}: loss {', '.join(f'{loss:.4g}' for loss in losses)}, images "
            f"{', '.join(sources) or 'unknown'}.{kept} Check these images (pixvox data check), lower "
            "learning_rate (or lengthen scheduler.warmup), or use precision=32-true"
        )


def state_is_finite(module: torch.nn.Module) -> bool:
    """Tell whether every floating-point weight and buffer is finite."""
    tensors = [tensor for tensor in module.state_dict().values() if torch.is_floating_point(tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)

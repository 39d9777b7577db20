"""What a method is given: factories of optimisers and schedulers, and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pixvox.structures import Segmentation

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
"""Takes parameter groups; a partial of a ``torch.optim`` class."""


SchedulerFactory = Callable[..., LRScheduler | Mapping[str, Any]]
"""Takes the optimiser and the length of the run, see ``pixvox.optimizers.schedules.lr_scheduler``."""


@runtime_checkable
class Scores(Protocol):
    """What a method asks of a metric."""

    def update(self, predictions: Sequence[Segmentation], truths: Sequence[Segmentation]) -> None: ...  # noqa: D102
    def compute(self) -> dict[str, float]: ...  # noqa: D102
    def reset(self) -> None: ...  # noqa: D102

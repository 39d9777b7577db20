"""Learning rates by optimiser step: linear warm-up, then cosine, polynomial, step or constant.

Each function takes an optimiser and the number of steps of the whole run and returns a scheduler that is
stepped after every optimiser step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pixvox.errors import ConfigError


def cosine(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final_factor: float = 0.0
) -> LambdaLR:
    """Decay along half a cosine.

    "SGDR: Stochastic Gradient Descent with Warm Restarts" (Loshchilov & Hutter, 2017,
    https://arxiv.org/abs/1608.03983), one cycle.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Linear warm-up: below 1 a share of all steps, else a number of steps.
        final_factor: Share of the peak that is left at the last step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = cosine(optimizer, total_steps=10, warmup=0)
        >>> factor = scheduler.lr_lambdas[0]
        >>> factor(0), round(factor(5), 6), factor(10)
        (1.0, 0.5, 0.0)
    """

    def decay(progress: float) -> float:
        return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return _scheduler(optimizer, total_steps, warmup, decay)


def polynomial(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    power: float = 0.9,
    final_factor: float = 0.0,
) -> LambdaLR:
    """Decay as ``(1 - progress) ** power``, usual in semantic segmentation.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Linear warm-up: below 1 a share of all steps, else a number of steps.
        power: 1 is linear.
        final_factor: Share of the peak that is left at the last step.
    """

    def decay(progress: float) -> float:
        return final_factor + (1.0 - final_factor) * math.pow(1.0 - progress, power)

    return _scheduler(optimizer, total_steps, warmup, decay)


def step(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    milestones: Sequence[float] = (0.7, 0.9),
    factor: float = 0.1,
) -> LambdaLR:
    """Multiply by ``factor`` at each milestone.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Linear warm-up: below 1 a share of all steps, else a number of steps.
        milestones: Shares of the steps after the warm-up, in (0, 1).
        factor: What remains of the learning rate at each milestone.

    Raises:
        ConfigError: If a milestone is not a share.
    """
    if not all(0 < milestone < 1 for milestone in milestones):
        raise ConfigError(
            f"milestones={list(milestones)}: each is a share of the run between 0 and 1, such as [0.7,0.9]"
        )
    return _scheduler(
        optimizer,
        total_steps,
        warmup,
        lambda progress: float(factor ** sum(progress >= milestone for milestone in milestones)),
    )


def constant(optimizer: Optimizer, total_steps: int, warmup: float = 0.05) -> LambdaLR:
    """Stay at the peak after the warm-up.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Linear warm-up: below 1 a share of all steps, else a number of steps.
    """
    return _scheduler(optimizer, total_steps, warmup, lambda progress: 1.0)


def _scheduler(
    optimizer: Optimizer, total_steps: int, warmup: float, decay: Callable[[float], float]
) -> LambdaLR:
    """Join the warm-up and what follows it; ``decay`` maps progress in [0, 1] to a factor."""
    if warmup < 0:
        raise ConfigError(f"warmup={warmup}: it is a share of all steps below 1, or a number of steps")
    warmup_steps = round(total_steps * warmup) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        remaining = max(1, total_steps - warmup_steps)
        return decay(min(1.0, (step - warmup_steps) / remaining))

    return LambdaLR(optimizer, factor)

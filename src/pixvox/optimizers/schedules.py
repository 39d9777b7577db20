"""Learning rates by optimiser step: linear warm-up, then cosine, polynomial, step, one-cycle or constant.

Each function takes an optimiser and the number of steps of the whole run and returns a scheduler that is
stepped after every optimiser step; ``torch_schedule.py`` gives every schedule of torch. A length (``warmup``,
``cooldown``, a milestone) below 1 is a share of the run; from 1 on it counts steps, or epochs with
``unit="epochs"``.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from pixvox.errors import ConfigError

Unit = Literal["steps", "epochs"]
"""What lengths from 1 on count."""

log = logging.getLogger("pixvox")


def cosine(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    final_factor: float = 0.0,
    cooldown: float = 0.0,
    unit: Unit = "steps",
    steps_per_epoch: int | None = None,
) -> LambdaLR:
    """Decay along half a cosine, then keep what is left for the cool-down.

    "SGDR: Stochastic Gradient Descent with Warm Restarts" (Loshchilov & Hutter, 2017,
    https://arxiv.org/abs/1608.03983), one cycle.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Length of the linear warm-up.
        final_factor: Share of the peak that is left at the end.
        cooldown: Length of the end of the run that keeps this share.
        unit: What lengths from 1 on count.
        steps_per_epoch: Optimiser steps of an epoch, for ``unit="epochs"``.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = cosine(optimizer, total_steps=12, warmup=0, cooldown=2)
        >>> factor = scheduler.lr_lambdas[0]
        >>> factor(0), round(factor(5), 6), factor(10), factor(12)
        (1.0, 0.5, 0.0, 0.0)
    """

    def decay(progress: float) -> float:
        return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return _scheduler(optimizer, Length(total_steps, unit, steps_per_epoch), warmup, decay, cooldown)


def polynomial(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    power: float = 0.9,
    final_factor: float = 0.0,
    cooldown: float = 0.0,
    unit: Unit = "steps",
    steps_per_epoch: int | None = None,
) -> LambdaLR:
    """Decay as ``(1 - progress) ** power``, usual in semantic segmentation.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Length of the linear warm-up.
        power: 1 is linear.
        final_factor: Share of the peak that is left at the end.
        cooldown: Length of the end of the run that keeps this share.
        unit: What lengths from 1 on count.
        steps_per_epoch: Optimiser steps of an epoch, for ``unit="epochs"``.
    """

    def decay(progress: float) -> float:
        return final_factor + (1.0 - final_factor) * math.pow(1.0 - progress, power)

    return _scheduler(optimizer, Length(total_steps, unit, steps_per_epoch), warmup, decay, cooldown)


def step(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    milestones: Sequence[float] = (0.7, 0.9),
    factor: float = 0.1,
    unit: Unit = "steps",
    steps_per_epoch: int | None = None,
) -> LambdaLR:
    """Multiply by ``factor`` at each milestone.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Length of the linear warm-up.
        milestones: Places in the run, counted from its start: ``[27, 33]`` with ``unit="epochs"`` is the usual
            recipe of 36 epochs.
        factor: What remains of the learning rate at each milestone.
        unit: What lengths from 1 on count.
        steps_per_epoch: Optimiser steps of an epoch, for ``unit="epochs"``.

    Raises:
        ConfigError: If a milestone is not positive.
    """
    if not all(milestone > 0 for milestone in milestones):
        raise ConfigError(
            f"milestones={list(milestones)}: each is a share of the run below 1, such as [0.7,0.9], or a number "
            "of steps, or of epochs with scheduler.unit=epochs, such as [27,33]"
        )
    length = Length(total_steps, unit, steps_per_epoch)
    places = [length.steps(milestone, "milestones") for milestone in milestones]
    if late := [m for m, place in zip(milestones, places, strict=True) if place >= total_steps]:
        log.warning("scheduler.milestones %s are not reached: the run has %d steps", late, total_steps)
    rise = length.steps(warmup, "warmup")

    def at(now: int) -> float:
        return _rising(now, rise) if now < rise else float(factor ** sum(now >= place for place in places))

    return LambdaLR(optimizer, at)


def constant(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    unit: Unit = "steps",
    steps_per_epoch: int | None = None,
) -> LambdaLR:
    """Stay at the peak after the warm-up.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Length of the linear warm-up.
        unit: What lengths from 1 on count.
        steps_per_epoch: Optimiser steps of an epoch, for ``unit="epochs"``.
    """
    return _scheduler(optimizer, Length(total_steps, unit, steps_per_epoch), warmup, lambda progress: 1.0)


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.3,
    initial_factor: float = 0.04,
    final_factor: float = 4e-6,
    cycle_momentum: bool = True,
    anneal: Literal["cos", "linear"] = "cos",
    unit: Unit = "steps",
    steps_per_epoch: int | None = None,
) -> OneCycle:
    """Rise to the peak and fall far below the start, while momentum falls and rises.

    "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates" (Smith & Topin, 2018,
    https://arxiv.org/abs/1708.07120): torch's ``OneCycleLR`` over the whole run, each group to its own peak.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Optimiser steps of the run.
        warmup: Length of the rise.
        initial_factor: Share of the peak at the first step.
        final_factor: Share of the peak at the last step.
        cycle_momentum: Move momentum (or the first beta) between 0.95 and 0.85 the other way.
        anneal: Shape of rise and fall.
        unit: What lengths from 1 on count.
        steps_per_epoch: Optimiser steps of an epoch, for ``unit="epochs"``.

    Raises:
        ConfigError: If a factor is not positive.
    """
    if initial_factor <= 0 or final_factor <= 0:
        raise ConfigError(
            f"scheduler.initial_factor={initial_factor} and scheduler.final_factor={final_factor} are shares of "
            "the peak above 0"
        )
    rise = Length(total_steps, unit, steps_per_epoch).steps(warmup, "warmup")
    if rise == 1:  # torch counts from the first step to the peak, and divides by it
        rise = 2 if total_steps > 1 else 0
    return OneCycle(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=min(1.0, rise / total_steps),
        anneal_strategy=anneal,
        cycle_momentum=cycle_momentum,
        div_factor=1.0 / initial_factor,
        final_div_factor=initial_factor / final_factor,
    )


class OneCycle(OneCycleLR):
    """Torch's schedule with the length of this run, also when it is resumed from a shorter one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the place from a state, and keep the shape: torch's own would end where the earlier run did."""
        # Torch has no public names for them; everything else of its state is the shape.
        place = ("last_epoch", "_step_count", "_last_lr")
        super().load_state_dict({**self.state_dict(), **{name: state_dict[name] for name in place}})


def lr_scheduler(
    factory: Callable[..., Any], optimizer: Optimizer, total_steps: int, steps_per_epoch: int | None
) -> dict[str, Any]:
    """Build a schedule and say when it is stepped, as Lightning's ``lr_scheduler`` mapping.

    Args:
        factory: Called with the optimiser and, of ``total_steps`` and ``steps_per_epoch``, those that it takes:
            a function of this file, a partial of a class of ``torch.optim.lr_scheduler``, a ``TorchSchedule``.
            It returns a scheduler, stepped after each optimiser step, or such a mapping.
        optimizer: The optimiser.
        total_steps: Optimiser steps of the run.
        steps_per_epoch: Optimiser steps of an epoch, when they are known.

    Example:
        >>> import functools, torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> factory = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=5)
        >>> lr_scheduler(factory, optimizer, 100, 10)["interval"]
        'step'
    """
    takes = inspect.signature(factory).parameters
    known = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    known = {name: value for name, value in known.items() if name not in getattr(factory, "keywords", {})}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        known = {name: value for name, value in known.items() if name in takes}
    built = factory(optimizer, **known)
    return dict(built) if isinstance(built, Mapping) else {"scheduler": built, "interval": "step"}


class Length:
    """Turns the lengths of a schedule into steps.

    Args:
        total_steps: Optimiser steps of the run.
        unit: What lengths from 1 on count.
        steps_per_epoch: Optimiser steps of an epoch.

    Raises:
        ConfigError: If the unit is unknown, or counts epochs whose length is not known.

    Example:
        >>> length = Length(100, "epochs", 10)
        >>> length.steps(0.25), length.steps(3)
        (25, 30)
    """

    def __init__(self, total_steps: int, unit: str = "steps", steps_per_epoch: int | None = None) -> None:
        if unit not in ("steps", "epochs"):
            raise ConfigError(f"scheduler.unit={unit}: it is steps or epochs")
        if unit == "epochs" and steps_per_epoch is None:
            raise ConfigError(
                "scheduler.unit=epochs, but epochs have no known length; use scheduler.unit=steps"
            )
        self.total_steps = total_steps
        self.scale = steps_per_epoch if unit == "epochs" and steps_per_epoch is not None else 1

    def steps(self, length: float, name: str = "warmup") -> int:
        """Return a length in steps.

        Args:
            length: A share of the run below 1, else a number of steps or epochs.
            name: What is as long, for the message.

        Raises:
            ConfigError: If it is negative.
        """
        if length < 0:
            raise ConfigError(
                f"scheduler.{name}={length}: it is a share of the run below 1, or a number of steps or epochs"
            )
        return round(self.total_steps * length) if length < 1 else round(length * self.scale)


def _scheduler(
    optimizer: Optimizer,
    length: Length,
    warmup: float,
    decay: Callable[[float], float],
    cooldown: float = 0.0,
) -> LambdaLR:
    """Join warm-up, decay and cool-down; ``decay`` maps progress in [0, 1] to a factor."""
    rise = length.steps(warmup, "warmup")
    end = length.total_steps - length.steps(cooldown, "cooldown")
    if 0 < end < rise or end <= 0:
        log.warning(
            "scheduler: warm-up and cool-down are longer than the run of %d steps", length.total_steps
        )

    def factor(step: int) -> float:
        if step < rise:
            return _rising(step, rise)
        return decay(min(1.0, (step - rise) / max(1, end - rise)))

    return LambdaLR(optimizer, factor)


def _rising(step: int, warmup: int) -> float:
    return (step + 1) / (warmup + 1)

"""Any schedule of ``torch.optim.lr_scheduler`` by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from pixvox.errors import ConfigError
from pixvox.signatures import nearest

NAMES = tuple(
    name
    for name, item in vars(lr_scheduler).items()
    if inspect.isclass(item)
    and issubclass(item, LRScheduler)
    and item is not LRScheduler
    and not name.startswith("_")
)
"""Every schedule of the installed torch."""

_WHOLE_RUN = {"CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters", "OneCycleLR": "total_steps"}
"""Arguments that are the length of the run unless they are given."""


class TorchSchedule:
    """Build a schedule of torch, stepped after each optimiser step, each epoch, or each validation.

    ``T_max`` of ``CosineAnnealingLR``, ``total_iters`` of ``PolynomialLR`` and ``total_steps`` of ``OneCycleLR``
    are the length of the run unless they are given; ``max_lr`` is the learning rate of each group.

    Args:
        name: Name of the class, such as ``"StepLR"``.
        interval: ``"step"`` or ``"epoch"``: what the class's arguments count.
        frequency: Steps or epochs between two steps of the schedule.
        monitor: For ``ReduceLROnPlateau``: the validation score that it watches (``"val_loss"``, ``"AP50"``); it is
            stepped after each validation, whatever ``interval`` says.
        options: Arguments of the class. ``SequentialLR`` and ``ChainedScheduler`` take ``schedulers`` as a list
            of mappings, each with a ``name`` and its arguments.

    Raises:
        ConfigError: If torch has no such schedule, or it takes no such argument.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = TorchSchedule("CosineAnnealingLR", interval="epoch")
        >>> config = schedule(optimizer, total_steps=40, steps_per_epoch=4)
        >>> config["scheduler"].T_max, config["interval"]
        (10, 'epoch')
    """

    def __init__(
        self,
        name: str,
        interval: Literal["step", "epoch"] = "epoch",
        frequency: int = 1,
        monitor: str | None = None,
        **options: Any,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ConfigError(f"scheduler.interval={interval}: it is step or epoch")
        _check(name, options)
        if (name == "ReduceLROnPlateau") != (monitor is not None):
            raise ConfigError(
                "scheduler.monitor is the validation score that ReduceLROnPlateau watches, such as val_loss; "
                f"with scheduler.name={name} it is {monitor}"
            )
        self.name, self.options = name, options
        self.interval, self.frequency, self.monitor = interval, frequency, monitor

    def __call__(
        self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int | None = None
    ) -> dict[str, Any]:
        """Return the schedule, and when it is stepped, as Lightning's ``lr_scheduler`` mapping."""
        length = total_steps
        if self.interval == "epoch" and steps_per_epoch is not None:
            length = max(1, -(-total_steps // steps_per_epoch))
        built = _build(self.name, self.options, optimizer, max(1, length // self.frequency))
        mapping = {"scheduler": built, "interval": self.interval, "frequency": self.frequency}
        if self.monitor is not None:
            mapping["monitor"] = "val/" + self.monitor.removeprefix("val/").removeprefix("val_")
            # Stepped by PlateauSteps after each validation; Lightning would miss it in epochs without one.
            mapping["reduce_on_plateau"] = False
        return mapping


def _check(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a name or an argument that torch does not know, before anything is trained."""
    if name not in NAMES:
        raise ConfigError(f"torch has no scheduler.name={name}; {nearest(name, NAMES)}")
    parameters = inspect.signature(getattr(lr_scheduler, name)).parameters
    known = [key for key in parameters if key not in ("optimizer", "last_epoch")]
    for key in options:
        if key not in known:
            raise ConfigError(f"scheduler.{key}: {name} takes no {key!r}; {nearest(key, known)}")
    filled = {_WHOLE_RUN.get(name), "max_lr"}
    missing = [
        key
        for key in known
        if parameters[key].default is inspect.Parameter.empty and key not in options and key not in filled
    ]
    if missing:
        raise ConfigError(f"{name} needs {' and '.join(f'scheduler.{key}=...' for key in missing)}")
    for part in _parts(options):
        if "name" not in part:
            raise ConfigError(
                "each of scheduler.schedulers is a mapping with a name: {name:StepLR,step_size:10}"
            )
        _check(part["name"], {key: value for key, value in part.items() if key != "name"})


def _parts(options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    parts = options.get("schedulers", ())
    if isinstance(parts, (str, Mapping)) or not all(isinstance(part, Mapping) for part in parts):
        raise ConfigError(
            "scheduler.schedulers is a list of mappings: [{name:LinearLR},{name:StepLR,step_size:10}]"
        )
    return list(parts)


def _build(name: str, options: Mapping[str, Any], optimizer: Optimizer, length: int) -> Any:
    """Build one schedule; a list of schedules inside it is built first."""
    kind = getattr(lr_scheduler, name)
    arguments = dict(options)
    takes = inspect.signature(kind).parameters
    if name in _WHOLE_RUN:
        arguments.setdefault(_WHOLE_RUN[name], length)
    if "max_lr" in takes:
        arguments.setdefault("max_lr", [group["lr"] for group in optimizer.param_groups])
    if "schedulers" in takes:
        parts = [dict(part) for part in _parts(options)]
        arguments["schedulers"] = [_build(part.pop("name"), part, optimizer, length) for part in parts]
        if name == "ChainedScheduler":
            return kind(arguments["schedulers"])
    try:
        return kind(optimizer, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scheduler.name={name}: {error}") from error

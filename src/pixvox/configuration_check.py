"""Does a configuration say what its receivers take? Values against annotations, targets against trusted packages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from pixvox.errors import ConfigError
from pixvox.signatures import Signature, describe, example, fits, locate, nearest, signature

SHORT_KEYS: dict[str, Any] = {
    "auto": bool,
    "image_size": int | list[int] | None,
    "batch_size": int,
    "learning_rate": float,
    "epochs": int,
    "max_steps": int,
    "num_workers": int,
    "num_labeled_images": int | float,
    "num_unlabeled_images": int | float,
    "class_agnostic": bool,
    "warmup_steps": int,
    "unsup_rampup_steps": int,
    "accumulate_grad_batches": int,
    "fast_dev_run": bool | int,
    "overfit_images": int,
    "profile": bool | int,
    "gradient_checkpointing": bool,
    "precision": Literal["32-true", "bf16-mixed", "16-mixed"],
    "seed": int,
    "deterministic": bool,
    "pretrained": bool | str,
    "weights": str | None,
    "ema_decay": float | None,
    "skip_nan_steps": int,
    "on_out_of_memory": Literal["raise", "halve_batch"],
    "checkpoint_every_n_steps": int | None,
    "keep_checkpoints_every": int | None,
    "on_save_error": Literal["raise", "warn"],
    "resume": bool | str | None,
    "val_every_n_epoch": int,
    "test": bool,
    "best_by": str | None,
    "spatial_dims": int | None,
    "in_channels": int | None,
    "num_classes": int | None,
    "early_stopping.monitor": str | None,
    "early_stopping.patience": int | None,
    "early_stopping.mode": Literal["min", "max"] | None,
}
"""Top-level keys of ``train.yaml`` and the types of their values."""

_LEAST: dict[str, float] = {
    "image_size": 1,
    "batch_size": 1,
    "learning_rate": 0,
    "epochs": -1,
    "max_steps": -1,
    "num_workers": 0,
    "num_labeled_images": -1,
    "num_unlabeled_images": -1,
    "warmup_steps": 0,
    "unsup_rampup_steps": 0,
    "accumulate_grad_batches": 1,
    "fast_dev_run": 0,
    "overfit_images": 0,
    "profile": 0,
    "seed": 0,
    "ema_decay": 0,
    "skip_nan_steps": 0,
    "checkpoint_every_n_steps": 1,
    "keep_checkpoints_every": 1,
    "val_every_n_epoch": 1,
    "early_stopping.patience": 0,
}
"""The lowest value that a short key takes; -1 means all, or without end."""

TRUSTED_PACKAGES = ("pixvox",)
"""Where a ``_target_`` of a configuration that came with a run or a checkpoint may live."""


def check(config: DictConfig) -> None:
    """Check the values of a configuration against what will receive them.

    Raises:
        ConfigError: If a value has the wrong type, or a ``_target_`` takes no such argument.
    """
    for key, annotation in SHORT_KEYS.items():
        if not holds(config, key):
            continue
        value = _value(config, key)
        if not fits(value, annotation):
            raise ConfigError(_wrong(key, value, annotation))
        for number in value if isinstance(value, list) else [value]:
            if number is not None and key in _LEAST and not _LEAST[key] <= number < math.inf:
                raise ConfigError(f"{key}={value}: it takes numbers from {_LEAST[key]:g} up")
        if key in ("epochs", "max_steps") and value == 0:
            raise ConfigError(f"{key}=0 would learn nothing; give a number from 1 up, or -1 for no limit")
    _check_node(config, "")


def _value(config: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {first_line(error)}") from error


def _wrong(key: str, value: Any, annotation: Any, origin: str = "") -> str:
    form = example(annotation)
    if isinstance(value, str) and ("x" in value or "," in value):
        numbers = value.replace("x", ",").strip("()[] ").split(",")
        if all(number.strip().isdigit() for number in numbers) and "[" in form:
            form = "[" + ",".join(number.strip() for number in numbers) + "]"
    said = "null" if value is None else value
    hint = f", for example {key}={form}" if form else ""
    return f"{key}={said}{origin}: it takes {describe(annotation)}{hint}"


def _check_node(node: Any, path: str) -> None:
    """Check a node with a ``_target_`` and everything below it."""
    if not OmegaConf.is_config(node) or node._is_none() or node._is_missing():
        return
    if isinstance(node, ListConfig):
        for i in range(len(node)):
            _check_node(node._get_node(i), f"{path}.{i}")
        return
    takes: Signature | None = None
    if "_target_" in node.keys():  # noqa: SIM118
        takes = signature(locate(node._target_))
    for name in node.keys():  # noqa: SIM118
        key = f"{path}.{name}" if path else str(name)
        if takes is not None and not str(name).startswith("_"):
            _check_argument(node, str(name), key, takes)
        _check_node(node._get_node(name), key)


def _refers_to_missing(node: DictConfig, name: str) -> bool:
    """Tell whether a value, or part of it, is that of a key which the user has yet to give; it is asked for there."""
    try:
        value = OmegaConf.select(node, name)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    except InterpolationToMissingValueError:
        return True
    except OmegaConfBaseException:
        return False
    return False


def _check_argument(node: DictConfig, name: str, key: str, takes: Signature) -> None:
    if name not in takes.annotations:
        if takes.open:
            return
        raise ConfigError(f"{key}: {node._target_} takes no {name!r}; {nearest(name, takes.annotations)}")
    raw = node._get_node(name)
    interpolated = raw is not None and raw._is_interpolation()
    if _refers_to_missing(node, name):
        return
    value = _value(node, name)
    if _holds_target(value) or OmegaConf.is_missing(node, name):
        return
    if value is None and interpolated:  # known only with the data, such as ${num_classes}
        return
    if not fits(value, takes.annotations[name]):
        source = str(raw._value()).strip("${}") if interpolated and raw is not None else key
        shown = source if source in SHORT_KEYS else key
        origin = f" (used as {key})" if shown != key else ""
        raise ConfigError(_wrong(shown, value, takes.annotations[name], origin))


def _holds_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_holds_target, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_target, value))


def check_targets(node: Any, source: str, trusted: Sequence[str] = TRUSTED_PACKAGES) -> None:
    """Refuse targets outside trusted packages, before anything is imported by a configuration from elsewhere.

    Args:
        node: A plain or OmegaConf container.
        source: The file it came from, for the message.
        trusted: Packages whose own classes and functions may be named.

    Raises:
        ConfigError: If a ``_target_`` lies elsewhere, also when it is only reached through a trusted module.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and not _trusted_target(str(target), trusted):
            raise ConfigError(
                f"{source}: the target {target!r} lies outside {', '.join(trusted)} and is not run; "
                "name your own parts on the command line or in a --config-dir instead"
            )
        for value in node.values():
            check_targets(value, source, trusted)
    elif isinstance(node, (list, tuple)):
        for value in node:
            check_targets(value, source, trusted)


def _trusted_target(target: str, trusted: Sequence[str]) -> bool:
    if target.split(".")[0] not in trusted:
        return False
    home = getattr(locate(target), "__module__", None) or ""
    return home.split(".")[0] in trusted


def holds(config: DictConfig, key: str) -> bool:
    """Tell whether a configuration has a dotted key, be its value missing or null."""
    parent_key, _, leaf = key.rpartition(".")
    parent = node_at(config, parent_key)
    if isinstance(parent, ListConfig):
        return leaf.isdigit() and int(leaf) < len(parent)
    return isinstance(parent, DictConfig) and leaf in parent.keys()  # noqa: SIM118 ("in" hides missing values)


def node_at(config: DictConfig, key: str) -> Any:
    """Return the node at a dotted key, None where there is none."""
    node: Any = config
    for part in key.split(".") if key else ():
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        elif isinstance(node, DictConfig) and part in node.keys():  # noqa: SIM118
            node = node._get_node(part)
        else:
            return None
    return node


def first_line(error: Exception) -> str:
    """Return what an error of Hydra, OmegaConf or YAML says first, which is what it is about."""
    first, second, *_ = [*(line for line in str(error).splitlines() if line.strip()), "", ""]
    # Hydra's second line tells how to add a group that has no default to be replaced.
    return f"{first} {second}" if second.startswith("To append") else first or type(error).__name__

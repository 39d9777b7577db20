"""TOML configurations of the semantic segmentation toolkit (pixseg), as overrides of ours.

Each table of such a file has a function here that takes out the keys that it knows; what is left over is an error, so
that nothing is dropped unsaid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pixvox.errors import ConfigError
from pixvox.overrides import override

log = logging.getLogger("pixvox")

_MARKS = ("model", "criterion", "lr_scheduler")
"""Tables that tell such a file from one of ours."""

_DATASETS = {
    "ADE20K": ("ade20k", None),
    "BDD100K": ("bdd100k", None),
    "Cityscapes": ("cityscapes", "cityscapes_background"),
    "Cityscapes{category}": ("cityscapes", "cityscapes_category"),
    "Cityscapes{full}": ("cityscapes", "cityscapes_full"),
    "coco": ("coco_stuff", None),
    "coco{voc}": ("coco_stuff", "coco_voc"),
    "LIP": ("lip", None),
    "Mapillary": ("mapillary", None),
    "SBD": ("sbd", None),
    "VOC": ("voc", None),
}
"""Ours, and its label space where it is not the usual one."""

_LOSSES = {"CrossEntropyLoss": "cross_entropy", "DiceLoss": "generalized_dice", "FocalLoss": "focal"}
_CLASS_WEIGHTS = {
    "none": None, "class_frequency": "inverse", "sqrt_frequency": "sqrt", "log_frequency": "log",
    "effective_number": "effective",
}  # fmt: skip
_OPTIMIZERS = {"SGD": "sgd", "Adam": "adam", "Padam": "padam"}
_SCORES = {
    "miou": "mIoU", "fwiou": "fwIoU", "dice": "mDice", "acc": "acc", "macc": "macc", "loss": "val_loss",
}  # fmt: skip
_NO_AUGMENTATION = {
    "hflip": 0.0, "vflip": 0.0, "blur": 0.0, "color_jitter": [0.0, 0.0, 0.0, 0.0], "perspective": 0.0,
    "rotation_range": 0.0, "scale_range": [1.0, 1.0], "auto_contrast": 0.0,
}  # fmt: skip
"""What the toolkit does where a file says nothing; ours does more."""


def is_toolkit(content: Mapping[str, Any]) -> bool:
    """Tell whether a configuration has the toolkit's tables."""
    return all(isinstance(content.get(name), Mapping) for name in _MARKS) and "model" in content["model"]


def toolkit_overrides(content: Mapping[str, Any], path: Path) -> list[str]:
    """Translate a configuration of the toolkit; what has no counterpart is logged.

    Args:
        content: Its tables.
        path: The file, for messages.

    Raises:
        ConfigError: If a key or a choice is unknown, or cannot be had here.
    """
    tables = _Tables(content, path)
    lines = [
        line
        for translate in (_model, _data, _augmentation, _criterion, _optimizer, _scheduler, _trainer, _log)
        for line in translate(tables)
    ]
    tables.finish()
    return lines


class _Tables:
    """The tables of a file, from which each key is taken once.

    Args:
        content: Tables by name.
        path: The file, for messages.
    """

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self._left = dict(_flat(content))
        self._unused: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        """Take a value out by its dotted key."""
        return self._left.pop(key, default)

    def take_all(self, prefix: str) -> dict[str, Any]:
        """Take out what stands below a key."""
        return {key.removeprefix(f"{prefix}."): self._left.pop(key) for key in self.below(prefix)}

    def below(self, prefix: str) -> list[str]:
        """Return the keys that stand below another and were not taken yet."""
        return [key for key in self._left if key.startswith(f"{prefix}.")]

    def choose(self, key: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
        """Take a value out that is one of ``choices``, and return what it stands for."""
        value = self.take(key, default)
        if value not in choices:
            raise ConfigError(f"{self.path}: {key}={value!r} is none of {', '.join(choices)}")
        return choices[value]

    def leave_out(self, *keys: str) -> None:
        """Take values out that have no counterpart."""
        self._unused += [key for key in keys if self._left.pop(key, None) is not None]

    def finish(self) -> None:
        """Tell what was left out; refuse what was never looked at."""
        if self._left:
            raise ConfigError(f"{self.path}: unknown: {', '.join(sorted(self._left))}")
        if self._unused:
            log.info("%s: without a counterpart, left out: %s", self.path, ", ".join(self._unused))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _model(tables: _Tables) -> Iterator[str]:
    from pixvox.models import split_name

    name, params = tables.take("model.model"), tables.take_all("model.params")
    head, backbone = split_name(str(name))
    yield from (f"head={head}", *backbone)
    state = tables.take("model.state_file")
    if state is not None:
        yield override("weights", state)
    if params.pop("weights", None) is not None:
        raise ConfigError(
            f"{tables.path}: model.params.weights names published files of the toolkit, which are not loaded here; "
            "leave it out, or set model.state_file to a file of pixvox"
        )
    if params.pop("weights_backbone", None) is not None:
        yield "pretrained=true"
    if params.pop("aux_loss", False):
        yield override("head.aux_level", -2)
    params.pop("progress", None)
    yield from (override(f"head.{key}", value) for key, value in params.items())


def _data(tables: _Tables) -> Iterator[str]:
    name, space = tables.choose("data.dataset.dataset", _DATASETS)
    yield f"data={name}"
    if space is not None:
        yield f"data.train.label_space={space}"
    yield "transforms=semantic"
    size = tables.take("data.dataset.pad_crop_size", "none")
    if size == "none":
        yield from ("transforms.train.steps.pad=null", "transforms.train.steps.affine=null")
    else:
        yield override("image_size", size)
    params = tables.take_all("data.dataset.params")
    yield from (override(f"data.train.{key}", value) for key, value in params.items())
    yield override("num_workers", tables.take("data.loader.num_workers", 0))
    tables.leave_out("data.loader.params.drop_last")
    if not tables.take("data.loader.params.shuffle", True):
        raise ConfigError(f"{tables.path}: data.loader.params.shuffle=false: images are always shuffled here")


def _augmentation(tables: _Tables) -> Iterator[str]:
    steps = {**_NO_AUGMENTATION, **tables.take_all("data.augment.params")}
    if steps.get("blur_size", 1) > 1:
        steps["blur"] = 1.0
    if isinstance(steps["rotation_range"], list):
        low, high = steps["rotation_range"]
        if low != -high:
            raise ConfigError(
                f"{tables.path}: rotation_range {[low, high]}: here it is the same to both sides"
            )
        steps["rotation_range"] = high
    jitter = list(steps["color_jitter"])
    steps["color_jitter"] = jitter + [0.0] * (4 - len(jitter))
    yield from (override(f"transforms.{key}", value) for key, value in steps.items())


def _criterion(tables: _Tables) -> Iterator[str]:
    name = tables.choose("criterion.criterion", _LOSSES, "CrossEntropyLoss")
    if name != "cross_entropy":
        yield from (f"+loss={name}", "~head.losses.cross_entropy")
    params = tables.take_all("criterion.params")
    yield from (override(f"head.losses.{name}.{key}", value) for key, value in params.items())
    weights = tables.take("criterion.class_weight", "none")
    if not isinstance(weights, list) and weights not in _CLASS_WEIGHTS:
        raise ConfigError(
            f"{tables.path}: criterion.class_weight={weights!r} is neither a list nor one of "
            f"{', '.join(_CLASS_WEIGHTS)}"
        )
    words = weights if isinstance(weights, list) else _CLASS_WEIGHTS[weights]
    if words is not None and name == "generalized_dice":
        log.info(
            "%s: criterion.class_weight is left out: Generalised Dice weighs classes by itself", tables.path
        )
    elif words is not None:
        yield override(f"head.losses.{name}.class_weights", words)
    weight = tables.take("criterion.aux_weight")
    if weight:
        yield override("head.aux_weight", weight)


def _optimizer(tables: _Tables) -> Iterator[str]:
    yield f"optimizer={tables.choose('optimizer.optimizer', _OPTIMIZERS, 'SGD')}"
    batch = tables.take("data.loader.params.batch_size", 1)
    effective = tables.take("optimizer.effective_batch_size")
    yield override("batch_size", batch)
    if effective is not None:
        if effective < 1 or effective % batch:
            raise ConfigError(
                f"{tables.path}: optimizer.effective_batch_size={effective} is no multiple of the batch size {batch}"
            )
        yield override("accumulate_grad_batches", effective // batch)
    params = tables.take_all("optimizer.params")
    if "lr" in params:
        yield override("learning_rate", params.pop("lr"))
    yield from (override(f"optimizer.{key}", value) for key, value in params.items())


def _scheduler(tables: _Tables) -> Iterator[str]:
    yield "scheduler=torch"
    yield override("scheduler.name", tables.take("lr_scheduler.lr_scheduler"))
    params = tables.take_all("lr_scheduler.params")
    yield from (override(f"scheduler.{key}", value) for key, value in params.items())


def _trainer(tables: _Tables) -> Iterator[str]:
    device = tables.take("trainer.device", "auto")
    yield override("trainer.accelerator", "gpu" if device.startswith("cuda") else device)
    moved: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "trainer.params.num_epochs": ("epochs", int),
        "trainer.params.checkpoint_steps": ("keep_checkpoints_every", int),
        "trainer.params.best_by": ("best_by", lambda rule: _best_by(rule, tables.path)),
        "paths.runs_folder": ("runs_dir", str),
        "paths.checkpoint": ("resume", str),
    }
    for key, (own, convert) in moved.items():
        value = tables.take(key)
        if value is not None:
            yield override(own, convert(value))
    tables.leave_out("trainer.params.num_snapshots")
    tables.leave_out(*tables.below("scaler.params"))


def _best_by(rule: str, path: Path) -> str:
    order, _, score = rule.partition(":")
    if order not in ("max", "min") or score not in _SCORES:
        raise ConfigError(f"{path}: best_by={rule!r}: write max: or min: and one of {', '.join(_SCORES)}")
    return f"{order}:{_SCORES[score]}"


def _log(tables: _Tables) -> Iterator[str]:
    loggers = []
    if tables.take("log.wandb.api_key") is not None:
        log.info("%s: the key of Weights & Biases is not read from files: set WANDB_API_KEY", tables.path)
        loggers.append("wandb")
    project = tables.take("log.wandb.params.project")
    tables.leave_out(
        *(f"log.wandb.{key}" for key in ("run_id", "params.job_type", "params.dir", "params.save_images"))
    )
    if tables.take("log.tensorboard.enabled", False):
        loggers.append("tensorboard")
    tables.leave_out("log.tensorboard.params.parent_dir")
    yield override("logger", loggers or "none") if len(loggers) != 1 else f"logger={loggers[0]}"
    if "wandb" in loggers and project:
        yield override("logger.wandb.project", project)

"""Compose, check and instantiate configurations: Hydra's compose API with messages for people.

``compose("train", ["backbone=resnet18", "learning_rate=1e-3"])`` returns the whole configuration. Short keys
such as ``learning_rate`` stand at the top of ``configs/train.yaml``; the groups refer to them, so each value
is written once. Every value is checked against the annotations of the ``_target_`` that will receive it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pixvox.errors import ConfigError, PixvoxError
from pixvox.signatures import Signature, describe, example, fits, locate, nearest, signature

log = logging.getLogger("pixvox")

CONFIG_FOLDER = Path(__file__).parent / "configs"

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

_ELSEWHERE = {"paradigm": "method, such as method=supervised"}
"""Keys of other tools whose name here is not alike."""

TRUSTED_PACKAGES = ("pixvox",)
"""Where a ``_target_`` of a configuration that came with a run or a checkpoint may live."""


def compose(
    name: str = "train", overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> DictConfig:
    """Compose the configuration ``name`` with Hydra overrides and check it.

    Args:
        name: A file of ``configs/``: ``train``, ``evaluate`` or ``predict``.
        overrides: ``key=value`` in Hydra's grammar: groups (``head=fcn``), short keys (``epochs=20``) and any
            value (``head.mask_size=28``). A parameter that a ``_target_`` takes may be set also when its YAML
            does not list it.
        config_dir: A folder of further configurations, searched before the package's own.

    Raises:
        ConfigError: If a key or choice is unknown, or a value has the wrong type.

    Example:
        >>> compose("train", ["learning_rate=0.01"]).optimizer.lr
        0.01
    """
    composer = _Composer(name, config_dir)
    parsed = [_parse(text) for text in overrides]
    choices = [str(override.input_line) for override in parsed if _is_choice(override, composer)]
    lines = [str(override.input_line) for override in parsed]
    try:
        config = composer.compose([*lines, *_implied(name, parsed)])
    except ConfigError:
        if len(choices) == len(parsed):
            raise
        # Look at what there is before the values are set, to say which key is wrong, or to add it.
        base = composer.compose([line for line in lines if line in choices])
        lines = [
            line if line in choices else _known(override, base)
            for line, override in zip(lines, parsed, strict=True)
        ]
        config = composer.compose([*lines, *_implied(name, parsed)])
    try:
        check(config)
    except ConfigError:
        given = [
            place for override in parsed if override.input_line not in choices for place in _places(override)
        ]
        if not _leave_out_foreign(config, composer, choices, given):
            raise
        check(config)
    return config


def _leave_out_foreign(
    config: DictConfig, composer: _Composer, choices: Sequence[str], given: Collection[str]
) -> list[str]:
    """Remove what other files set for a part that was then replaced: an experiment's channels of its own backbone.

    Such a key is one that the new part does not take, the replaced one did, and neither the file of the new choice nor
    the user has set.

    Args:
        config: What was composed.
        composer: Composes it.
        choices: The choices of parts, such as ``head=fcn``.
        given: Keys that the user set.

    Returns:
        The keys that are removed.
    """
    removed = []
    for line in choices:
        try:
            without = composer.compose([other for other in choices if other != line])
            alone = composer.compose([line])
        except ConfigError:  # a choice that needs another one
            continue
        for group, choice in config.choices.items():
            part, before = _node(config, group), _node(without, group)
            if without.choices.get(group) == choice or not (_is_part(part) and _is_part(before)):
                continue
            takes, took = (signature(locate(node._target_)) for node in (part, before))
            for key in map(str, list(part.keys())):
                place = f"{group}.{key}"
                users = any(name == place or name.startswith(f"{place}.") for name in given)
                foreign = not takes.open and key not in takes.annotations and key in took.annotations
                if foreign and not users and not _holds(alone, place) and not key.startswith("_"):
                    with open_dict(part):
                        del part[key]
                    removed.append(place)
                    log.info(
                        "%s is left out: it was set for another part, and %s takes no such option",
                        place,
                        line,
                    )
    return removed


def _places(override: Override) -> list[str]:
    """Return the keys that an override sets; those of a mapping one by one."""
    key, value = str(override.key_or_group), override.value()
    return [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]


def _is_part(node: Any) -> bool:
    return isinstance(node, DictConfig) and "_target_" in node


class _OwnFolderFirst(SearchPathPlugin):
    """Hydra's way to search the user's folder before ours."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the folder of the composition in progress first."""
        if self.folder is not None:
            search_path.prepend("config-dir", f"file://{self.folder}")


Plugins.instance().register(_OwnFolderFirst)


@contextlib.contextmanager
def _hydra(own: Path | None) -> Iterator[None]:
    """Open Hydra on our folder, after the user's own; leave an application's own Hydra as it was."""
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    _OwnFolderFirst.folder = own
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            yield
    finally:
        _OwnFolderFirst.folder = None
        GlobalHydra.instance().hydra = outer


class _Composer:
    """Hydra's composition over one or two folders.

    Args:
        name: The primary configuration.
        config_dir: The user's folder, searched before ours.
    """

    def __init__(self, name: str, config_dir: str | Path | None) -> None:
        self.name = name
        self.folder = None if config_dir is None else Path(config_dir).absolute()
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: there is no such folder")

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose with overrides; what Hydra says becomes a ``ConfigError`` of one line."""
        try:
            with _hydra(self.folder):
                config = hydra_compose(self.name, overrides=list(overrides), return_hydra_config=True)
        except Exception as error:  # Hydra, OmegaConf and YAML raise their own, unrelated types
            raise ConfigError(_first_line(error)) from error
        with open_dict(config):
            choices = config.pop("hydra").runtime.choices
            config.choices = {
                group: choice
                for group, choice in choices.items()
                if choice is not None and not group.startswith("hydra")
            }
        return config

    def options(self, group: str) -> list[str]:
        """Return the choices of a group; none when there is no such group."""
        with _hydra(self.folder):
            found = GlobalHydra.instance().config_loader().get_group_options(group)
        return list(found)


def _first_line(error: Exception) -> str:
    first, second, *_ = [*(line for line in str(error).splitlines() if line.strip()), "", ""]
    # Hydra's second line tells how to add a group that has no default to be replaced.
    return f"{first} {second}" if second.startswith("To append") else first or type(error).__name__


def _parse(text: str) -> Override:
    """Parse one override; point out lists typed without brackets and words without ``=``."""
    if "=" not in text and not text.startswith("~"):
        hint = f"a dataset is given by --data {text}" if Path(text).exists() else nearest(text, SHORT_KEYS)
        raise ConfigError(f"{text!r} is not an override: write key=value; {hint}")
    try:
        override: Override = OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        key, _, value = text.partition("=")
        raise ConfigError(
            f"{text!r} cannot be read as key=value: {_first_line(error)}. Quote values with special "
            f"characters: '{key}=\"{value}\"'; datasets and files are given by options such as --data"
        ) from error
    if override.is_sweep_override():
        key, _, value = text.partition("=")
        raise ConfigError(f"{text!r} gives {key} several values; a list is written {key}=[{value}]")
    return override


def _is_choice(override: Override, composer: _Composer) -> bool:
    """Tell whether an override chooses from a group; refuse an unknown choice, naming the nearest."""
    group, choice = override.key_or_group, override.value()
    options = composer.options(group)
    if not options or isinstance(choice, dict):
        return False
    listed = ", ".join(options)
    if choice == []:
        raise ConfigError(f"{group}=[] chooses nothing; all: {listed}")
    for name in choice if isinstance(choice, list) else [choice]:
        if isinstance(name, str) and name not in options and "/" not in name:
            raise ConfigError(f"there is no {group}={name}; {nearest(name, options, 4)} (all: {listed})")
    return True


def _known(override: Override, base: DictConfig) -> str:
    """Return an override that Hydra will accept: a parameter missing in the YAML is added, a typo refused."""
    text, key = str(override.input_line), override.key_or_group
    if override.is_add() or override.is_force_add() or override.is_delete():
        return text
    if _holds(base, key):
        return text
    parent = _node(base, key.rpartition(".")[0])
    if isinstance(parent, DictConfig) and "_target_" in parent:
        takes = signature(locate(parent._target_))
        if takes.open or key.rpartition(".")[2] in takes.annotations:
            return "++" + text
    if key in _ELSEWHERE:
        raise ConfigError(f"unknown key {key!r}: here it is {_ELSEWHERE[key]}")
    raise ConfigError(f"unknown key {key!r}; {nearest(key, _all_keys(base))}")


def _implied(name: str, parsed: Sequence[Override]) -> list[str]:
    """A number of steps without a number of epochs means exactly these steps; overfitting has its own defaults."""
    given = {override.key_or_group: override for override in parsed}
    if name != "train":
        return []
    lines = []
    images = given["overfit_images"].value() if "overfit_images" in given else 0
    if isinstance(images, int) and images > 0:
        if not {"epochs", "max_steps"} & given.keys():
            lines += ["max_steps=100", "epochs=-1"]
        if "learning_rate" not in given:
            lines.append("learning_rate=${recommended.overfit_learning_rate}")
    steps = given["max_steps"].value() if "max_steps" in given else 0
    if "epochs" not in given and isinstance(steps, int) and steps > 0:
        lines.append("epochs=-1")
    return lines


def _holds(config: DictConfig, key: str) -> bool:
    parent_key, _, leaf = key.rpartition(".")
    parent = _node(config, parent_key)
    if isinstance(parent, ListConfig):
        return leaf.isdigit() and int(leaf) < len(parent)
    return isinstance(parent, DictConfig) and leaf in parent.keys()  # noqa: SIM118 ("in" hides missing values)


def _node(config: DictConfig, key: str) -> Any:
    node: Any = config
    for part in key.split(".") if key else ():
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        elif isinstance(node, DictConfig) and part in node.keys():  # noqa: SIM118
            node = node._get_node(part)
        else:
            return None
    return node


def _all_keys(config: DictConfig) -> list[str]:
    """Return the dotted keys of a configuration, and what each ``_target_`` takes beyond them."""
    keys: list[str] = []

    def visit(node: Any, prefix: str) -> None:
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
            return
        names = list(node.keys())
        if "_target_" in names:
            with contextlib.suppress(Exception):
                names += [name for name in signature(locate(node._target_)).annotations if name not in names]
        for name in map(str, names):
            if str(name).startswith("_"):
                continue
            keys.append(f"{prefix}{name}")
            if name in node.keys():  # noqa: SIM118
                visit(node._get_node(name), f"{prefix}{name}.")

    visit(config, "")
    return keys


def check(config: DictConfig) -> None:
    """Check the values of a configuration against what will receive them.

    Raises:
        ConfigError: If a value has the wrong type, or a ``_target_`` takes no such argument.
    """
    for key, annotation in SHORT_KEYS.items():
        if not _holds(config, key):
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
        raise ConfigError(f"{key}: {_first_line(error)}") from error


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


def _check_argument(node: DictConfig, name: str, key: str, takes: Signature) -> None:
    if name not in takes.annotations:
        if takes.open:
            return
        raise ConfigError(f"{key}: {node._target_} takes no {name!r}; {nearest(name, takes.annotations)}")
    raw = node._get_node(name)
    interpolated = raw is not None and raw._is_interpolation()
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


def instantiate(node: Any, key: str = "", **arguments: Any) -> Any:
    """Build the object that a node describes; errors are those of the object, not of Hydra.

    Args:
        node: A node with a ``_target_``, or a container of such nodes.
        key: The node's place, for messages.
        arguments: Further keyword arguments for the ``_target_``.

    Raises:
        ConfigError: If the arguments do not suit the ``_target_``.
    """
    from hydra.utils import instantiate as hydra_instantiate

    try:
        return hydra_instantiate(node, **arguments, _convert_="all")
    except OmegaConfBaseException as error:  # a value that must be given, as the files of data=hdf5
        raise ConfigError(f"{key or 'configuration'}: {_first_line(error)}") from error
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None:
            raise ConfigError(f"{key or 'configuration'}: {_first_line(error)}") from error
        if isinstance(cause, PixvoxError) or not isinstance(cause, (TypeError, ValueError)):
            raise cause from None
        raise ConfigError(f"{key or 'configuration'}: {cause}") from cause


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain types, all references replaced by their values.

    Raises:
        ConfigError: If a reference leads nowhere, or round in a circle.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(_first_line(error)) from error
    if not isinstance(container, dict):
        raise ConfigError(f"a configuration is a mapping, got {type(container).__name__}")
    return {str(key): value for key, value in container.items()}


def data_overrides(data: str | Path, others: Sequence[str] = ()) -> list[str]:
    """Return the overrides for a dataset given as a path or as the name of a configuration.

    Args:
        data: The path or name.
        others: The overrides that it joins.

    Raises:
        ConfigError: If it is neither, or ``others`` choose data too.
    """
    rival = next((text for text in others if text.startswith(("data=", "data.path="))), None)
    if rival is not None:
        raise ConfigError(f"--data {data} and {rival} both choose the data; leave one out")
    path = Path(data)
    if path.exists():
        return ["data=folder", override("data.path", str(path.absolute()))]
    if isinstance(data, Path) or len(path.parts) > 1 or path.suffix:
        raise ConfigError(
            f"there is no dataset at {data}; --data takes a folder or file, data=NAME a configuration"
        )
    return [f"data={data}"]


def override(key: str, value: Any) -> str:
    """Write a value in Hydra's grammar.

    Example:
        >>> override("image_size", [256, 320]), override("name", "a=b, c")
        ('image_size=[256,320]', "name='a=b, c'")
    """
    return f"{key}={_grammar(value)}"


def _grammar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_grammar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_grammar, value)) + "]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z_][\w-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    # Backslashes count only before a quote, also before the closing one.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def overrides_from(options: Mapping[str, Any]) -> list[str]:
    """Write keyword arguments as overrides; a mapping sets several values below its key.

    Example:
        >>> overrides_from({"head": "fcn", "backbone": {"blocks": 2}})
        ['head=fcn', 'backbone.blocks=2']
    """
    lines: list[str] = []
    for key, value in options.items():
        if isinstance(value, Mapping):
            lines += [override(f"{key}.{name}", item) for name, item in value.items()]
        else:
            lines.append(override(key, value))
    return lines

"""Compose, check and instantiate configurations: Hydra's compose API with messages for people.

``compose("train", ["backbone=resnet18", "learning_rate=1e-3"])`` returns the whole configuration. Short keys
such as ``learning_rate`` stand at the top of ``configs/train.yaml``; the groups refer to them, so each value
is written once. Every value is checked against the annotations of the ``_target_`` that will receive it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pixvox.configuration_check import SHORT_KEYS, check, first_line, holds, node_at
from pixvox.errors import ConfigError, PixvoxError
from pixvox.signatures import locate, nearest, signature

log = logging.getLogger("pixvox")

CONFIG_FOLDER = Path(__file__).parent / "configs"

_ELSEWHERE = {"paradigm": "method, such as method=supervised"}
"""Keys of other tools whose name here is not alike."""


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
            part, before = node_at(config, group), node_at(without, group)
            if without.choices.get(group) == choice or not (_is_part(part) and _is_part(before)):
                continue
            takes, took = (signature(locate(node._target_)) for node in (part, before))
            for key in map(str, list(part.keys())):
                place = f"{group}.{key}"
                users = any(name == place or name.startswith(f"{place}.") for name in given)
                foreign = not takes.open and key not in takes.annotations and key in took.annotations
                if foreign and not users and not holds(alone, place) and not key.startswith("_"):
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
        if self.folder is not None:  # its files may change from one time to the next
            return _read(self.name, tuple(overrides), self.folder)
        return _read_once(self.name, tuple(overrides)).copy()

    def options(self, group: str) -> list[str]:
        """Return the choices of a group; none when there is no such group."""
        return _options(group, self.folder) if self.folder is not None else _options_once(group)


def _read(name: str, overrides: tuple[str, ...], own: Path | None = None) -> DictConfig:
    """Let Hydra read and compose the files of a configuration."""
    try:
        with _hydra(own):
            config = hydra_compose(name, overrides=list(overrides), return_hydra_config=True)
    except Exception as error:  # Hydra, OmegaConf and YAML raise their own, unrelated types
        raise ConfigError(first_line(error)) from error
    with open_dict(config):
        choices = config.pop("hydra").runtime.choices
        config.choices = {
            group: choice
            for group, choice in choices.items()
            if choice is not None and not group.startswith("hydra")
        }
    return config


def _options(group: str, own: Path | None = None) -> list[str]:
    with _hydra(own):
        return list(GlobalHydra.instance().config_loader().get_group_options(group))


# Hydra parses two dozen files in Python each time; ours stay as they are while a program runs.
_read_once = functools.lru_cache(256)(_read)
_options_once = functools.cache(_options)


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
            f"{text!r} cannot be read as key=value: {first_line(error)}. Quote values with special "
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
    if holds(base, key):
        return text
    parent = node_at(base, key.rpartition(".")[0])
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
        raise ConfigError(f"{key or 'configuration'}: {first_line(error)}") from error
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None:
            raise ConfigError(f"{key or 'configuration'}: {first_line(error)}") from error
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
        raise ConfigError(first_line(error)) from error
    if not isinstance(container, dict):
        raise ConfigError(f"a configuration is a mapping, got {type(container).__name__}")
    return {str(key): value for key, value in container.items()}

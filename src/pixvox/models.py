"""Build models by name, and list the names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pixvox.configuration import CONFIG_FOLDER, compose
from pixvox.errors import ConfigError
from pixvox.overrides import override
from pixvox.segmenter import PARTS, Segmenter
from pixvox.signatures import locate, nearest


def create_model(
    head: str = "maskrcnn",
    backbone: str | None = None,
    num_classes: int = 1,
    spatial_dims: int = 2,
    in_channels: int = 3,
    pretrained: bool | str = False,
    neck: str | None = None,
    normalizer: str = "percentile",
    class_names: Sequence[str] = (),
    config_dir: str | Path | None = None,
    **overrides: Any,
) -> Segmenter:
    """Build a model from the names of its parts.

    Args:
        head: A name of ``list_heads()``; or of head and backbone together, such as ``"fcn_resnet34"``.
        backbone: A name of ``list_backbones()``; by default the one that the head's configuration names, else
            ``"resnet50"``.
        num_classes: Classes of the data (for instance heads without a background).
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        pretrained: Load published weights of the backbone, or those of a file or run folder at this path.
        neck: Overrides the neck that the head's configuration names.
        normalizer: ``"percentile"`` of each image, or ``"imagenet"`` for frozen pretrained backbones.
        class_names: Names by class index.
        config_dir: A folder with configurations of further parts.
        overrides: Arguments of the head, such as ``detections_per_image=100``; with a double underscore
            those of another part, such as ``backbone__channels=[16, 32]``.

    Raises:
        ConfigError: If a name or an argument is unknown, or the parts do not fit together.

    Example:
        >>> model = create_model(head="fcn", backbone="simple", num_classes=2, spatial_dims=3, in_channels=1)
        >>> model.task, model.spatial_dims
        ('semantic', 3)
    """
    head, named = split_name(head)
    if named and backbone:
        raise ConfigError(
            f"the name ends with {named[0]}, but backbone={backbone} is given too; leave one of them out"
        )
    chosen = [f"head={head}", *named]
    chosen += [f"backbone={backbone}"] if backbone else []
    chosen += [f"neck={neck}"] if neck else []
    chosen += [f"normalizer={normalizer}"]
    plain = {
        "num_classes": num_classes, "spatial_dims": spatial_dims, "in_channels": in_channels,
        "pretrained": pretrained,
    }  # fmt: skip
    chosen += [f"{key}={value}" for key, value in plain.items()]
    chosen += [override(_place(key), value) for key, value in overrides.items()]
    return model_of(chosen, class_names, config_dir)


def model_of(
    overrides: Sequence[str], class_names: Sequence[str] = (), config_dir: str | Path | None = None
) -> Segmenter:
    """Build a model from overrides, such as ``["head=fcn", "backbone=simple", "num_classes=2"]``.

    Args:
        overrides: Of the configuration of a model alone.
        class_names: Names by class index.
        config_dir: A folder with configurations of further parts.

    Raises:
        ConfigError: If a key or a value is wrong, or the parts do not fit together.
    """
    config = compose("model", list(overrides), config_dir)
    model_config = {part: OmegaConf.to_container(config[part], resolve=True) for part in PARTS}
    return Segmenter.from_config({**model_config, "class_names": list(class_names)})


def split_name(name: str) -> tuple[str, list[str]]:
    """Split a name such as torchvision's ``deeplabv3_mobilenet_v3_large``.

    Args:
        name: Of a head; or of a head, ``_``, and a backbone, to whose name a variant may be added.

    Returns:
        The head, and the overrides that choose the backbone: none for the name of a head alone.

    Raises:
        ConfigError: If what comes behind a head is no backbone.

    Example:
        >>> split_name("fcn"), split_name("upernet_swin_tiny")
        (('fcn', []), ('upernet', ['backbone=swin', 'backbone.variant=tiny']))
    """
    heads = list_heads()
    head = max((known for known in heads if name.startswith(f"{known}_")), key=len, default=None)
    if name in heads or head is None:
        return name, []
    rest = name.removeprefix(f"{head}_")
    backbones = list_backbones()
    if rest in backbones:
        return head, [f"backbone={rest}"]
    for family in sorted(backbones, key=len, reverse=True):
        config: Any = OmegaConf.load(CONFIG_FOLDER / "backbone" / f"{family}.yaml")
        if rest.startswith(family) and "variant" in config.backbone:
            variant = rest.removeprefix(family).removeprefix("_")
            return head, [f"backbone={family}", override("backbone.variant", variant)]
    raise ConfigError(
        f"{name!r}: {head} is a head, but there is no backbone {rest!r}; {nearest(rest, backbones)}"
    )


def _place(key: str) -> str:
    """Return where a keyword argument belongs: in the head, or the part before its double underscore."""
    part, _, name = key.partition("__")
    return f"{part}.{name}" if name and part in PARTS else f"head.{key}"


def list_backbones(spatial_dims: int | None = None) -> list[str]:
    """Return the names of all backbones, or of those that exist in ``spatial_dims``."""
    return [name for name in _choices("backbone") if _exists("backbone", name, spatial_dims)]


def list_heads(task: str | None = None, spatial_dims: int | None = None) -> list[str]:
    """Return the names of all heads, or of those for a task (``"instance"``, ``"semantic"``) and dimension.

    Raises:
        ConfigError: If there is no such task.
    """
    if task not in (None, "instance", "semantic", "panoptic"):
        raise ConfigError(f"task must be 'instance', 'semantic' or 'panoptic', got {task!r}")
    return [
        name
        for name in _choices("head")
        if _exists("head", name, spatial_dims)
        and (task is None or task in part_class("head", name).known_tasks())
    ]


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


@cache
def part_class(group: str, name: str) -> Any:
    """Return the class that a configuration of a group names."""
    config: Any = OmegaConf.load(CONFIG_FOLDER / group / f"{name}.yaml")
    node = config.get(group, config)
    return locate(node["_target_"])


def _exists(group: str, name: str, spatial_dims: int | None) -> bool:
    return spatial_dims is None or spatial_dims in getattr(part_class(group, name), "supported_dims", (2, 3))

"""``auto=true``: read the fingerprint of the data and let every part suggest its options.

Suggestions are overrides that stand before the user's own, so whatever the user says wins. Each part of the model is
asked about itself; what one answers is composed before the next is asked, because anchors need strides and strides
need the spacing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from pixvox.assembly import HEADS, check_task, complete
from pixvox.configuration import CONFIG_FOLDER, compose, instantiate, resolved
from pixvox.data.suggestions import (
    Budget,
    StepMemory,
    Suggestion,
    notes,
    suggest_batch,
    suggest_reading,
    suggest_size,
)
from pixvox.data.transforms.crop import axis_lengths
from pixvox.errors import ConfigError
from pixvox.overrides import data_overrides, override
from pixvox.signatures import locate
from pixvox.training.class_weights import leave_words_out

if TYPE_CHECKING:
    from pixvox.data.datamodule import DataModule
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.metadata import Metadata
    from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")

FILE_NAME = "suggestions.json"


@dataclass(frozen=True)
class Suggestions:
    """What was read of the data, and what follows for the configuration.

    Args:
        fingerprint: The facts, as plain types.
        suggestions: Each value with its reason.
        given: Keys that the user has set, where the suggestion was left out.
        notes: What is worth knowing but has no value to set.
    """

    fingerprint: dict[str, Any]
    suggestions: list[Suggestion]
    given: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def overrides(self) -> list[str]:
        """The suggestions as overrides."""
        return [_line(suggestion) for suggestion in self.suggestions]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {**asdict(self), "overrides": self.overrides}

    def write(self, run: RunFolder) -> None:
        """Log the suggestions and write them into a run's folder; a resumed run keeps the file it has."""
        for line in str(self).splitlines():
            log.info("auto: %s", line)
        if not (run.path / FILE_NAME).exists():
            run.write_json(run.path / FILE_NAME, self.to_dict())

    @classmethod
    def read(cls, run: RunFolder) -> Suggestions:
        """Return the suggestions that a run was begun with.

        Raises:
            ConfigError: If the folder holds none.
        """
        path = run.path / FILE_NAME
        try:
            content = json.loads(path.read_text())
            listed = [Suggestion(**entry) for entry in content["suggestions"]]
            return cls(content["fingerprint"], listed, content["given"], content["notes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}): without it this run, begun with auto=true, cannot be resumed"
            ) from error

    def __str__(self) -> str:
        lines = []
        for suggestion in self.suggestions:
            lines.append(f"{suggestion.key}={_shown(suggestion.value)}")
            lines += [f"    read  {suggestion.read}", f"    why   {suggestion.why}"]
            lines += [f"    from  {suggestion.source}"] if suggestion.source else []
        if self.given:
            lines.append(f"left as you have set them: {', '.join(self.given)}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def suggest_for_dataset(
    path: str | Path, options: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Suggestions:
    """Return suggestions for a dataset on disk.

    Args:
        path: The dataset.
        options: Those of ``open_dataset``.
        overrides: Of the training, such as ``["backbone=simple"]``.

    Raises:
        ConfigError: If an override is wrong.
        DataError: If the data cannot be read.
    """
    lines = [override(f"data.options.{key}", value) for key, value in (options or {}).items()]
    return suggest([*data_overrides(path, overrides), *lines, *overrides])


def suggestions_of(
    run: RunFolder | None, overrides: Sequence[str], config_dir: str | Path | None
) -> Suggestions:
    """Return the suggestions for a new run, or those of the run that is resumed: data may have grown since."""
    if run is not None and (run.path / FILE_NAME).exists():
        return Suggestions.read(run)
    return suggest(overrides, config_dir)


def suggest(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Suggestions:
    """Read the data that a configuration names and derive options for every part.

    Args:
        overrides: The user's own overrides, such as ``["data=folder", "data.path=cells/", "backbone=simple"]``.
        config_dir: Folder of further configurations.

    Raises:
        ConfigError: If the configuration is wrong.
        DataError: If the data cannot be read.
    """
    from pixvox.assembly import build_datamodule
    from pixvox.data.fingerprint import read_fingerprint
    from pixvox.training.memory import available_memory

    plan = _Plan(overrides, config_dir)
    datamodule = build_datamodule(plan.config)
    plan.know(datamodule.metadata)
    facts = read_fingerprint(datamodule.train, seed=int(plan.config.seed), resample=datamodule.resample)
    log.info("fingerprint of %d images in %.0f s", len(facts.image_sizes), facts.seconds)
    head = HEADS.get(facts.metadata.task)
    if head is not None and facts.metadata.task not in plan.part("head").known_tasks():
        if "head" in plan.given:
            check_task(plan.part("head").task, facts.metadata)
        read = f"the data are labelled for {facts.metadata.task} segmentation"
        plan.take([Suggestion("head", head, read, "a head for that task")])
    plan.take(suggest_reading(facts, plan.percentiles(), plan.adam_from_scratch()))
    plan.take(plan.part("backbone").suggest(facts, plan.options("backbone")), "backbone")
    with torch.random.fork_rng(
        devices=[]
    ):  # what is built here must not move the state of the training to come
        _suggest_for_model(plan, facts, datamodule, available_memory())
    return Suggestions(facts.to_dict(), plan.suggestions, plan.kept, notes(facts))


def _suggest_for_model(plan: _Plan, facts: Fingerprint, datamodule: DataModule, budget: Budget) -> None:
    """Ask the parts that need the strides of those before them; then choose the batch."""
    backbone = instantiate(_without_weights(plan.config.backbone), "backbone")
    whole_pictures = plan.config.choices.get("transforms") == "fit"
    size, factor = suggest_size(facts, backbone.size_divisor, budget, whole_pictures)
    plan.take([size])
    seen = facts.resized(factor)
    plan.take(plan.part("neck").suggest(seen, plan.options("neck"), backbone.strides), "neck")
    neck = instantiate(plan.config.neck, "neck")(in_channels=backbone.channels, strides=backbone.strides)
    patch = axis_lengths(plan.value("image_size"), facts.spatial_dims)
    plan.take(plan.part("head").suggest(seen, plan.options("head"), neck.strides, patch), "head")
    plan.take([suggest_batch(facts, patch, budget, _measured(plan.config, datamodule, patch))])


class _Plan:
    """A configuration that grows by suggestions, under the user's overrides.

    Args:
        overrides: The user's own.
        config_dir: Folder of further configurations.
    """

    def __init__(self, overrides: Sequence[str], config_dir: str | Path | None) -> None:
        self.overrides = list(overrides)
        self.config_dir = config_dir
        self.suggestions: list[Suggestion] = []
        self.kept: list[str] = []
        self.metadata: Metadata | None = None
        self.config = compose("train", self.overrides, config_dir)
        self.given = _given(self.overrides) | _given_by_experiment(self.config, config_dir)

    def know(self, metadata: Metadata) -> None:
        """Fill in what only the data tell, now and after every composition."""
        self.metadata = metadata
        complete(self.config, metadata)

    def take(self, suggestions: Sequence[Suggestion], group: str = "") -> None:
        """Add what the user has not decided, and compose again."""
        for suggestion in suggestions:
            named = replace(suggestion, key=f"{group}.{suggestion.key}" if group else suggestion.key)
            if any(_same_place(named.key, key) for key in self.given):
                self.kept.append(named.key)
            else:
                self.suggestions.append(named)
        lines = [_line(suggestion) for suggestion in self.suggestions]
        self.config = compose("train", [*lines, *self.overrides], self.config_dir)
        if self.metadata is not None:
            complete(self.config, self.metadata)

    def part(self, group: str) -> Any:
        """Return the class that the configuration names for a part."""
        return locate(self.config[group]._target_)

    def options(self, group: str) -> dict[str, Any]:
        """Return the options of a part as they stand."""
        options: dict[str, Any] = resolved(self.config)[group]
        return options

    def value(self, key: str) -> Any:
        """Return a value of the configuration as plain types."""
        value = OmegaConf.select(self.config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    def percentiles(self) -> list[float] | None:
        """Return the percentiles that normalisation uses, when the data have such an option."""
        percentiles: list[float] | None = self.value("data.options.percentiles")
        return percentiles

    def adam_from_scratch(self) -> bool:
        """Tell whether training starts without weights, with an optimiser of Adam's kind."""
        return not self.config.pretrained and "adam" in str(self.value("optimizer._target_")).lower()


def _measured(config: DictConfig, datamodule: DataModule, size: Sequence[int]) -> StepMemory | None:
    """Measure a step on one real image; None when it does not fit at all."""
    from pixvox.assembly import build_segmenter
    from pixvox.data.datamodule import DataModule
    from pixvox.training.memory import measure_step

    small = config.copy()
    with open_dict(small):
        small.backbone = _without_weights(config.backbone)
    leave_words_out(small)
    try:
        segmenter = build_segmenter(small, datamodule.metadata)
        one = DataModule(
            datamodule.train,
            train_transforms=instantiate(config.transforms.train, "transforms")
            if config.transforms.train
            else None,
            spacing=OmegaConf.select(config, "data.spacing"),
            image_size=list(size),
            batch_size=1,
            size_divisor=segmenter.size_divisor,
            seed=int(config.seed),
            on_bad_sample="skip",
        )
        step = measure_step(segmenter, next(iter(one.train_dataloader())), config.precision)
    except (MemoryError, torch.OutOfMemoryError):
        log.warning("a step with one image of %s does not fit into memory", list(size))
        return None
    views = locate(config.method._target_).strong_views
    if not views:
        return step
    how = f"{step.how}; beside each image {views} of one without labels"
    return replace(step, per_image=(1 + views) * step.per_image, how=how)


def _without_weights(backbone: DictConfig) -> DictConfig:
    """Return the configuration of a backbone without published weights: its shape is the same."""
    plain = DictConfig(OmegaConf.to_container(backbone, resolve=True))
    if "pretrained" in plain:
        plain.pretrained = False
    return plain


def _given(overrides: Sequence[str]) -> set[str]:
    return {line.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".") for line in overrides}


def _given_by_experiment(config: DictConfig, config_dir: str | Path | None) -> set[str]:
    """Return the keys that the chosen experiment sets: they are the user's choice, too."""
    name = config.choices.get("experiment")
    folders = [folder for folder in (config_dir, CONFIG_FOLDER) if folder is not None]
    files = (Path(folder) / "experiment" / f"{name}.yaml" for folder in folders)
    file = next((file for file in files if file.is_file()), None)
    if name is None or file is None:
        return set()
    content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(content, dict):
        return set()
    defaults = content.pop("defaults", None) or []
    groups = {
        str(key).removeprefix("override ").lstrip("/")
        for entry in defaults
        if isinstance(entry, dict)
        for key in entry
    }
    # What stands under "recommended" are the values of short keys.
    return {key.removeprefix("recommended.") for key in _leaves(content)} | groups - {
        "backbone",
        "neck",
        "head",
    }


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _same_place(key: str, other: str) -> bool:
    return key == other or (key.startswith(other + ".") and "." in other) or other.startswith(key + ".")


def _line(suggestion: Suggestion) -> str:
    # A mapping is a part of its own, which the YAML need not list.
    return ("++" if isinstance(suggestion.value, Mapping) else "") + override(
        suggestion.key, suggestion.value
    )


def _shown(value: Any) -> str:
    return override("", value)[1:]

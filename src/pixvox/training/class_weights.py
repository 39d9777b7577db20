"""Words for class weights in a configuration, which become numbers once the data are known."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from pixvox.data.class_weights import WEIGHTINGS, class_weights, count_pixels
from pixvox.distributed.launch import from_first
from pixvox.errors import ConfigError

if TYPE_CHECKING:
    from pixvox.data.datamodule import DataModule
    from pixvox.data.metadata import Metadata
    from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")

PIXELS_FILE = "class_pixels.json"
"""What was counted, in the folder of the run: a resumed run does not count again."""

_KEY = "class_weights"


def resolve_class_weights(
    config: DictConfig, datamodule: DataModule, run: RunFolder | None = None
) -> dict[str, Any] | None:
    """Replace words such as ``class_weights=inverse`` by numbers; check the lengths of lists.

    Args:
        config: A complete configuration, which is changed.
        datamodule: Its labelled training images are counted.
        run: The run that is resumed.

    Returns:
        What was counted, to be kept with the run; None when there is no such word.

    Raises:
        ConfigError: If a list has not one number per class, or the data have no classes of pixels.
        DataError: If the data cannot be read.
    """
    metadata = datamodule.metadata
    words: list[tuple[str, DictConfig]] = []
    for place, node in _weighted(config.head, "head"):
        if isinstance(node[_KEY], str):
            words.append((place, node))
        else:
            _check_length(place, node[_KEY], metadata)
    if not words:
        return None
    if metadata.task != "semantic":
        place, node = words[0]
        raise ConfigError(
            f"{place}={node[_KEY]} counts the pixels of classes, but {metadata.name or 'the dataset'} is labelled "
            f"for {metadata.task} segmentation"
        )
    pixels = from_first(partial(_pixels, datamodule, run))
    for place, node in words:
        try:
            node[_KEY] = class_weights(pixels, node[_KEY])
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from error
        shown = ", ".join(
            f"{name} {weight:.3g}" for name, weight in zip(metadata.class_names, node[_KEY], strict=True)
        )
        log.info("%s: %s", place, shown)
    return {"class_names": list(metadata.class_names), "pixels": pixels}


def leave_words_out(config: DictConfig) -> None:
    """Remove words for class weights from a configuration whose model is built to be measured, not to learn."""
    for _, node in _weighted(config.head, "head"):
        if node[_KEY] in WEIGHTINGS:
            node[_KEY] = None


def _weighted(node: Any, place: str) -> Iterator[tuple[str, DictConfig]]:
    """Go through the places of class weights below a node that are set."""
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from _weighted(node[index], f"{place}.{index}")
    if not isinstance(node, DictConfig):
        return
    for name in map(str, node):
        if name == _KEY and "_target_" in node:
            if node[name] is not None:
                yield f"{place}.{name}", node
        elif OmegaConf.is_config(node._get_node(name)):
            yield from _weighted(node._get_node(name), f"{place}.{name}")


def _check_length(place: str, weights: Any, metadata: Metadata) -> None:
    if len(weights) != metadata.num_classes:
        raise ConfigError(
            f"{place} has {len(weights)} numbers, {metadata.name or 'the dataset'} has {metadata.num_classes} classes: "
            f"give one per class in this order: {', '.join(metadata.class_names)}"
        )


def _pixels(datamodule: DataModule, run: RunFolder | None) -> list[int]:
    """Return the pixels of each class: as the resumed run has counted them, else counted now."""
    if run is not None:
        try:
            kept = json.loads((run.path / PIXELS_FILE).read_text())
            if kept["class_names"] == list(datamodule.metadata.class_names):
                return [int(count) for count in kept["pixels"]]
        except (OSError, ValueError, KeyError, TypeError):
            log.info("class weights: the run has not counted yet")
    return count_pixels(datamodule.train, datamodule.num_workers, datamodule.on_bad_sample == "skip")

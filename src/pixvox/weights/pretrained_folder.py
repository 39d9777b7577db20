"""A model as a folder that others can read and use: weights, configuration and a card that describes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixvox.files import whole_file
from pixvox.version import __version__
from pixvox.weights.checkpoint import model_record, save_safetensors

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

WEIGHTS, RECORD, CARD = "model.safetensors", "pixvox.json", "README.md"


def save_folder(
    model: Segmenter, folder: str | Path, metrics: Mapping[str, float] | None = None, licence: str = "unknown"
) -> Path:
    """Write ``model.safetensors``, ``pixvox.json`` and a model card; ``pixvox.load(folder)`` reads them.

    The weights hold the configuration too, so that the file alone is enough.

    Args:
        model: A model that has a configuration.
        folder: Made if it does not exist; files of these names are replaced.
        metrics: Scores to tell in the card, by name.
        licence: Of the weights, as the hub names it: that of their data and of the weights they started from decide.

    Raises:
        ConfigError: If the model was composed of objects, so that there is no configuration to store.
    """
    record = model_record(model)
    scores = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    save_safetensors(model, place / WEIGHTS)
    with whole_file(place / RECORD) as part:
        part.write_text(json.dumps({**record, "metrics": scores}, indent=2) + "\n")
    with whole_file(place / CARD) as part:
        part.write_text(card(model, scores, licence))
    return place


def card(model: Segmenter, metrics: Mapping[str, float], licence: str) -> str:
    """Return the model card, in Markdown with the hub's header."""
    axes = "images" if model.spatial_dims == 2 else "volumes"
    config = model.config
    classes = ", ".join(model.class_names) or f"{model.num_classes}, without names"
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    inference = config.get("inference") or {}
    title = f"{model.task.capitalize()} segmentation of {axes}"
    facts = {
        "classes": classes,
        "channels": model.in_channels,
        "backbone": _part(config["backbone"]),
        "neck": _part(config["neck"]),
        "head": _part(config["head"]),
        "parameters": f"{parameters:.1f} million",
        "normalisation": _part(config["normalizer"]),
        "size": ", ".join(f"{key} {value}" for key, value in inference.items()) or "as it is",
    }
    lines = [
        "---", "library_name: pixvox", "pipeline_tag: image-segmentation", f"license: {licence}", "---", "",
        f"# {title}", "", "| | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()), "",
        "```python", "import pixvox", "", 'model = pixvox.load("path/of/this/folder")',
        'model.predict("image.png").save("out/")', "```", "",
    ]  # fmt: skip
    if metrics:
        lines += ["| metric | value |", "|---|---:|", *(f"| {k} | {v:.4g} |" for k, v in metrics.items()), ""]
    lines.append(
        f"Written by pixvox {__version__}. Weights alone: nothing in this folder is executed when it is loaded."
    )
    return "\n".join(lines) + "\n"


def _part(config: Mapping[str, Any]) -> str:
    """Return the class of a part and the options that tell it from others of its class."""
    name = str(config.get("_target_", "")).rsplit(".", 1)[-1]
    told = {
        key: config[key] for key in ("name", "variant", "channels", "depths") if config.get(key) is not None
    }
    return name + (f" ({', '.join(f'{key} {value}' for key, value in told.items())})" if told else "")

"""pixvox segments pixels and voxels: instance and semantic, 2-D and 3-D, through one code path.

The flow, in the words of the folders::

    data -> backbone -> neck -> head -> loss | post-processing -> metrics -> visualization

Example:
    >>> import pixvox
    >>> model = pixvox.create_model(head="fcn", backbone="simple", num_classes=2)
    >>> model.task
    'semantic'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pixvox.version import __version__

if TYPE_CHECKING:
    from pixvox import ops
    from pixvox.data.volumes.open import open_volume
    from pixvox.errors import ConfigError, DataError, PixvoxError, WeightsError
    from pixvox.models import create_model, list_backbones, list_heads
    from pixvox.segmenter import Segmenter
    from pixvox.structures import Batch, Features, Geometry, Instances, Masks, Segmentation
    from pixvox.training.train import train
    from pixvox.weights.loading import load

_HOMES = {
    "ConfigError": "errors", "DataError": "errors", "PixvoxError": "errors", "WeightsError": "errors",
    "create_model": "models", "list_backbones": "models", "list_heads": "models",
    "Segmenter": "segmenter",
    "Batch": "structures", "Features": "structures", "Geometry": "structures", "Instances": "structures",
    "Masks": "structures", "Segmentation": "structures",
    "open_volume": "data.volumes.open",
    "train": "training.train", "load": "weights.loading",
}  # fmt: skip
"""Where each public name lives; a name is imported when it is first asked for."""

__all__ = [
    "Batch", "ConfigError", "DataError", "Features", "Geometry", "Instances", "Masks", "PixvoxError",
    "Segmentation", "Segmenter", "WeightsError", "__version__", "create_model", "list_backbones", "list_heads",
    "load", "open_volume", "ops", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("pixvox.ops")
    if name not in _HOMES:
        raise AttributeError(f"module 'pixvox' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pixvox.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

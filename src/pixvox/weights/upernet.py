"""Weights of UPerNet: transformers' folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbone_choice import backbone_from_transformers
from pixvox.weights.backbones import within
from pixvox.weights.checkpoint import load_state
from pixvox.weights.renaming import Rename, count, renamed
from pixvox.weights.transformers_folder import class_names

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

_LAYERS: list[Rename] = [
    (r"decode_head\.psp_modules\.(\d+)\.1\.(.*)", r"pooling.means.\1.\2"),
    (r"decode_head\.bottleneck\.(.*)", r"pooling.bottleneck.\1"),
    (r"decode_head\.lateral_convs\.(\d+)\.(.*)", r"lateral.\1.\2"),
    (r"decode_head\.fpn_convs\.(\d+)\.(.*)", r"output.\1.\2"),
    (r"decode_head\.fpn_bottleneck\.(.*)", r"fusion.\1"),
    (r"decode_head\.classifier\.(.*)", r"classifier.1.\1"),
    (r"auxiliary_head\.convs\.0\.(.*)", r"aux_classifier.0.\1"),
    (r"auxiliary_head\.classifier\.(.*)", r"aux_classifier.2.\1"),
]


def matches(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    """Tell whether a checkpoint is a folder of transformers' UPerNet."""
    return config is not None and config.get("model_type") == "upernet"


def convert_head(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict of our ``UPerNet``, and the keys that have no counterpart.

    Args:
        state: Weights whose names begin with ``decode_head.`` and ``auxiliary_head.``.
    """
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        name = renamed(key, _LAYERS)
        if name is None:
            unknown.append(key)
        else:
            converted[name.replace(".conv.", ".0.").replace(".batch_norm.", ".1.")] = value
    return converted, unknown


def build(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Return the model that a checkpoint is of, with its weights.

    Raises:
        WeightsError: If a key is missing or has no counterpart.
    """
    from pixvox.models import create_model

    config = config or {}
    own = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    head, unknown = convert_head(own)
    backbone = backbone_from_transformers(config.get("backbone_config") or {}, within(state, "backbone."))
    if unknown:
        raise WeightsError(
            f"{source}: {len(unknown)} keys have no counterpart in UPerNet here: {', '.join(sorted(unknown)[:3])}"
        )
    try:
        num_classes, channels = head["classifier.1.weight"].shape[:2]
        taught = head.get("aux_classifier.2.weight")
    except KeyError as error:
        raise WeightsError(f"{source}: the weights of UPerNet lack what is here called {error}") from error
    bins = list(config.get("pool_scales", (1, 2, 3, 6)))
    if len(bins) != count(head, r"pooling\.means\.(\d+)\."):
        raise WeightsError(f"{source}: pool_scales={bins} are not as many as there are weights for")
    model = create_model(
        head="upernet",
        num_classes=num_classes,
        normalizer="imagenet",
        class_names=class_names(config, num_classes),
        channels=channels,
        bins=bins,
        aux_level=None if taught is None else -2,
        aux_channels=256 if taught is None else taught.shape[1],
        aux_weight=config.get("auxiliary_loss_weight", 0.4),
        **backbone.arguments,
    )
    model.config["inference"] = {"resize": "shortest", "size": 512, "max_size": 2048}
    load_state(model, {**backbone.prefixed, **{f"head.{key}": value for key, value in head.items()}}, source)
    return model

"""Weights of Mask2Former: transformers' folders and the authors' files.

Both references look at their levels from coarse to fine, here levels stand fine to coarse. The joint projections of
``nn.MultiheadAttention`` are three layers here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbone_choice import (
    BackboneChoice,
    backbone_from_detectron2,
    backbone_from_transformers,
)
from pixvox.weights.backbones import within
from pixvox.weights.checkpoint import load_state
from pixvox.weights.pixel_decoder import OFFICIAL, TRANSFORMERS, convert_pixel_decoder
from pixvox.weights.renaming import Rename, count, renamed, split_attention
from pixvox.weights.transformers_folder import class_names

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

_PARTS = r"(query|key|value|output)"

DECODER_OFFICIAL: list[Rename] = [
    (
        rf"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.{_PARTS}\.(.*)",
        r"layers.\1.cross_attention.\2.\3",
    ),
    (r"transformer_cross_attention_layers\.(\d+)\.norm\.(.*)", r"layers.\1.norm1.\2"),
    (
        rf"transformer_self_attention_layers\.(\d+)\.self_attn\.{_PARTS}\.(.*)",
        r"layers.\1.self_attention.\2.\3",
    ),
    (r"transformer_self_attention_layers\.(\d+)\.norm\.(.*)", r"layers.\1.norm2.\2"),
    (r"transformer_ffn_layers\.(\d+)\.(linear[12])\.(.*)", r"layers.\1.\2.\3"),
    (r"transformer_ffn_layers\.(\d+)\.norm\.(.*)", r"layers.\1.norm3.\2"),
    (r"decoder_norm\.(.*)", r"norm.\1"),
    (r"(?:query_feat|static_query)\.weight", "query_features"),
    (r"query_embed\.weight", "query_positions"),
    (r"level_embed\.weight", "level_embedding"),
    (r"input_proj\.(\d+)\.(.*)", r"projections.\1.\2"),
    (r"mask_embed\.(layers\..*)", r"mask_embedding.\1"),
]
"""Names in the authors' files, after ``sem_seg_head.predictor.``."""

DECODER_TRANSFORMERS: list[Rename] = [
    (rf"decoder\.layers\.(\d+)\.cross_attn\.{_PARTS}\.(.*)", r"layers.\1.cross_attention.\2.\3"),
    (r"decoder\.layers\.(\d+)\.cross_attn_layer_norm\.(.*)", r"layers.\1.norm1.\2"),
    (r"decoder\.layers\.(\d+)\.self_attn\.q_proj\.(.*)", r"layers.\1.self_attention.query.\2"),
    (r"decoder\.layers\.(\d+)\.self_attn\.k_proj\.(.*)", r"layers.\1.self_attention.key.\2"),
    (r"decoder\.layers\.(\d+)\.self_attn\.v_proj\.(.*)", r"layers.\1.self_attention.value.\2"),
    (r"decoder\.layers\.(\d+)\.self_attn\.output\.(.*)", r"layers.\1.self_attention.output.\2"),
    (r"decoder\.layers\.(\d+)\.self_attn_layer_norm\.(.*)", r"layers.\1.norm2.\2"),
    (r"decoder\.layers\.(\d+)\.fc([12])\.(.*)", r"layers.\1.linear\2.\3"),
    (r"decoder\.layers\.(\d+)\.final_layer_norm\.(.*)", r"layers.\1.norm3.\2"),
    (r"decoder\.layernorm\.(.*)", r"norm.\1"),
    (r"queries_features\.weight", "query_features"),
    (r"queries_embedder\.weight", "query_positions"),
    (r"level_embed\.weight", "level_embedding"),
    (r"input_projections\.(\d+)\.(.*)", r"projections.\1.\2"),
    (r"decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.(.*)", r"mask_embedding.layers.\1.\2"),
]
"""Names in transformers' files, after ``model.transformer_module.``."""


def convert_decoder(
    state: Mapping[str, Tensor], table: Sequence[Rename]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict of our ``MaskedDecoder``, and the keys that have no counterpart."""
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    if "level_embed.weight" not in state:
        raise WeightsError("the weights of a Mask2Former decoder lack level_embed.weight")
    levels = len(state["level_embed.weight"])
    for key, value in split_attention(state).items():
        name = renamed(key, table)
        if name is None:
            unknown.append(key)
            continue
        if name == "level_embedding":
            value = value.flip(0)
        elif name.startswith("projections."):
            _, place, rest = name.split(".", 2)
            name = f"projections.{levels - 1 - int(place)}.{rest}"
        converted[name] = value
    return converted, unknown


def matches(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    """Tell whether a checkpoint is a folder of transformers' Mask2Former, or one of the authors' files."""
    if config is not None:
        return config.get("model_type") == "mask2former"
    return _OFFICIAL_LAYER in state


def build(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Return the model that a checkpoint is of, with its weights.

    What it was trained for is no part of either kind of file: it is read off the name of the folder or file
    (``...-semantic``), and is instances otherwise; ``model.head.task`` may be set to another.

    Raises:
        WeightsError: If a key is missing or has no counterpart.
    """
    parts = _official(state, source) if config is None else _transformers(state, config)
    model = _model(parts, config or {}, source)
    if parts.unknown:
        raise WeightsError(
            f"{source}: {len(parts.unknown)} keys have no counterpart in Mask2Former here: "
            f"{', '.join(sorted(parts.unknown)[:3])}{', ...' if len(parts.unknown) > 3 else ''}"
        )
    load_state(model, parts.state, source)
    return model


@dataclass
class _Parts:
    """A checkpoint taken apart: weights under our names, and keys that have none."""

    backbone: BackboneChoice
    neck: dict[str, Tensor]
    decoder: dict[str, Tensor]
    classifier: dict[str, Tensor]
    num_heads: int
    unknown: list[str]

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights of the whole model."""
        own = (("neck.", self.neck), ("head.decoder.", self.decoder), ("head.classifier.", self.classifier))
        named = {prefix + key: value for prefix, part in own for key, value in part.items()}
        return {**self.backbone.prefixed, **named}


_PREFIXES_TRANSFORMERS = {
    "backbone": "model.pixel_level_module.encoder.", "neck": "model.pixel_level_module.decoder.",
    "decoder": "model.transformer_module.", "classifier": "class_predictor.",
}  # fmt: skip

_PREFIXES_OFFICIAL = {
    "classifier": "sem_seg_head.predictor.class_embed.", "backbone": "backbone.",
    "neck": "sem_seg_head.pixel_decoder.", "decoder": "sem_seg_head.predictor.",
}  # fmt: skip

_OFFICIAL_LAYER = "sem_seg_head.predictor.transformer_cross_attention_layers.0.norm.weight"
"""A key of the authors' files, and of no others."""

_UNUSED = ("criterion.empty_weight", "pixel_mean", "pixel_std")
"""Constants that are kept in some files."""

_HEADS = 8
"""Heads of all attentions in the authors' models, which their files do not tell."""


def _transformers(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> _Parts:
    if config.get("pre_norm"):
        raise WeightsError(
            "pre_norm=true has no counterpart here: layers are normalised after their residual"
        )
    if config.get("activation_function", "relu") != "relu":
        raise WeightsError(
            f"activation_function={config['activation_function']!r} has no counterpart: it is relu"
        )
    heads = config.get("num_attention_heads", 8)
    backbone = backbone_from_transformers(
        config.get("backbone_config") or {}, within(state, _PREFIXES_TRANSFORMERS["backbone"])
    )
    return _parts(state, _PREFIXES_TRANSFORMERS, TRANSFORMERS, DECODER_TRANSFORMERS, heads, backbone)


def _official(state: Mapping[str, Tensor], source: Path) -> _Parts:
    # Files older than the pixel decoder's own place have it directly in the head.
    prefix = "sem_seg_head."
    if not any(key.startswith(f"{prefix}pixel_decoder.") for key in state):
        state = {
            re.sub(rf"^{re.escape(prefix)}(?!predictor\.)", f"{prefix}pixel_decoder.", key): value
            for key, value in state.items()
        }
    backbone = backbone_from_detectron2(within(state, _PREFIXES_OFFICIAL["backbone"]))
    return _parts(state, _PREFIXES_OFFICIAL, OFFICIAL, DECODER_OFFICIAL, _HEADS, backbone)


def _parts(
    state: Mapping[str, Tensor],
    prefixes: Mapping[str, str],
    neck_names: Sequence[Rename],
    decoder_names: Sequence[Rename],
    num_heads: int,
    backbone: BackboneChoice,
) -> _Parts:
    """Sort the keys by their first fitting prefix, and rename them."""
    sorted_in: dict[str, dict[str, Tensor]] = {part: {} for part in prefixes}
    unknown = []
    for key, value in state.items():
        part = next((part for part, prefix in prefixes.items() if key.startswith(prefix)), None)
        if part is not None:
            sorted_in[part][key.removeprefix(prefixes[part])] = value
        elif key not in _UNUSED:
            unknown.append(key)
    levels = sum(re.fullmatch(r"input_proj\w*\.\d+\.0\.weight", key) is not None for key in sorted_in["neck"])
    order = tuple(reversed(range(levels)))
    neck, strange = convert_pixel_decoder(sorted_in["neck"], neck_names, num_heads, order)
    unknown += [prefixes["neck"] + key for key in strange]
    decoder, strange = convert_decoder(sorted_in["decoder"], decoder_names)
    unknown += [prefixes["decoder"] + key for key in strange]
    return _Parts(backbone, neck, decoder, sorted_in["classifier"], num_heads, unknown)


def _model(parts: _Parts, config: Mapping[str, Any], source: Path) -> Segmenter:
    """Build the model, its sizes read off the weights."""
    from pixvox.models import create_model

    neck, decoder, heads = parts.neck, parts.decoder, parts.num_heads
    try:
        num_classes = len(parts.classifier["bias"]) - 1
        channels = decoder["query_features"].shape[1]
        levels, neck_channels = neck["level_embedding"].shape
        points = len(neck["encoder.layers.0.attention.attention_weights.bias"]) // (heads * levels)
        arguments = {
            "num_queries": len(decoder["query_features"]),
            "channels": channels,
            "num_layers": count(decoder, r"layers\.(\d+)\."),
            "num_heads": heads,
            "feedforward": len(decoder["layers.0.linear1.bias"]),
            "dropout": config.get("dropout", 0.0),
            "project": "projections.0.weight" in decoder and neck_channels == channels,
            "neck__channels": neck_channels,
            "neck__mask_channels": len(neck["mask_features.bias"]),
            "neck__encoded_levels": levels,
            "neck__num_layers": count(neck, r"encoder\.layers\.(\d+)\."),
            "neck__num_heads": heads,
            "neck__points_per_head": points,
            "neck__feedforward": len(neck["encoder.layers.0.linear1.bias"]),
            "neck__dropout": config.get("dropout", 0.0),
        }
    except KeyError as error:
        raise WeightsError(
            f"{source}: the weights of Mask2Former lack what is here called {error}"
        ) from error
    model = create_model(
        head="mask2former",
        num_classes=num_classes,
        normalizer="imagenet",
        class_names=class_names(config, num_classes),
        task=_task(source),
        **_training_options(config),
        **parts.backbone.arguments,
        **arguments,
    )
    model.config["inference"] = {"resize": "shortest", "size": 800, "max_size": 1333}
    return model


def _task(source: Path) -> str:
    """Return what the name of a file or folder says that it is for."""
    names = " ".join((source.parent.name, source.stem) if source.suffix else (source.name,))
    return next((task for task in ("semantic", "panoptic") if task in names.lower()), "instance")


def _training_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration of transformers says of the loss."""
    weights = {
        name: config.get(f"{key}_weight", default)
        for name, key, default in (("class", "class", 2.0), ("mask", "mask", 5.0), ("dice", "dice", 5.0))
    }
    return {
        "weights": weights,
        "costs": weights,
        "classification": {
            "_target_": "pixvox.losses.query_classification.SoftmaxWithNoObject",
            "no_object_weight": config.get("no_object_weight", 0.1),
        },
        "num_points": config.get("train_num_points", 12544),
        "oversample_ratio": config.get("oversample_ratio", 3.0),
        "importance_ratio": config.get("importance_sample_ratio", 0.75),
    }

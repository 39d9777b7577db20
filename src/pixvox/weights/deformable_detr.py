"""Weights of Deformable DETR: transformers' folders, plain, with refined boxes, and with two stages.

These models predict boxes alone, so ours is built without masks. Names differ between files of different releases of
transformers; both are known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbone_choice import BackboneChoice, backbone_from_transformers
from pixvox.weights.backbones import resnet_from_timm, within
from pixvox.weights.checkpoint import load_state
from pixvox.weights.renaming import Rename, count, renamed
from pixvox.weights.transformers_folder import class_names

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

_ATTENTION = r"(sampling_offsets|attention_weights|value_proj|output_proj)"
_SELF_ATTENTION = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "output",
    "o_proj": "output",
}

_NAMES: list[Rename] = [
    (r"input_proj\.(.*)", r"neck.projections.\1"),
    (r"level_embed", "neck.level_embedding"),
    (rf"encoder\.(layers\.\d+)\.self_attn\.{_ATTENTION}\.(.*)", r"neck.encoder.\1.attention.\2.\3"),
    (r"encoder\.(layers\.\d+)\.self_attn_layer_norm\.(.*)", r"neck.encoder.\1.norm1.\2"),
    (r"encoder\.(layers\.\d+)\.(?:mlp\.)?fc([12])\.(.*)", r"neck.encoder.\1.linear\2.\3"),
    (r"encoder\.(layers\.\d+)\.final_layer_norm\.(.*)", r"neck.encoder.\1.norm2.\2"),
    (
        r"decoder\.(layers\.\d+)\.self_attn\.(\w+_proj)\.(.*)",
        lambda m: f"head.decoder.{m[1]}.self_attention.{_SELF_ATTENTION[m[2]]}.{m[3]}",
    ),
    (r"decoder\.(layers\.\d+)\.self_attn_layer_norm\.(.*)", r"head.decoder.\1.norm1.\2"),
    (rf"decoder\.(layers\.\d+)\.encoder_attn\.{_ATTENTION}\.(.*)", r"head.decoder.\1.cross_attention.\2.\3"),
    (r"decoder\.(layers\.\d+)\.encoder_attn_layer_norm\.(.*)", r"head.decoder.\1.norm2.\2"),
    (r"decoder\.(layers\.\d+)\.(?:mlp\.)?fc([12])\.(.*)", r"head.decoder.\1.linear\2.\3"),
    (r"decoder\.(layers\.\d+)\.final_layer_norm\.(.*)", r"head.decoder.\1.norm3.\2"),
    (r"reference_points\.(.*)", r"head.queries.points.\1"),
    (r"enc_output\.(.*)", r"head.two_stage.proposals.projection.\1"),
    (r"enc_output_norm\.(.*)", r"head.two_stage.proposals.norm.\1"),
    (r"pos_trans\.(.*)", r"head.two_stage.queries.linear.\1"),
    (r"pos_trans_norm\.(.*)", r"head.two_stage.queries.norm.\1"),
]
"""Names after ``model.``."""

_QUERIES = "query_position_embeddings.weight"
_BRANCH = re.compile(r"(?:decoder\.)?(class_embed|bbox_embed)\.(\d+)\.(.*)")
_BACKBONES = ("backbone.conv_encoder.model.", "backbone.model.")


def matches(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    """Tell whether a checkpoint is transformers' Deformable DETR."""
    return config is not None and config.get("model_type") == "deformable_detr"


def build(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Return the model of a folder of transformers, without masks, with its weights.

    Raises:
        WeightsError: If a key is missing or has no counterpart, or the configuration asks for what is not here.
    """
    config = config or {}
    _check_supported(config, source)
    state = {key.removeprefix("model."): value for key, value in state.items()}
    backbone = _backbone(state, config)
    converted, unknown = convert(state, config)
    if unknown:
        raise WeightsError(
            f"{source}: {len(unknown)} keys have no counterpart in Deformable DETR here: "
            f"{', '.join(sorted(unknown)[:3])}{', ...' if len(unknown) > 3 else ''}"
        )
    model = _model(config, converted, backbone, source)
    load_state(model, {**backbone.prefixed, **converted}, source)
    return model


def convert(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of neck and head under our names, and the keys that have no counterpart.

    Args:
        state: The model's weights, ``model.`` taken off; those of the backbone are passed over.
        config: The ``config.json``.

    Raises:
        WeightsError: If layers that must share a branch have different ones.
    """
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    branches: dict[tuple[str, str], dict[int, Tensor]] = {}
    for key, value in state.items():
        branch = _BRANCH.fullmatch(key)
        name = renamed(key, _NAMES)
        if key.startswith(_BACKBONES):
            continue
        if branch:
            branches.setdefault((branch[1], branch[3]), {})[int(branch[2])] = value
        elif key == _QUERIES:
            converted["head.queries.positions"], converted["head.queries.contents"] = value.chunk(2, dim=1)
        elif name is None:
            unknown.append(key)
        else:
            converted[name] = value
    number = count(state, r"decoder\.layers\.(\d+)\.")
    for (kind, part), layers in branches.items():
        converted |= _branches(kind, part, layers, number, config)
    return converted, unknown


def _branches(
    kind: str, part: str, layers: Mapping[int, Tensor], number: int, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return one parameter of the class or box branches of all ``number`` layers; files leave out shared ones."""
    ours, proposal = {
        "class_embed": ("classifiers", "classifier"), "bbox_embed": ("box_branches", "box_branch")
    }[kind]  # fmt: skip
    refines = config.get("with_box_refine") or config.get("two_stage")
    if not refines and any(not torch.equal(value, layers[min(layers)]) for value in layers.values()):
        raise WeightsError(
            f"layers have different {kind}.{part}, but with_box_refine is false, so that they share one; "
            "is the config.json that of these weights?"
        )
    converted = {
        f"head.{ours}.{layer}.{part}": layers.get(layer, layers[min(layers)])
        for layer in range(number if refines else 1)
    }
    if config.get("two_stage") and number in layers:
        # The first class of the last branch tells whether there is an object; the others were taught to be silent.
        value = layers[number][:1] if kind == "class_embed" else layers[number]
        converted[f"head.two_stage.{proposal}.{part}"] = value
    return converted


def _backbone(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> BackboneChoice:
    """Return the ResNet, of timm or transformers; its batch norms are frozen."""
    own: dict[str, Tensor] = {}
    for prefix in _BACKBONES:
        own |= within(state, prefix)
    described = config.get("backbone_config") or {
        "model_type": "timm_backbone",
        "backbone": config.get("backbone"),
    }
    if described.get("model_type") != "timm_backbone":
        choice = backbone_from_transformers(described, own)
        choice.options["freeze_norms"] = True
        return choice
    name = described.get("backbone") or "resnet50"
    if not name.startswith("resnet"):
        raise WeightsError(f"timm's backbone {name!r} has no counterpart here; ResNets have")
    single = config.get("num_feature_levels", 4) == 1
    options = {
        "name": name,
        # timm counts a ResNet's levels from 0, the stem at stride 2.
        "out_levels": [index + 1 for index in described.get("out_indices") or ([4] if single else [2, 3, 4])],
        "output_stride": described.get("output_stride") or (16 if config.get("dilation") else 32),
        "freeze_norms": True,
    }
    return BackboneChoice("resnet", options, resnet_from_timm(own))


def _model(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], backbone: BackboneChoice, source: Path
) -> Segmenter:
    from pixvox.models import create_model

    two_stage = bool(config.get("two_stage", False))
    dropout = config.get("dropout", 0.1)
    try:
        sizes = _sizes(config, weights, backbone)
    except KeyError as error:
        raise WeightsError(
            f"{source}: the weights of Deformable DETR lack what is here called {error}"
        ) from error
    model = create_model(
        head="deformable_detr",
        normalizer="imagenet",
        class_names=class_names(config, sizes["num_classes"]),
        dropout=dropout,
        refine=bool(config.get("with_box_refine", False)),
        two_stage=two_stage,
        masks=False,
        costs=_weights(config, "cost"),
        weights=_weights(config, "loss_coefficient"),
        classification={
            "_target_": "pixvox.losses.query_classification.SigmoidFocal",
            "alpha": config.get("focal_alpha", 0.25),
        },
        neck__mask_channels=None,
        neck__dropout=dropout,
        **sizes,
        **backbone.arguments,
    )
    model.config["inference"] = {"resize": "shortest", "size": 800, "max_size": 1333}
    return model


def _sizes(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], backbone: BackboneChoice
) -> dict[str, Any]:
    """Return the sizes: off the weights but for those that no weight tells.

    Raises:
        KeyError: If a weight is missing.
    """
    levels, channels = weights["neck.level_embedding"].shape
    encoded = len(backbone.options["out_levels"])
    heads, neck_heads = config.get("decoder_attention_heads", 8), config.get("encoder_attention_heads", 8)
    decoder, encoder = "head.decoder.layers.", "neck.encoder.layers."
    cross = len(weights[f"{decoder}0.cross_attention.attention_weights.bias"])
    own = len(weights[f"{encoder}0.attention.attention_weights.bias"])
    learned = weights.get("head.queries.contents")
    return {
        "num_classes": len(weights["head.classifiers.0.bias"]),
        "num_queries": config.get("two_stage_num_proposals", 300) if learned is None else len(learned),
        "num_layers": count(weights, r"head\.decoder\.layers\.(\d+)\."),
        "num_heads": heads,
        "points_per_head": cross // (heads * levels),
        "feedforward": len(weights[f"{decoder}0.linear1.bias"]),
        "neck__channels": channels,
        "neck__encoded_levels": encoded,
        "neck__extra_levels": levels - encoded,
        "neck__num_layers": count(weights, r"neck\.encoder\.layers\.(\d+)\."),
        "neck__num_heads": neck_heads,
        "neck__points_per_head": own // (neck_heads * levels),
        "neck__feedforward": len(weights[f"{encoder}0.linear1.bias"]),
    }


def _weights(config: Mapping[str, Any], suffix: str) -> dict[str, float]:
    """Return the weights of the matching costs or of the losses."""
    defaults = {"class": 1.0, "bbox": 5.0, "giou": 2.0}
    found = {name: float(config.get(f"{name}_{suffix}", default)) for name, default in defaults.items()}
    return {"class": found["class"], "box": found["bbox"], "giou": found["giou"]}


def _check_supported(config: Mapping[str, Any], source: Path) -> None:
    """Refuse what the configuration asks for and is not here."""
    only = {"position_embedding_type": "sine", "activation_function": "relu"}
    for name, value in only.items():
        if config.get(name, value) != value:
            raise WeightsError(
                f"{source}: {name}={config[name]!r} has no counterpart here; there is {value!r}"
            )

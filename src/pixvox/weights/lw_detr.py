"""LW-DETR's weights in the form of transformers' folders, and what RF-DETR's share with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.checkpoint import load_state
from pixvox.weights.renaming import Rename, count, renamed
from pixvox.weights.transformers_folder import class_names, read_json

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

VIT_BLOCK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "output",
    "attention.output": "output", "intermediate.fc1": "fc1", "intermediate.fc2": "fc2", "gamma_1": "scale1",
    "gamma_2": "scale2",
}  # fmt: skip
"""Names within a block of the backbone; for queries, keys and values see ``rename_block``."""

_UNIT = {"conv": "0", "norm": "1"}

_SCALE: list[Rename] = [
    (r"layer_norm\.(\w+)", r"norm.\1"),
    (
        r"sampling_layers\.(\d+)\.layers\.(\d+)\.(conv|norm)\.(\w+)",
        lambda m: f"resamplers.{m[1]}.{m[2]}.{_UNIT[m[3]]}.{m[4]}",
    ),
    (r"sampling_layers\.(\d+)\.layers\.(\d+)\.(\w+)", r"resamplers.\1.\2.\3"),
    (
        r"projector_layer\.conv([12])\.(conv|norm)\.(\w+)",
        lambda m: f"mix.{'split' if m[1] == '1' else 'join'}.{_UNIT[m[2]]}.{m[3]}",
    ),
    (
        r"projector_layer\.bottlenecks\.(\d+)\.conv([12])\.(conv|norm)\.(\w+)",
        lambda m: f"mix.chain.{m[1]}.{int(m[2]) - 1}.{_UNIT[m[3]]}.{m[4]}",
    ),
]

_LAYER = r"decoder\.layers\.(\d+)\."

_COSTS = {
    "class": ("class_cost", 2.0), "box": ("bbox_cost", 5.0), "giou": ("giou_cost", 2.0),
    "mask": ("mask_class_loss_coefficient", 5.0), "dice": ("mask_dice_loss_coefficient", 5.0),
}  # fmt: skip
_LOSSES = {
    "class": ("class_loss_coefficient", 1.0), "box": ("bbox_loss_coefficient", 5.0),
    "giou": ("giou_loss_coefficient", 2.0), "mask": ("mask_class_loss_coefficient", 5.0),
    "dice": ("mask_dice_loss_coefficient", 5.0),
}  # fmt: skip
"""Names of weights in a configuration, and what they are where it does not say."""

HEAD: list[Rename] = [
    (_LAYER + r"self_attn\.q_proj\.(.*)", r"decoder.layers.\1.self_attention.query.\2"),
    (_LAYER + r"self_attn\.k_proj\.(.*)", r"decoder.layers.\1.self_attention.key.\2"),
    (_LAYER + r"self_attn\.v_proj\.(.*)", r"decoder.layers.\1.self_attention.value.\2"),
    (_LAYER + r"self_attn\.o_proj\.(.*)", r"decoder.layers.\1.self_attention.output.\2"),
    (_LAYER + r"self_attn\.(query|key|value|output)\.(.*)", r"decoder.layers.\1.self_attention.\2.\3"),
    (_LAYER + r"cross_attn\.(.*)", r"decoder.layers.\1.cross_attention.\2"),
    (_LAYER + r"(?:self_attn_layer_norm|norm1)\.(.*)", r"decoder.layers.\1.norm1.\2"),
    (_LAYER + r"(?:cross_attn_layer_norm|norm2)\.(.*)", r"decoder.layers.\1.norm2.\2"),
    (_LAYER + r"(?:layer_norm|norm3)\.(.*)", r"decoder.layers.\1.norm3.\2"),
    (_LAYER + r"(?:mlp\.fc|linear)([12])\.(.*)", r"decoder.layers.\1.linear\2.\3"),
    (r"decoder\.(?:layernorm|norm)\.(.*)", r"decoder.norm.\1"),
    (r"decoder\.ref_point_head\.(.*)", r"positions.mlp.\1"),
    (r"(?:reference_point_embed|refpoint_embed)\.weight", "references.weight"),
    (r"query_feat\.weight", "queries.weight"),
    (r"enc_output\.(\d+)\.(.*)", r"proposals.\1.projection.\2"),
    (r"enc_output_norm\.(\d+)\.(.*)", r"proposals.\1.norm.\2"),
    (r"enc_out_bbox_embed\.(\d+)\.(.*)", r"proposal_boxes.\1.\2"),
    (r"enc_out_class_embed\.(\d+)\.(.*)", r"proposal_classes.\1.\2"),
    (r"class_embed\.(.*)", r"classes.\1"),
    (r"bbox_embed\.(.*)", r"boxes.\1"),
]
"""Names after ``model.`` (LW-DETR) or ``transformer.`` (RF-DETR), or after nothing."""


def matches(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    """Tell whether a checkpoint is a folder of transformers' LW-DETR."""
    return config is not None and config.get("model_type") == "lw_detr"


def build(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Return the model that a checkpoint is of, with its weights: boxes, no masks.

    Raises:
        WeightsError: If a key is missing or has no counterpart, or the configuration asks for what is not here.
    """
    config = config or {}
    vit = config.get("backbone_config") or {}
    refuse_others(config, vit, source, {"batch_norm_eps": 1e-5, "attention_bias": True})
    scales = list(config.get("projector_scale_factors") or ())
    if not scales:
        raise WeightsError(
            f"{source}: config.json must tell projector_scale_factors, such as [1.0]; it does not"
        )
    out_blocks = given_out(vit, source)
    prefixes = {"model.backbone.backbone.": "backbone.", "model.backbone.projector.": "neck."}
    parts: dict[str, dict[str, Tensor]] = {"backbone.": {}, "neck.": {}, "head.": {}}
    for key, value in state.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        part = "head." if prefix is None else prefixes[prefix]
        parts[part][key.removeprefix(prefix or "model.")] = value
    converted = {
        "backbone.": convert_vit(parts["backbone."], out_blocks),
        "neck.": convert_projector(parts["neck."]),
        "head.": convert_head(parts["head."]),
    }
    windows = round(vit.get("num_windows", 16) ** 0.5)
    arguments = {
        "backbone__windowed_blocks": windowed(vit.get("window_block_indices") or (), out_blocks),
        "backbone__windows": windows,
        "neck__scale_factors": scales,
        "neck__norm": "batch",
        "masks": False,
    }
    return assemble(converted, config, vit, source, arguments)


def assemble(
    converted: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    vit: Mapping[str, Any],
    source: Path,
    arguments: Mapping[str, Any],
) -> Segmenter:
    """Build the model of converted weights, with sizes from the weights and the rest from the configuration.

    Args:
        converted: Weights by the prefix of their part.
        config: The configuration.
        vit: That of the backbone.
        source: For messages.
        arguments: What differs between LW-DETR and RF-DETR.
    """
    from pixvox.models import create_model

    out_blocks, cross_heads = given_out(vit, source), config.get("decoder_cross_attention_heads", 16)
    expansion, scales = config.get("hidden_expansion", 0.5), len(arguments["neck__scale_factors"])
    try:
        _check_told(converted, out_blocks, scales, expansion, source)
        sizes = _sizes(converted, cross_heads * scales)
    except KeyError as error:
        raise WeightsError(f"{source}: the weights of LW-DETR lack what is here called {error}") from error
    num_classes = len(converted["head."]["classes.bias"])
    model = create_model(
        head="lw_detr",
        backbone="windowed_vit",
        num_classes=num_classes,
        normalizer="imagenet",
        class_names=class_names(config, num_classes),
        backbone__num_heads=vit.get("num_attention_heads", 12),
        backbone__out_blocks=out_blocks,
        neck__expansion=expansion,
        neck__activation=config.get("activation_function", "silu"),
        num_heads=config.get("decoder_self_attention_heads", 8),
        num_cross_heads=cross_heads,
        dropout=config.get("dropout", 0.0),
        classification={
            "_target_": "pixvox.losses.query_classification.IoUAware",
            "alpha": config.get("focal_alpha", 0.25),
            "least_target": 0.01,
        },
        costs=_weights(config, _COSTS),
        weights=_weights(config, _LOSSES),
        **sizes,
        **arguments,
    )
    state = {prefix + key: value for prefix, part in converted.items() for key, value in part.items()}
    load_state(model, state, source)
    model.config["inference"] = _inference(source, vit)
    return model


def _check_told(
    converted: Mapping[str, Mapping[str, Tensor]],
    out_blocks: Sequence[int],
    scales: int,
    expansion: float,
    source: Path,
) -> None:
    """Refuse a configuration that tells other sizes than the weights have."""
    backbone, neck, head = (converted[part] for part in ("backbone.", "neck.", "head."))
    hidden = int(head["queries.weight"].shape[1] * expansion)
    for name, told, found in (
        ("hidden_expansion", hidden, len(neck["scales.0.mix.split.0.weight"]) // 2),
        ("projector_scale_factors", scales, count(neck, r"scales\.(\d+)\.")),
        ("out_indices", max(out_blocks), count(backbone, r"layers\.(\d+)\.")),
    ):
        if told != found:
            raise WeightsError(
                f"{source}: by {name} config.json tells {told}, the weights {found}; is it that of these weights?"
            )


def _sizes(converted: Mapping[str, Mapping[str, Tensor]], cross_attentions: int) -> dict[str, Any]:
    """Return the options of a model that its weights tell; each point of a query has ``cross_attentions`` weights."""
    backbone, neck, head = (converted[part] for part in ("backbone.", "neck.", "head."))
    patch = backbone["embedding.weight"]
    groups = sum(key.startswith("proposal_classes.") for key in head) // 2
    attention = head["decoder.layers.0.cross_attention.attention_weights.bias"]
    return {
        "in_channels": patch.shape[1],
        "backbone__channels": patch.shape[0],
        "backbone__patch_size": list(patch.shape[2:]),
        "backbone__position_size": list(backbone["positions.plane"].shape[2:]),
        "backbone__mlp_ratio": len(backbone["layers.0.fc1.bias"]) / patch.shape[0],
        "num_queries": len(head["queries.weight"]) // groups,
        "groups": groups,
        "feedforward": len(head["decoder.layers.0.linear1.bias"]),
        "num_layers": count(head, r"decoder\.layers\.(\d+)\."),
        "points_per_head": len(attention) // cross_attentions,
        "neck__out_channels": head["queries.weight"].shape[1],
        "neck__num_blocks": count(neck, r"scales\.0\.mix\.chain\.(\d+)\."),
    }


def convert_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of decoder, proposals and classification with the names of ``LWDETR``.

    Their sine encoding begins with y and x, ours with x and y.
    """
    converted = {renamed(key, HEAD) or key: value for key, value in state.items()}
    name = "positions.mlp.layers.0.weight"
    if name in converted:
        y, x, *sides = converted[name].chunk(4, dim=1)
        converted[name] = torch.cat([x, y, *sides], dim=1)
    return converted


def convert_vit(state: Mapping[str, Tensor], out_blocks: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of ``LwDetrViTBackbone`` with the names of ``WindowedViT``.

    Blocks after the last that is given out are never used, there or here, and are left out; so is the position of
    a class token, which this network does not have.

    Args:
        state: Its state dict, or its part of a file.
        out_blocks: As of the ``WindowedViT``.
    """
    converted = {}
    for key, value in state.items():
        if key == "embeddings.position_embeddings":
            converted["positions.plane"] = position_table(value)
            continue
        name = rename_block(key, VIT_BLOCK, out_blocks[-1])
        if name is not None:
            converted[name.replace("embeddings.projection", "embedding")] = value
    return converted


def convert_projector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of ``LwDetrMultiScaleProjector`` with the names of ``MultiScaleProjector``.

    RF-DETR's ``RfDetrScaleProjector``, which has one scale, is converted as well.
    """
    converted = {}
    for key, value in state.items():
        scale = re.fullmatch(r"scale_layers\.(\d+)\.(.*)", key)
        number, name = (scale[1], scale[2]) if scale else ("0", key)
        converted[f"scales.{number}.{renamed(name, _SCALE) or name}"] = value
    return converted


def rename_block(key: str, names: Mapping[str, str], depth: int) -> str | None:
    """Return our name of a block's parameter, None for a block beyond ``depth``; other keys as they are."""
    found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*?)((?:\.weight|\.bias)?)", key)
    if not found:
        return key
    if int(found[1]) >= depth:
        return None
    attention = re.fullmatch(r"attention\.(?:attention\.(query|key|value)|([qkv])_proj)", found[2])
    if attention:
        name = attention[1] or {"q": "query", "k": "key", "v": "value"}[attention[2]]
    else:
        name = names.get(found[2], found[2])
    return f"layers.{found[1]}.{name}{found[3]}"


def position_table(positions: Tensor) -> Tensor:
    """Return learned positions ``(1, 1 + patches, channels)`` of a square grid as a map, without the first."""
    patches = positions[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).reshape(1, -1, side, side)


def given_out(vit: Mapping[str, Any], source: Path) -> list[int]:
    """Return the numbers of the blocks whose maps the backbone gives out.

    Raises:
        WeightsError: If the configuration does not tell them.
    """
    names = vit.get("out_features") or ()
    numbers = vit.get("out_indices") or [str(name).removeprefix("stage") for name in names]
    try:
        return [int(number) for number in numbers] or [int(vit["num_hidden_layers"])]
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{source}: config.json must tell in backbone_config.out_indices which blocks are given out, such as "
            f"[2, 4, 5, 9]; got out_indices={vit.get('out_indices')}, out_features={vit.get('out_features')}"
        ) from error


def windowed(indices: Sequence[int], out_blocks: Sequence[int]) -> list[int]:
    """Return the numbers of windowed blocks, from 1 on, that are used, for indices from 0 on."""
    return [int(index) + 1 for index in indices if index < out_blocks[-1]]


def refuse_others(
    config: Mapping[str, Any], vit: Mapping[str, Any], source: Path, wanted: Mapping[str, Any]
) -> None:
    """Refuse configurations of architectures that are not here.

    Raises:
        WeightsError: If a value is another than ``wanted``, or than what the shared parts have.
    """
    shared = {"decoder_activation_function": "relu", **wanted}
    backbone = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6, "use_swiglu_ffn": False,
                "use_absolute_position_embeddings": True, "apply_layernorm": True}  # fmt: skip
    for given, known in ((config, shared), (vit, backbone)):
        for name, value in known.items():
            if given.get(name, value) != value:
                raise WeightsError(
                    f"{source}: {name}={given[name]!r} has no counterpart here; only {name}={value!r} is known"
                )


def _weights(config: Mapping[str, Any], names: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    return {term: float(config.get(name, default)) for term, (name, default) in names.items()}


def _inference(source: Path, vit: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images are resized: as ``preprocessor_config.json`` says, else to the size of the backbone."""
    file = source / "preprocessor_config.json"
    size = read_json(file).get("size") if file.is_file() else None
    if isinstance(size, dict) and "shortest_edge" in size:
        longest = size.get("longest_edge")
        return {
            "resize": "shortest",
            "size": int(size["shortest_edge"]),
            "max_size": longest and int(longest),
        }
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return {"resize": "exact", "size": [int(size["height"]), int(size["width"])]}
    trained = vit.get("image_size", 256)
    lengths = trained if isinstance(trained, list | tuple) else [trained, trained]
    return {"resize": "exact", "size": [int(length) for length in lengths]}

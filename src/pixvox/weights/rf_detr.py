"""RF-DETR's weights in the form of transformers' folders, with masks or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pixvox.weights.lw_detr import (
    assemble,
    convert_head,
    given_out,
    position_table,
    refuse_others,
    rename_block,
    windowed,
)
from pixvox.weights.renaming import Rename, renamed, split_attention

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

DINO_BLOCK = {
    "attention.o_proj": "output", "attention.output.dense": "output", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
    "layer_scale1.lambda1": "scale1", "layer_scale2.lambda1": "scale2",
}  # fmt: skip
"""Names within a block of the backbone; for queries, keys and values see ``rename_block``."""

_UNIT = {"conv": "0", "bn": "1"}

_PROJECTOR: list[Rename] = [
    (
        r"stages\.0\.0\.cv([12])\.(conv|bn)\.(\w+)",
        lambda m: f"scales.0.mix.{'split' if m[1] == '1' else 'join'}.{_UNIT[m[2]]}.{m[3]}",
    ),
    (
        r"stages\.0\.0\.m\.(\d+)\.cv([12])\.(conv|bn)\.(\w+)",
        lambda m: f"scales.0.mix.chain.{m[1]}.{int(m[2]) - 1}.{_UNIT[m[3]]}.{m[4]}",
    ),
    (r"stages\.0\.1\.(\w+)", r"scales.0.norm.\1"),
]
"""Names in files, after ``backbone.0.projector.``."""

_MASKS: list[Rename] = [
    (r"blocks\.(\d+)\.dwconv\.(\w+)", r"masks.blocks.\1.depthwise.\2"),
    (r"blocks\.(\d+)\.norm\.(\w+)", r"masks.blocks.\1.norm.\2"),
    (r"blocks\.(\d+)\.pwconv1\.(\w+)", r"masks.blocks.\1.pointwise.\2"),
    (r"spatial_features_proj\.(\w+)", r"masks.pixel_projection.\1"),
    (r"query_features_block\.norm_in\.(\w+)", r"masks.norm.\1"),
    (r"query_features_block\.layers\.0\.(\w+)", r"masks.fc1.\1"),
    (r"query_features_block\.layers\.2\.(\w+)", r"masks.fc2.\1"),
    (r"query_features_proj\.(\w+)", r"masks.query_projection.\1"),
    (r"bias", "masks.bias"),
]
"""Names in files, after ``segmentation_head.``."""

_PREFIXES = {
    "backbone.0.encoder.encoder.": "backbone", "backbone.0.projector.": "neck", "segmentation_head.": "masks",
    "transformer.": "head",
}  # fmt: skip


def matches(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    """Tell whether a checkpoint is a folder of transformers' RF-DETR, for instances or for boxes."""
    return config is not None and config.get("model_type") == "rf_detr"


def build(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Return the model that a checkpoint is of, with its weights; without a mask branch where it has none.

    Raises:
        WeightsError: If a key is missing or has no counterpart, or the configuration asks for what is not here.
    """
    config = config or {}
    vit = config.get("backbone_config") or {}
    wanted = {"layer_norm_eps": 1e-5, "segmentation_head_activation_function": "gelu", "attention_bias": True}
    refuse_others(config, vit, source, wanted)
    out_blocks = given_out(vit, source)
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "neck": {}, "masks": {}, "head": {}}
    for key, value in state.items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        parts[_PREFIXES.get(prefix, "head")][key.removeprefix(prefix)] = value
    converted = {
        "backbone.": convert_dinov2(parts["backbone"], out_blocks),
        "neck.": {renamed(key, _PROJECTOR) or key: value for key, value in parts["neck"].items()},
        "head.": {**convert_head(split_attention(parts["head"])), **_masks(parts["masks"])},
    }
    arguments = {
        "backbone__windowed_blocks": windowed(_window_indices(vit, out_blocks), out_blocks),
        "backbone__windows": vit.get("num_windows", 4),
        "backbone__class_token": True,
        "backbone__key_bias": True,
        "backbone__final_norm": True,
        "backbone__antialias": True,
        "neck__scale_factors": [1.0],
        "neck__norm": "channel",
        "masks": bool(parts["masks"]),
        "mask_stride": config.get("mask_downsample_ratio", 4),
    }
    if parts["masks"]:
        arguments["mask_feedforward"] = len(converted["head."]["masks.fc1.bias"])
    return assemble(converted, config, vit, source, arguments)


def convert_dinov2(state: Mapping[str, Tensor], out_blocks: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of ``RfDetrDinov2Backbone`` with the names of ``WindowedViT``.

    The class token and its position are only ever added: here they are one parameter. The token of masked
    patches, which serves pretraining alone, and blocks after the last that is given out are left out.

    Args:
        state: Its state dict, or its part of a file.
        out_blocks: As of the ``WindowedViT``.
    """
    converted = {}
    for key, value in state.items():
        if key == "embeddings.position_embeddings":
            converted["positions.plane"] = position_table(value)
            converted["class_token"] = (state["embeddings.cls_token"] + value[:, :1]).flatten()
        elif key not in ("embeddings.cls_token", "embeddings.mask_token"):
            name = rename_block(key, DINO_BLOCK, out_blocks[-1])
            if name is not None:
                name = name.replace("embeddings.patch_embeddings.projection", "embedding")
                converted[name.replace("layernorm", "norm")] = value
    return converted


def _masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the mask branch; its linear layers on pixels are convolutions of size 1 here."""
    converted = {renamed(key, _MASKS) or key: value for key, value in state.items()}
    for key, value in converted.items():
        if key.endswith("pointwise.weight"):
            converted[key] = value[..., None, None]
    return converted


def _window_indices(vit: Mapping[str, Any], out_blocks: Sequence[int]) -> list[int]:
    """Return which blocks, from 0 on, attend within windows; where nothing is said, those that are not given out."""
    given = vit.get("window_block_indexes")
    return list(given) if given is not None else sorted(set(range(out_blocks[-1] + 1)).difference(out_blocks))

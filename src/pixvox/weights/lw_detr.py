"""LW-DETR's weights in the form of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from pixvox.weights.renaming import Rename, renamed

_UNIT = {"conv": "0", "norm": "1"}

SCALE: list[Rename] = [
    (r"layer_norm\.(\w+)", r"norm.\1"),
    (r"sampling_layers\.(\d+)\.layers\.(\d+)\.(conv|norm)\.(\w+)",
     lambda m: f"resamplers.{m[1]}.{m[2]}.{_UNIT[m[3]]}.{m[4]}"),
    (r"sampling_layers\.(\d+)\.layers\.(\d+)\.(\w+)", r"resamplers.\1.\2.\3"),
    (r"projector_layer\.conv([12])\.(conv|norm)\.(\w+)",
     lambda m: f"mix.{'split' if m[1] == '1' else 'join'}.{_UNIT[m[2]]}.{m[3]}"),
    (r"projector_layer\.bottlenecks\.(\d+)\.conv([12])\.(conv|norm)\.(\w+)",
     lambda m: f"mix.chain.{m[1]}.{int(m[2]) - 1}.{_UNIT[m[3]]}.{m[4]}"),
]  # fmt: skip

VIT_BLOCK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.q_proj": "query",
    "attention.k_proj": "key", "attention.v_proj": "value", "attention.o_proj": "output",
    "intermediate.fc1": "fc1", "intermediate.fc2": "fc2", "gamma_1": "scale1", "gamma_2": "scale2",
}  # fmt: skip


def convert_vit(state: Mapping[str, Tensor], out_blocks: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of ``LwDetrViTBackbone`` with the names of ``WindowedViT``.

    Blocks after the last that is given out are never used, there or here, and are left out; so is the position of
    a class token, which this network does not have.

    Args:
        state: Its state dict.
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
        converted[f"scales.{number}.{renamed(name, SCALE) or name}"] = value
    return converted


def rename_block(key: str, names: Mapping[str, str], depth: int) -> str | None:
    """Return our name of a block's parameter, None for a block beyond ``depth``; other keys as they are."""
    found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*?)((?:\.weight|\.bias)?)", key)
    if not found:
        return key
    if int(found[1]) >= depth:
        return None
    return f"layers.{found[1]}.{names.get(found[2], found[2])}{found[3]}"


def position_table(positions: Tensor) -> Tensor:
    """Return learned positions ``(1, 1 + patches, channels)`` of a square grid as a map, without the first."""
    patches = positions[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (side, side)).contiguous()

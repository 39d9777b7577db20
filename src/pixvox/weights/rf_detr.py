"""RF-DETR's weights in the form of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pixvox.weights.lw_detr import position_table, rename_block

DINO_BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "attention.q_proj": "query", "attention.k_proj": "key",
    "attention.v_proj": "value", "attention.o_proj": "output", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
    "layer_scale1.lambda1": "scale1", "layer_scale2.lambda1": "scale2",
}  # fmt: skip


def convert_dinov2(state: Mapping[str, Tensor], out_blocks: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of ``RfDetrDinov2Backbone`` with the names of ``WindowedViT``.

    The class token and its position are only ever added: here they are one parameter. The token of masked
    patches, which serves pretraining alone, and blocks after the last that is given out are left out.

    Args:
        state: Its state dict.
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

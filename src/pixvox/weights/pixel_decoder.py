"""Weights of multi-scale deformable pixel decoders, which several families share.

The reference has its levels coarse to fine, here they are fine to coarse: everything that has a level axis is
turned round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from pixvox.weights.renaming import Rename, renamed, reorder_levels

_ATTENTION = r"(sampling_offsets|attention_weights|value_proj|output_proj)"


def _finer(match: re.Match[str]) -> str:
    """Return the name of a part of the way down: the reference counts its levels from 1, with norms apart."""
    part = {"adapter": "lateral", "layer": "output"}[match[1]]
    layer = {"": "0", "0.": "0", "1.": "1", "norm.": "1"}[match[3]]
    return f"{part}.{int(match[2]) - 1}.{layer}.{match[4]}"


OFFICIAL: list[Rename] = [
    (r"input_proj\.(\d+)\.(.*)", r"projections.\1.\2"),
    (r"transformer\.level_embed", "level_embedding"),
    (
        rf"transformer\.encoder\.layers\.(\d+)\.self_attn\.{_ATTENTION}\.(.*)",
        r"encoder.layers.\1.attention.\2.\3",
    ),
    (r"transformer\.encoder\.(layers\.\d+\.(?:norm|linear)[12]\..*)", r"encoder.\1"),
    (r"(mask_features\..*)", r"\1"),
    (r"(adapter|layer)_(\d+)\.((?:norm\.)?)(weight|bias)", _finer),
]
"""Names in the authors' files of Mask2Former and Mask DINO, after ``sem_seg_head.pixel_decoder.``."""

TRANSFORMERS: list[Rename] = [
    (r"input_projections\.(\d+)\.(.*)", r"projections.\1.\2"),
    (r"level_embed", "level_embedding"),
    (rf"encoder\.layers\.(\d+)\.self_attn\.{_ATTENTION}\.(.*)", r"encoder.layers.\1.attention.\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.*)", r"encoder.layers.\1.norm1.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(.*)", r"encoder.layers.\1.norm2.\2"),
    (r"encoder\.layers\.(\d+)\.fc([12])\.(.*)", r"encoder.layers.\1.linear\2.\3"),
    (r"mask_projection\.(.*)", r"mask_features.\1"),
    (r"(adapter|layer)_(\d+)\.([01]\.)(weight|bias)", _finer),
]
"""Names in transformers' Mask2Former, after ``model.pixel_level_module.decoder.``."""


def convert_pixel_decoder(
    state: Mapping[str, Tensor], table: Sequence[Rename], num_heads: int, order: Sequence[int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict of our ``PixelDecoder``, and the keys that have no counterpart.

    Args:
        state: Weights of the reference's pixel decoder, the prefix taken off.
        table: ``OFFICIAL`` or ``TRANSFORMERS``.
        num_heads: Heads of its attention.
        order: For each of our levels, finest first, its place in the reference.
    """
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        name = renamed(key, table)
        if name is None:
            unknown.append(key)
            continue
        if name == "level_embedding":
            value = value[list(order)]
        elif ".sampling_offsets." in name or ".attention_weights." in name:
            value = reorder_levels(value, num_heads, order)
        elif name.startswith("projections."):
            _, place, rest = name.split(".", 2)
            name = f"projections.{list(order).index(int(place))}.{rest}"
        converted[name] = value
    return converted, unknown

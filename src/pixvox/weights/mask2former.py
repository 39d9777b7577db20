"""Weights of Mask2Former: transformers' folders and the authors' files.

Both references look at their levels from coarse to fine, here levels stand fine to coarse. The joint projections of
``nn.MultiheadAttention`` are three layers here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbones import within
from pixvox.weights.pixel_decoder import OFFICIAL, TRANSFORMERS, convert_pixel_decoder
from pixvox.weights.renaming import Rename, renamed, split_attention

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

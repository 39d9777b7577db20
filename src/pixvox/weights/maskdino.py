"""Weights of the authors' Mask DINO files.

The authors' decoder sees the levels finest first or coarsest first, by ``FEATURE_ORDER``; here levels stand finest
first. Their encoding of boxes begins with y, ours with x. Modules that are stored under several names are taken once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbone_choice import BackboneChoice, backbone_from_detectron2
from pixvox.weights.backbones import within
from pixvox.weights.checkpoint import load_state
from pixvox.weights.pixel_decoder import OFFICIAL, convert_pixel_decoder
from pixvox.weights.renaming import Rename, count, renamed, reorder_levels, split_attention

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

_NECK, _HEAD = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
_POINTS = 4
"""Points per head and level, fixed in the authors' code."""

_SIDE = 0.05
"""Sides of the boxes of the first level that their decoder sees; those of the next are twice as long."""

_UNUSED = ("criterion.empty_weight", "pixel_mean", "pixel_std")
"""Constants that are kept in some files."""

_TABLE: list[Rename] = [
    (r"enc_output\.(.*)", r"proposals.projection.\1"),
    (r"enc_output_norm\.(.*)", r"proposals.norm.\1"),
    (r"label_enc\.weight", "denoising.labels.weight"),
    (r"class_embed\.(.*)", r"class_branch.\1"),
    (r"_bbox_embed\.(.*)", r"box_branch.\1"),
    (r"mask_embed\.(.*)", r"mask_branch.\1"),
    (r"decoder_norm\.(.*)", r"decoder.norm.\1"),
    (r"decoder\.ref_point_head\.(.*)", r"positions.mlp.\1"),
    (r"(decoder\.layers\.\d+)\.self_attn\.(.*)", r"\1.self_attention.\2"),
    (r"(decoder\.layers\.\d+)\.cross_attn\.(.*)", r"\1.cross_attention.\2"),
    # Theirs counts the norms by the dropouts: the first one follows the attention to the tokens.
    (r"(decoder\.layers\.\d+)\.norm1\.(.*)", r"\1.norm2.\2"),
    (r"(decoder\.layers\.\d+)\.norm2\.(.*)", r"\1.norm1.\2"),
    (r"(decoder\.layers\.\d+\.(?:norm3|linear[12])\..*)", r"\1"),
]

_COPIES: list[Rename] = [
    (r"decoder\.norm\.(.*)", r"decoder_norm.\1"),
    (r"(?:decoder\.)?bbox_embed\.\d+\.(.*)", r"_bbox_embed.\1"),
]
"""Second names of modules that are shared, and the first."""


def matches(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    """Tell whether a checkpoint is one of the authors' Mask DINO."""
    return config is None and f"{_HEAD}label_enc.weight" in state


def build(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Return the model that one of the authors' files is of, with its weights, for instances.

    Such a file tells neither the number of queries (300, as all published ones) nor where they start: from the boxes
    of their masks, unless ``model.head.initial_boxes`` is set to ``"tokens"`` (the published models for panoptic
    segmentation, and those without "maskenhanced" in their name).

    Raises:
        WeightsError: If a key is missing or has no counterpart.
    """
    backbone = backbone_from_detectron2(within(state, "backbone."))
    theirs = within(state, _NECK), within(state, _HEAD)
    try:
        neck, unknown = convert_neck(theirs[0])
        order = decoder_order(theirs[0])
        head, strange = convert_head(theirs[1], order)
        model = _model(backbone, neck, head, order)
    except KeyError as error:
        raise WeightsError(f"{source}: the weights of Mask DINO lack {error}") from error
    known = ("backbone.", _NECK, _HEAD)
    unknown = [_NECK + key for key in unknown] + [_HEAD + key for key in strange]
    unknown += [key for key in state if not key.startswith(known) and key not in _UNUSED]
    if unknown:
        raise WeightsError(
            f"{source}: {len(unknown)} keys have no counterpart in Mask DINO here: "
            f"{', '.join(sorted(unknown)[:3])}{', ...' if len(unknown) > 3 else ''}{_hint(unknown)}"
        )
    named = {**{f"neck.{k}": v for k, v in neck.items()}, **{f"head.{k}": v for k, v in head.items()}}
    load_state(model, {**backbone.prefixed, **named}, source)
    return model


def _model(
    backbone: BackboneChoice, neck: Mapping[str, Tensor], head: Mapping[str, Tensor], order: Sequence[int]
) -> Segmenter:
    """Build the model, its sizes read off the weights."""
    from pixvox.models import create_model

    levels = len(order)
    extra = sum(neck[f"projections.{i}.0.weight"].shape[-1] > 1 for i in range(levels))
    model = create_model(
        head="maskdino",
        num_classes=len(head["class_branch.bias"]),
        normalizer="imagenet",
        num_layers=count(head, r"decoder\.layers\.(\d+)\."),
        num_heads=_heads(head["decoder.layers.0.cross_attention.attention_weights.bias"], levels),
        feedforward=len(head["decoder.layers.0.linear1.bias"]),
        proposal_sides=[_SIDE * 2**place for place in order],
        neck__channels=neck["level_embedding"].shape[1],
        neck__mask_channels=len(neck["mask_features.bias"]),
        neck__encoded_levels=levels - extra,
        neck__extra_levels=extra,
        neck__lateral_levels=count(neck, r"lateral\.(\d+)\."),
        neck__num_layers=count(neck, r"encoder\.layers\.(\d+)\."),
        neck__num_heads=_heads(neck["encoder.layers.0.attention.attention_weights.bias"], levels),
        neck__feedforward=len(neck["encoder.layers.0.linear1.bias"]),
        **backbone.arguments,
    )
    model.config["inference"] = {"resize": "shortest", "size": 800, "max_size": 1333}
    return model


def _hint(unknown: Sequence[str]) -> str:
    """Say what an unknown key may come from."""
    if any("query_feat" in key or "query_embed" in key for key in unknown):
        return "; models whose queries are learned instead of chosen (TWO_STAGE: False, LEARN_TGT: True) do not load"
    return ""


def convert_neck(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict of our ``PixelDecoder``, and the keys that have no counterpart.

    Args:
        state: The authors' weights after ``sem_seg_head.pixel_decoder.``.
    """
    order, places = _level_order(state)
    moved = {}
    for key, value in state.items():
        match = re.fullmatch(r"input_proj\.(\d+)\.(.*)", key)
        moved[f"input_proj.{places[int(match[1])]}.{match[2]}" if match else key] = value
    heads = _heads(state["transformer.encoder.layers.0.self_attn.attention_weights.bias"], len(order))
    return convert_pixel_decoder(moved, OFFICIAL, heads, order)


def convert_head(state: Mapping[str, Tensor], order: Sequence[int]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict of our ``MaskDINO``, and the keys that have no counterpart.

    Args:
        state: The authors' weights after ``sem_seg_head.predictor.``.
        order: For each of our levels, finest first, its place among the tokens of their decoder.
    """
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    heads = _heads(state["decoder.layers.0.cross_attn.attention_weights.bias"], len(order))
    for key, value in split_attention(state).items():
        first = renamed(key, _COPIES)
        if first is not None and first in state and torch.equal(state[first], value):
            continue
        name = renamed(key, _TABLE)
        if name is None:
            unknown.append(key)
            continue
        if ".sampling_offsets." in name or ".attention_weights." in name:
            value = reorder_levels(value, heads, order)
        elif name == "positions.mlp.layers.0.weight":
            y, x, *sides = value.chunk(4, dim=1)
            value = torch.cat([x, y, *sides], dim=1)
        converted[name] = value
    return converted, unknown


def decoder_order(neck: Mapping[str, Tensor]) -> list[int]:
    """Return for each of our levels, finest first, its place among the tokens of the authors' decoder.

    Their decoder turns the order of their encoder round.
    """
    order, _ = _level_order(neck)
    return [len(order) - 1 - place for place in order]


def _level_order(neck: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """Return for each of our levels its place in their encoder, and for each of their projections its place there.

    Backbone levels are projected by 1x1 convolutions, finest first or, in the order ``high2low``, coarsest first; the
    levels that are added, by 3x3 convolutions, each coarser than the last.
    """
    kernels = [neck[f"input_proj.{i}.0.weight"] for i in range(len(neck["transformer.level_embed"]))]
    backbone = [kernel for kernel in kernels if kernel.shape[-1] == 1]
    given, extra = len(backbone), len(kernels) - len(backbone)
    if extra > 1:
        raise WeightsError(
            f"this Mask DINO adds {extra} levels to the backbone's, and the authors' code mixes up their positions; "
            "files with one such level or none can be converted"
        )
    if given > 1 and backbone[0].shape[1] > backbone[-1].shape[1]:
        places = [extra + i for i in range(given)] + list(range(extra))
        return list(range(len(kernels) - 1, -1, -1)), places
    return list(range(len(kernels))), list(range(len(kernels)))


def _heads(attention_bias: Tensor, levels: int) -> int:
    return attention_bias.shape[0] // (levels * _POINTS)

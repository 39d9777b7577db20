"""Weights of mmdet's SOLO, Decoupled SOLO and SOLOv2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbone_choice import BackboneChoice, resnet_of
from pixvox.weights.backbones import within
from pixvox.weights.checkpoint import load_state
from pixvox.weights.renaming import Rename, count, renamed

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

_HEAD = "mask_head."
_PARTS = ("backbone.", "neck.", _HEAD)
_CONV = {"conv": 0, "gn": 1, "bn": 1}
"""Places of the layers of mmdet's ``ConvModule`` in ours."""


def _in_tower(ours: str, index: str, layer: str, rest: str) -> str:
    return f"{ours}.{index}.{_CONV[layer]}.{rest}"


_AXES = {"y": 0, "x": 1}

_TABLE: list[Rename] = [
    (r"cls_convs\.(\d+)\.(conv|gn)\.(weight|bias)", lambda m: _in_tower("class_convs", *m.groups())),
    (r"conv_cls\.(.*)", r"classifier.\1"),
    (r"mask_convs\.(\d+)\.(conv|gn)\.(weight|bias)", lambda m: _in_tower("mask_convs", *m.groups())),
    (r"conv_mask_list\.(\d+)\.(.*)", r"mask_layers.\1.\2"),
    (
        r"mask_convs_([xy])\.(\d+)\.(conv|gn)\.(weight|bias)",
        lambda m: _in_tower(f"mask_convs.{_AXES[m[1]]}", m[2], m[3], m[4]),
    ),
    (r"conv_mask_list_([xy])\.(\d+)\.(.*)", lambda m: f"mask_layers.{m[2]}.{_AXES[m[1]]}.{m[3]}"),
    (r"kernel_convs\.(\d+)\.(conv|gn)\.(weight|bias)", lambda m: _in_tower("kernel_convs", *m.groups())),
    (r"conv_kernel\.(.*)", r"kernel.\1"),
    (
        r"mask_feature_head\.convs_all_levels\.(\d+)\.conv(\d+)\.(conv|gn)\.(weight|bias)",
        lambda m: _in_tower(f"pixels.levels.{m[1]}.convs", m[2], m[3], m[4]),
    ),
    (
        r"mask_feature_head\.conv_pred\.(conv|gn)\.(weight|bias)",
        lambda m: f"pixels.output.{_CONV[m[1]]}.{m[2]}",
    ),
]


def matches(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    """Tell whether a checkpoint is one of mmdet's SOLO family."""
    return config is None and f"{_HEAD}conv_cls.weight" in state


def build(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Return the model that one of mmdet's files is of, with its weights.

    Such a file does not tell the ranges of sizes of its levels, which only training uses; those of the paper are taken.
    Kernels of more than one pixel and deformable convolutions have no counterpart.

    Raises:
        WeightsError: If a key is missing or has no counterpart.
    """
    backbone = resnet_of({f"network.{key}": value for key, value in within(state, "backbone.").items()})
    neck, strange = convert_neck(within(state, "neck."))
    head, unknown = convert_head(within(state, _HEAD))
    unknown = ["neck." + key for key in strange] + [_HEAD + key for key in unknown]
    unknown += [key for key in state if not key.startswith(_PARTS)]
    if unknown:
        raise WeightsError(
            f"{source}: {len(unknown)} keys have no counterpart in the SOLO heads here: "
            f"{', '.join(sorted(unknown)[:3])}{', ...' if len(unknown) > 3 else ''}"
        )
    try:
        model = _model(backbone, neck, head)
    except KeyError as error:
        raise WeightsError(f"{source}: the weights of SOLO lack {error}") from error
    named = {**{f"neck.{k}": v for k, v in neck.items()}, **{f"head.{k}": v for k, v in head.items()}}
    load_state(model, {**backbone.prefixed, **named}, source)
    return model


def convert_head(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict of our head, and the keys that have no counterpart.

    Args:
        state: mmdet's weights after ``mask_head.``.
    """
    converted, unknown = {}, []
    for key, value in state.items():
        name = renamed(key, _TABLE)
        if name is None:
            unknown.append(key)
        else:
            converted[name] = value
    return converted, unknown


def convert_neck(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict of our ``FPN``, and the keys that have no counterpart.

    Args:
        state: mmdet's weights after ``neck.``.
    """
    converted, unknown = {}, []
    names = {"lateral_convs": "lateral", "fpn_convs": "output"}
    for key, value in state.items():
        match = re.fullmatch(r"(lateral_convs|fpn_convs)\.(\d+)\.conv\.(.*)", key)
        if match is None:
            unknown.append(key)
        else:
            converted[f"{names[match[1]]}.{match[2]}.{match[3]}"] = value
    return converted, unknown


def _model(backbone: BackboneChoice, neck: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> Segmenter:
    """Build the model, its sizes read off the weights."""
    from pixvox.models import create_model

    options: dict[str, Any] = {
        "channels": len(head["class_convs.0.0.weight"]),
        "num_convs": count(head, r"class_convs\.(\d+)\."),
    }
    if "kernel.weight" in head:
        kind = "solov2"
        options["mask_channels"] = len(head["pixels.levels.0.convs.0.0.weight"])
        options["kernel_channels"] = len(head["kernel.bias"])
        options["mask_levels"] = count(head, r"pixels\.levels\.(\d+)\.")
    elif "mask_layers.0.weight" in head:
        kind = "solo"
        options["num_grids"] = _each(head, "mask_layers.{}.bias", r"mask_layers\.(\d+)\.", root=2)
    else:
        kind = "decoupled_solo"
        options["num_grids"] = _each(head, "mask_layers.{}.0.bias", r"mask_layers\.(\d+)\.")
    model = create_model(
        head=kind,
        num_classes=len(head["classifier.bias"]),
        normalizer="imagenet",
        neck__out_channels=len(neck["lateral.0.weight"]),
        **backbone.arguments,
        **options,
    )
    model.config["inference"] = {"resize": "shortest", "size": 800, "max_size": 1333}
    return model


def _each(state: Mapping[str, Tensor], bias: str, pattern: str, root: int = 1) -> list[int]:
    """Return the cells along each axis of each level, by the biases of its maps."""
    return [round(len(state[bias.format(level)]) ** (1 / root)) for level in range(count(state, pattern))]

"""Names of published backbones' weights, turned into ours; each function takes and returns state dicts of one backbone.

A function takes the weights of the backbone alone: strip the prefix that they have in a whole model first, as with
``within(state, "model.pixel_level_module.encoder.")``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pixvox.errors import WeightsError

if TYPE_CHECKING:
    from pixvox.backbones.swin import Swin

_Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

_BUFFERS = ("relative_position_index", "attn_mask", "num_batches_tracked")
"""Kept in some files, computed or meaningless here."""

_SWIN_TRANSFORMERS = [
    (r"^(?:swin\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:swin\.)?embeddings\.norm\.", "patch_embed.norm."),
    (r"\.attention\.(?:self\.|relative_position_bias\.)relative_position_bias_table$",
     ".attn.relative_position_bias_table"),
    (r"\.attention\.(?:self\.)?(query|key|value|[qkv]_proj)\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"(\.blocks\.\d+)\.(?:output\.dense|mlp\.fc2)\.", r"\1.mlp.fc2."),
    (r"^(?:swin\.)?encoder\.layers\.", "layers."),
]  # fmt: skip
"""transformers' names, those of its files and those of its modules."""

_RESNET_TRANSFORMERS: _Renames = [
    (r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    (r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    (r"^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d+)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d+)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
]  # fmt: skip
_RESNET_DETECTRON2: _Renames = [
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d+)\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
]  # fmt: skip
_CONVNEXT_TRANSFORMERS: _Renames = [
    (r"^(?:convnext\.)?embeddings\.patch_embeddings\.", "network.stem.0."),
    (r"^(?:convnext\.)?embeddings\.layernorm\.", "network.stem.1."),
    (r"^(?:convnext\.)?encoder\.stages\.(\d+)\.layers\.", r"network.stages.\1.blocks."),
    (r"^(?:convnext\.)?encoder\.stages\.(\d+)\.downsampling_layer\.", r"network.stages.\1.downsample."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
]


def within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def swin_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' weights for detection (Mask2Former's and Mask DINO's ``backbone.*``): names as here."""
    return {key: value for key, value in state.items() if not key.endswith(_BUFFERS)}


def swin_from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's weights; the classifier and its norm are left out.

    timm keeps a merge with the level that it leads to, the authors with the one before.
    """
    converted = {}
    for key, value in swin_from_official(state).items():
        if key.startswith(("head.", "norm.")):
            continue
        key = re.sub(r"^layers_(\d+)\.", r"layers.\1.", key)  # how timm calls them in a feature extractor
        key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        converted[key] = value
    return converted


def swin_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of transformers' ``SwinBackbone``, by the names of its modules or of its files.

    Its norm after the last level, which the backbone does not use, is left out.

    Raises:
        WeightsError: If a key is not known, or one of query, key and value is missing.
    """
    converted: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for key, value in swin_from_official(state).items():
        if re.match(r"^(?:swin\.)?layernorm\.", key):
            continue
        name = _swin_name(key)
        part = re.match(r"^(.*\.attn\.)(q|k|v)(?:uery|ey|alue|_proj)\.(weight|bias)$", name)
        if part:
            thirds.setdefault(f"{part[1]}qkv.{part[3]}", {})[part[2]] = value
        else:
            converted[name] = value
    for name, parts in thirds.items():
        missing = [part for part in "qkv" if part not in parts]
        if missing:
            raise WeightsError(
                f"{name}: the file lacks {' and '.join(missing)} of query (q), key (k), value (v)"
            )
        converted[name] = torch.cat([parts[part] for part in "qkv"])
    return converted


def _swin_name(key: str) -> str:
    norm = re.match(r"^hidden_states_norms\.stage(\d+)\.(weight|bias)$", key)
    if norm:
        return f"norm{int(norm[1]) - 1}.{norm[2]}"
    name = key
    for pattern, replacement in _SWIN_TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    if not name.startswith(("patch_embed.", "layers.")):
        raise WeightsError(f"transformers' key {key!r} has no counterpart in a Swin backbone")
    return name


def lift_swin(state: Mapping[str, Tensor], model: Swin) -> dict[str, Tensor]:
    """Return weights for images fitted to ``model``: as they are in 2-D, lifted for volumes.

    A volume of equal slices, in whole patches, merges and windows along depth, then gives what a slice gives: the
    patch embedding reads the centre slice of a patch, the bias does not depend on depth, merges average over depth.

    Args:
        state: Weights of a 2-D Swin, with our names.
        model: The backbone that they are for.
    """
    own = model.state_dict()
    if model.spatial_dims == 2:
        return dict(state)
    lifted = {}
    for key, value in state.items():
        target = own.get(key)
        if target is None or target.shape == value.shape:
            lifted[key] = value
        elif key == "patch_embed.proj.weight":
            lifted[key] = torch.zeros_like(target)
            lifted[key][:, :, target.shape[2] // 2] = value
        elif key.endswith("relative_position_bias_table"):
            lifted[key] = value.repeat(target.shape[0] // value.shape[0], 1)
        else:
            lifted[key] = _lift_merge(value, target)
    return lifted


def _lift_merge(value: Tensor, target: Tensor) -> Tensor:
    """Repeat what a merge learned for each token of a group along depth; its sums become means over depth."""
    depth = target.shape[-1] // value.shape[-1]
    groups = value.reshape(*value.shape[:-1], 4, -1).repeat_interleave(depth, dim=-2).flatten(-2)
    return groups / depth if value.dim() == 2 else groups


def convnext_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of transformers' ``ConvNextBackbone``, with its norms of the stages given out.

    Raises:
        WeightsError: If a key is not known.
    """
    stages = sorted(
        {m[1] for m in (re.match(r"hidden_states_norms\.stage(\d+)\.", key) for key in state) if m}
    )
    converted = {}
    for key, value in state.items():
        name = re.sub(
            r"^hidden_states_norms\.stage(\d+)\.", lambda m: f"level_norms.{stages.index(m[1])}.", key
        )
        for pattern, replacement in _CONVNEXT_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        if re.match(r"^(?:convnext\.)?layernorm\.", key):  # after the last stage, before a classifier
            continue
        if not name.startswith(("network.", "level_norms.")):
            raise WeightsError(f"transformers' key {key!r} has no counterpart in a ConvNeXt backbone")
        converted[name] = value
    return converted


def resnet_from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of timm's or torchvision's ResNet; the classifier is left out."""
    return _resnet(state, [], "timm's")


def resnet_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of transformers' ``ResNetBackbone``.

    Raises:
        WeightsError: If a key is not known.
    """
    return _resnet(state, _RESNET_TRANSFORMERS, "transformers'")


def resnet_from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of detectron2's ResNet (Mask2Former's and Mask DINO's ``backbone.*``).

    Its frozen batch norms are batch norms under ``freeze_norms=True``; its files of MSRA's weights want
    ``stride_in_1x1=True`` too, those of Mask2Former and Mask DINO do not.

    Raises:
        WeightsError: If a key is not known.
    """
    return _resnet(state, _RESNET_DETECTRON2, "detectron2's")


def _resnet(
    state: Mapping[str, Tensor],
    renames: _Renames,
    whose: str,
) -> dict[str, Tensor]:
    converted = {}
    for key, value in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        name = key
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if not re.match(r"^(conv1|bn1|layer\d+\.\d+\.(conv\d|bn\d|downsample\.[01]))\.\w+$", name):
            raise WeightsError(f"{whose} key {key!r} has no counterpart in a ResNet backbone")
        converted[f"network.{name}"] = value
        if name.endswith(".running_var"):
            # Not in every file, and without meaning where statistics are given: a fresh count fits.
            count = f"network.{name.removesuffix('running_var')}num_batches_tracked"
            converted[count] = torch.zeros((), dtype=torch.int64)
    return converted

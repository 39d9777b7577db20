"""Which backbone a foreign model has: our name for it, its options, and its weights under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbones import (
    convnext_from_transformers,
    resnet_from_detectron2,
    resnet_from_transformers,
    swin_from_official,
    swin_from_transformers,
)
from pixvox.weights.renaming import count

_CONVNEXTS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "tiny",
    (96, (3, 3, 27, 3)): "small",
    (128, (3, 3, 27, 3)): "base",
    (192, (3, 3, 27, 3)): "large",
    (256, (3, 3, 27, 3)): "xlarge",
}
"""Published sizes of ConvNeXt: channels of the first stage and blocks of each."""


@dataclass
class BackboneChoice:
    """A backbone as ``create_model`` takes it.

    Args:
        name: Name of its configuration.
        options: Its options.
        state: Its weights.
    """

    name: str
    options: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``create_model`` that build it."""
        return {"backbone": self.name, **{f"backbone__{key}": value for key, value in self.options.items()}}

    @property
    def prefixed(self) -> dict[str, Tensor]:
        """The weights as a whole model calls them."""
        return {f"backbone.{key}": value for key, value in self.state.items()}


def backbone_from_transformers(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> BackboneChoice:
    """Return the backbone that a ``backbone_config`` of transformers describes.

    Args:
        config: The ``backbone_config``; what it leaves out has transformers' defaults.
        state: Weights of the backbone, the prefix taken off.

    Raises:
        WeightsError: If its kind has no counterpart.
    """
    kind = config.get("model_type", "swin")
    if kind == "swin":
        converted = swin_from_transformers(state)
        options = _swin_sizes(converted)
        options["drop_path"] = config.get("drop_path_rate", 0.1)
        options["out_levels"] = [stage + 1 for stage in _stages(config, len(options["depths"]))]
        return BackboneChoice("swin", options, converted)
    if kind == "resnet":
        if config.get("hidden_act", "relu") != "relu":
            raise WeightsError(
                f"a ResNet with {config['hidden_act']} instead of ReLU has no counterpart here"
            )
        converted = resnet_from_transformers(state)
        sizes = _resnet_sizes(converted)
        early = config.get("downsample_in_first_stage", False)
        options = {
            **sizes,
            "out_levels": [
                stage + (2 if early else 1) if stage else 1 for stage in _stages(config, len(sizes["depths"]))
            ],
            "stride_in_first_stage": early,
            "stride_in_1x1": config.get("downsample_in_bottleneck", False),
        }
        return BackboneChoice("custom_resnet", options, converted)
    if kind == "convnext":
        converted = convnext_from_transformers(state)
        options = {
            "variant": _convnext_variant(converted),
            "drop_path": config.get("drop_path_rate", 0.0),
            "out_levels": [stage + 1 for stage in _stages(config, 4)],
            "level_norms": True,
        }
        return BackboneChoice("convnext", options, converted)
    raise WeightsError(
        f"a backbone of model_type={kind!r} has no counterpart here; there are swin, resnet and convnext"
    )


def _stages(config: Mapping[str, Any], count: int) -> list[int]:
    """Return the numbers of the stages that are given out."""
    names: Sequence[str] | None = config.get("out_features")
    if not names:
        return list(range(1, count + 1))
    stages = ["stem", *(f"stage{i + 1}" for i in range(count))]
    return sorted(stages.index(name) for name in names)


def backbone_from_detectron2(state: Mapping[str, Tensor]) -> BackboneChoice:
    """Return the backbone of a model of detectron2's kind, as told by its weights alone.

    Args:
        state: Weights of the backbone, the prefix ``backbone.`` taken off.

    Raises:
        WeightsError: If it is neither a Swin nor a ResNet.
    """
    if "patch_embed.proj.weight" in state:
        converted = swin_from_official(state)
        options = _swin_sizes(converted)
        options["out_levels"] = [
            i + 2 for i in range(len(options["depths"])) if f"norm{i}.weight" in converted
        ]
        return BackboneChoice("swin", options, converted)
    if "stem.conv1.weight" in state:
        return resnet_of(resnet_from_detectron2(state))
    known = ", ".join(sorted(state)[:3])
    raise WeightsError(f"the backbone ({known}, ...) is neither a Swin nor a ResNet of detectron2's names")


def resnet_of(state: Mapping[str, Tensor]) -> BackboneChoice:
    """Return the ResNet of weights under our names, its norms frozen, as detection models are trained.

    Raises:
        WeightsError: If its weights lack what tells its sizes.
    """
    return BackboneChoice("custom_resnet", {**_resnet_sizes(state), "freeze_norms": True}, dict(state))


def _swin_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a Swin that its weights, under our names, tell."""
    depths = _depths(state, "layers.{}.blocks.", 0)
    tables = [
        _weight(state, f"layers.{level}.blocks.0.attn.relative_position_bias_table")
        for level in range(len(depths))
    ]
    return {
        "channels": len(_weight(state, "patch_embed.proj.weight")),
        "depths": depths,
        "num_heads": [table.shape[1] for table in tables],
        "window": (round(tables[0].shape[0] ** 0.5) + 1) // 2,
    }


def _convnext_variant(state: Mapping[str, Tensor]) -> str:
    """Return the name of the published size that weights, under our names, are of."""
    depths = [count(state, rf"network\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4)]
    width = len(_weight(state, "network.stem.0.weight"))
    try:
        return _CONVNEXTS[width, tuple(depths)]
    except KeyError:
        raise WeightsError(
            f"a ConvNeXt of {width} channels and {depths} blocks is none of the published sizes: "
            f"{', '.join(_CONVNEXTS.values())}"
        ) from None


def _resnet_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a ResNet that its weights, under our names, tell."""
    depths = _depths(state, "network.layer{}.", 1)
    last = "conv3" if "network.layer1.0.conv3.weight" in state else "conv2"
    return {
        "stem_channels": len(_weight(state, "network.conv1.weight")),
        "channels": [
            len(_weight(state, f"network.layer{i + 1}.0.{last}.weight")) for i in range(len(depths))
        ],
        "depths": depths,
        "block": "bottleneck" if last == "conv3" else "basic",
    }


def _depths(state: Mapping[str, Tensor], stage: str, first: int) -> list[int]:
    """Return how many blocks each stage has; ``stage`` is what the keys of one begin with, ``{}`` its number."""
    stages = count(state, re.escape(stage).replace(r"\{\}", r"(\d+)"))
    if not stages:
        raise WeightsError(f"the weights of the backbone lack {stage.format(first)}*")
    return [
        count(state, re.escape(stage.format(number)) + r"(\d+)\.") for number in range(first, first + stages)
    ]


def _weight(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise WeightsError(f"the weights of the backbone lack what is here called {key}")
    return state[key]

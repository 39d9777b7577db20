"""Which backbone a foreign model has: our name for it, its options, and its weights under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.backbones import (
    resnet_from_detectron2,
    resnet_from_transformers,
    swin_from_official,
    swin_from_transformers,
)


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
        depths = list(config.get("depths", (2, 2, 6, 2)))
        options = {
            "channels": config.get("embed_dim", 96),
            "depths": depths,
            "num_heads": list(config.get("num_heads", (3, 6, 12, 24))),
            "window": config.get("window_size", 7),
            "drop_path": config.get("drop_path_rate", 0.1),
            "out_levels": _stages(config, len(depths)),
        }
        return BackboneChoice("swin", options, swin_from_transformers(state))
    if kind == "resnet":
        if config.get("hidden_act", "relu") != "relu":
            raise WeightsError(
                f"a ResNet with {config['hidden_act']} instead of ReLU has no counterpart here"
            )
        depths = list(config.get("depths", (3, 4, 6, 3)))
        options = {
            "stem_channels": config.get("embedding_size", 64),
            "channels": list(config.get("hidden_sizes", (256, 512, 1024, 2048))),
            "depths": depths,
            "block": config.get("layer_type", "bottleneck"),
            "out_levels": _stages(config, len(depths)),
            "stride_in_first_stage": config.get("downsample_in_first_stage", False),
            "stride_in_1x1": config.get("downsample_in_bottleneck", False),
        }
        return BackboneChoice("custom_resnet", options, resnet_from_transformers(state))
    raise WeightsError(
        f"a backbone of model_type={kind!r} has no counterpart here; there are swin and resnet"
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
        depths = _counts(state, r"layers\.(\d+)\.blocks\.(\d+)\.")
        tables = [
            state[f"layers.{level}.blocks.0.attn.relative_position_bias_table"]
            for level in range(len(depths))
        ]
        options = {
            "channels": state["patch_embed.proj.weight"].shape[0],
            "depths": depths,
            "num_heads": [table.shape[1] for table in tables],
            "window": (round(tables[0].shape[0] ** 0.5) + 1) // 2,
            "out_levels": [i + 1 for i in range(len(depths)) if f"norm{i}.weight" in state],
        }
        return BackboneChoice("swin", options, swin_from_official(state))
    if "stem.conv1.weight" in state:
        depths = _counts(state, r"res(\d+)\.(\d+)\.")
        last = "conv3" if "res2.0.conv3.weight" in state else "conv2"
        options = {
            "stem_channels": state["stem.conv1.weight"].shape[0],
            "channels": [state[f"res{i + 2}.0.{last}.weight"].shape[0] for i in range(len(depths))],
            "depths": depths,
            "block": "bottleneck" if last == "conv3" else "basic",
            "norm": "frozen",  # detectron2 trains ResNets with frozen norms unless told otherwise
        }
        return BackboneChoice("custom_resnet", options, resnet_from_detectron2(state))
    known = ", ".join(sorted(state)[:3])
    raise WeightsError(f"the backbone ({known}, ...) is neither a Swin nor a ResNet of detectron2's names")


def _counts(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Return how many blocks each stage has, by the two numbers in a key."""
    blocks: dict[int, int] = {}
    for key in state:
        match = re.match(pattern, key)
        if match:
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    return [blocks[stage] for stage in sorted(blocks)]

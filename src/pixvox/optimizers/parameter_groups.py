"""Which parameters share a learning rate and a weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from pixvox.errors import ConfigError


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    backbone_factor: float = 1.0,
    decay_norms_and_biases: bool = False,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Group the trainable parameters of a model.

    Norms, biases and other vectors are not decayed unless asked for, and the backbone may learn more slowly, the
    more so the nearer a block is to the image: "BEiT: BERT Pre-Training of Image Transformers" (Bao et al., 2022,
    https://arxiv.org/abs/2106.08254). Of ``L`` blocks, block ``l`` (from 1) learns with ``layer_decay ** (L + 1 - l)``
    of the backbone's rate, what comes before the blocks with ``layer_decay ** (L + 1)``, what lies between two of them
    (merges, strided layers) as the first of the two, all after the backbone with the full rate. A shared parameter is
    listed once; empty groups are left out.

    Args:
        model: A model whose feature extractor is its submodule ``backbone``.
        learning_rate: Peak learning rate of all but the backbone.
        backbone_factor: The backbone's share of it.
        decay_norms_and_biases: Decay every parameter.
        layer_decay: Ratio of the learning rates of a block and the next, in (0, 1].

    Raises:
        ConfigError: If ``layer_decay`` is out of range, or asked of a backbone that does not tell its blocks.

    Example:
        >>> model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        >>> groups = parameter_groups(model, 0.1, backbone_factor=0.5)
        >>> [(group["name"], group["lr"], group.get("weight_decay")) for group in groups][:2]
        [('backbone', 0.05, None), ('backbone, not decayed', 0.05, 0.0)]
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(
            f"method.layer_decay={layer_decay}: it is a ratio in (0, 1], such as 0.75; 1 is none"
        )
    depths = _depths(model) if layer_decay < 1 else {}
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = decay_norms_and_biases or parameter.dim() > 1
            place = (name.startswith("backbone."), depths.get(id(parameter), 0), decayed)
            groups.setdefault(place, []).append(parameter)
    last = max(depths.values(), default=0) + 1
    result = []
    for in_backbone, depth, decayed in sorted(
        groups, key=lambda place: (not place[0], place[1], not place[2])
    ):
        layer = f" block {depth}" if in_backbone and layer_decay < 1 else ""
        slower = layer_decay ** (last - depth) if layer_decay < 1 else 1.0
        share = backbone_factor * slower if in_backbone else 1.0
        group: dict[str, Any] = {
            "params": groups[in_backbone, depth, decayed],
            "name": ("backbone" if in_backbone else "model") + layer + ("" if decayed else ", not decayed"),
            "lr": learning_rate * share,
        }
        if not decayed:
            group["weight_decay"] = 0.0
        result.append(group)
    return result


def _depths(model: nn.Module) -> dict[int, int]:
    """Return the number of its block, from 1, for each parameter of the backbone; 0 for those before the blocks."""
    backbone: Any = model.get_submodule("backbone")
    blocks = backbone.blocks() if hasattr(backbone, "blocks") else []
    if not blocks:
        raise ConfigError(
            f"method.layer_decay: {type(backbone).__name__} does not tell its blocks(); leave it at 1, or use "
            "method.backbone_learning_rate_factor"
        )
    inside = {
        id(parameter): depth for depth, block in enumerate(blocks, 1) for parameter in block.parameters()
    }
    depths, reached = {}, 0
    for parameter in backbone.parameters():  # in the order in which they were built
        reached = inside.get(id(parameter), reached)
        depths[id(parameter)] = reached
    return depths

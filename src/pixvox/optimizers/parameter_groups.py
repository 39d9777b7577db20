"""Which parameters share a learning rate and a weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    backbone_factor: float = 1.0,
    decay_norms_and_biases: bool = False,
) -> list[dict[str, Any]]:
    """Group the trainable parameters of a model.

    Norms, biases and other vectors are not decayed unless asked for, and the backbone may learn more slowly.
    A shared parameter is listed once; empty groups are left out.

    Args:
        model: A model whose feature extractor is its submodule ``backbone``.
        learning_rate: Peak learning rate of all but the backbone.
        backbone_factor: The backbone's share of it.
        decay_norms_and_biases: Decay every parameter.

    Example:
        >>> model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        >>> groups = parameter_groups(model, 0.1, backbone_factor=0.5)
        >>> [(group["name"], group["lr"], group.get("weight_decay")) for group in groups][:2]
        [('backbone', 0.05, None), ('backbone, not decayed', 0.05, 0.0)]
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = decay_norms_and_biases or parameter.dim() > 1
            groups.setdefault((name.startswith("backbone."), decayed), []).append(parameter)
    result = []
    for in_backbone, decayed in sorted(groups, reverse=True):
        group: dict[str, Any] = {
            "params": groups[in_backbone, decayed],
            "name": ("backbone" if in_backbone else "model") + ("" if decayed else ", not decayed"),
            "lr": learning_rate * (backbone_factor if in_backbone else 1.0),
        }
        if not decayed:
            group["weight_decay"] = 0.0
        result.append(group)
    return result

"""timm's networks with timm's weights, or with those of a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.checkpoint import read_weights

_PREFIXES = ("teacher.", "segmenter.", "backbone.network.")
"""Before the names of a network's weights in a file of a whole model; a teacher is what a run gives out."""


def build_timm(
    name: str,
    pretrained: bool | str = False,
    in_channels: int = 3,
    meta: bool = False,
    **options: Any,
) -> Any:
    """Build a network of timm as an extractor of features whose unused parts are left out.

    Args:
        name: timm's name.
        pretrained: Load timm's weights, fetched once by timm, or those of a file at this path.
        in_channels: Channels of the images; other than 3 adapts the first layer's weights.
        meta: Do not allocate weights: to ask for channels and strides alone.
        options: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: If timm has no such network, or not with these options.
        WeightsError: If the weights are not found, or do not fit.
    """
    arguments = {"features_only": True, "feature_cls": "getter", "in_chans": in_channels, **options}
    with torch.device("meta" if meta else torch.get_default_device()):
        return create_timm(name, pretrained, **arguments)


def timm_weights(name: str, pretrained: bool | str, in_channels: int = 3) -> dict[str, Tensor]:
    """Return the weights of a whole network of timm by timm's names.

    Args:
        name: timm's name.
        pretrained: True for timm's weights, or the path of a file.
        in_channels: Channels of the images; other than 3 adapts the first layer's weights.

    Raises:
        WeightsError: If the weights are not found, or do not fit.
    """
    network: Any = create_timm(name, pretrained, in_chans=in_channels)
    state: dict[str, Tensor] = network.state_dict()
    return state


def create_timm(name: str, pretrained: bool | str = False, **arguments: Any) -> Any:
    """Build a network of timm.

    Args:
        name: timm's name.
        pretrained: Load timm's weights, fetched once by timm, or those of a file at this path.
        arguments: Of ``timm.create_model``.

    Raises:
        ValueError: If timm has no such network, or not with these arguments.
        WeightsError: If the weights are not found, or do not fit.
    """
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise ValueError(f"timm has no network {name!r}{hint}; timm.list_models() lists all")
    source = _source(name, pretrained) if pretrained else {}
    try:
        return timm.create_model(name, **arguments, **source)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name!r} does not take one of {', '.join(arguments)}: {error}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise ValueError(f"{name!r}: {error}") from error
        raise WeightsError(_missing(name, pretrained, error)) from error


def _source(name: str, pretrained: bool | str) -> dict[str, Any]:
    """Return the arguments of timm that say where weights come from."""
    if pretrained is True:
        return {"pretrained": True}
    return {
        "pretrained": True,
        "pretrained_cfg_overlay": {"state_dict": _of_network(Path(str(pretrained)), name)},
    }


def _of_network(path: Path, name: str) -> dict[str, Tensor]:
    """Return the weights of a network for images: out of a file of itself, or of a run or file of this project."""
    from pixvox.weights.loading import find_checkpoint

    state = read_weights(find_checkpoint(path))
    for prefix in _PREFIXES:
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = own or state
    if any(value.dim() == 5 for value in state.values()):
        raise WeightsError(
            f"{path}: these are weights of a network for volumes; pretrained= takes those of one for images, weights= "
            "those of a whole model"
        )
    return state


def _missing(name: str, pretrained: bool | str, error: Exception) -> str:
    if pretrained is not True:
        return f"{pretrained}: these are not the weights of timm's {name} ({error})"
    config = timm.get_pretrained_cfg(name)
    source = getattr(config, "hf_hub_id", None) or getattr(config, "url", None)
    if not source:
        return f"timm has no weights of {name!r}; set pretrained=false, or give the path of a file, pretrained=PATH"
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"the weights of {name!r} ({source}) are not in {HF_HUB_CACHE} and could not be fetched "
        f"({type(error).__name__}); without network, copy its model.safetensors to this machine and set "
        "pretrained=/path/of/model.safetensors, or set pretrained=false"
    )

"""Start a model from the weights of another one: what fits is taken, what does not is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pixvox.errors import WeightsError

_TOLD = 5
"""Weights that are named in a message."""


@dataclass(frozen=True)
class Transfer:
    """What became of the weights of a model.

    Args:
        taken: Names of those that were given a value.
        lifted: Names of those of them that came from a model for images: the centre slices of their kernels.
        adapted: Names of those of them that see the image and were made for another number of channels.
        misfits: Names of those whose shape is another one there, with both shapes: (own, other's).
        missing: Names of those that the other model does not have.
        unused: Names of the other model's that this one does not have.
    """

    taken: tuple[str, ...]
    lifted: tuple[str, ...]
    adapted: tuple[str, ...]
    misfits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in a sentence or two."""
        total = len(self.taken) + len(self.misfits) + len(self.missing)
        lifted = f", {len(self.lifted)} of them lifted to volumes" if self.lifted else ""
        adapted = f", {len(self.adapted)} adapted to other channels" if self.adapted else ""
        parts = [f"{len(self.taken)} of {total} weights taken{lifted}{adapted}"]
        shapes = [
            f"{name} ({list(own)} here, {list(other)} there)" for name, (own, other) in self.misfits.items()
        ]
        for names, what in (
            (shapes, "of another shape"),
            (self.missing, "not there"),
            (self.unused, "without use"),
        ):
            if names:
                more = ", ..." if len(names) > _TOLD else ""
                parts.append(f"{len(names)} {what}: {', '.join(names[:_TOLD])}{more}")
        return "; ".join(parts)


def transfer(model: nn.Module, path: str | Path) -> Transfer:
    """Copy the weights of a run or file that fit into ``model``, and return what did not.

    Weights fit that have the same name and shape; kernels of a model for images also fit those of one for volumes, as
    their centre slices, and kernels that see the image those of one for other channels.

    Args:
        model: The model to start, or a part of it.
        path: A run folder, a checkpoint, a file of weights or a folder of transformers; anything that ``pixvox.load``
            takes.

    Raises:
        WeightsError: If nothing fits, or the file cannot be read.

    Example:
        >>> import tempfile
        >>> from pixvox.models import create_model
        >>> from pixvox.weights.checkpoint import save_safetensors
        >>> parts = {"head": "fcn", "backbone": "simple", "hidden_channels": 8, "in_levels": [0]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_safetensors(create_model(**parts, num_classes=2), f"{folder}/model.safetensors")
        ...     result = transfer(create_model(**parts, num_classes=5), file)
        >>> sorted(result.misfits)
        ['head.classifiers.0.2.bias', 'head.classifiers.0.2.weight']
    """
    from pixvox.weights.loading import load_weights

    result = copy_fitting(model, load_weights(path))
    if not result.taken:
        raise WeightsError(f"{path}: none of its weights fit the model; {result}")
    return result


def copy_fitting(model: nn.Module, state: Mapping[str, Tensor]) -> Transfer:
    """Copy the weights that fit into ``model``; see ``transfer``."""
    own = model.state_dict()
    channels = getattr(model, "in_channels", None)
    taken, lifted, adapted, misfits = {}, [], [], {}
    for name, target in own.items():
        given = state.get(name)
        if given is None:
            continue
        value = given
        sees_image = name.startswith("backbone.") and value.dim() > 3 and target.shape[1] == channels
        if sees_image and value.shape[1] != channels:
            value = adapt_channels(value, target.shape[1])
        if value.dim() == 4 and target.dim() == 5 and value.shape == target[:, :, 0].shape:
            flat, value = value, torch.zeros_like(target)
            value[:, :, target.shape[2] // 2] = flat
        if value.shape != target.shape:
            misfits[name] = (tuple(target.shape), tuple(given.shape))
            continue
        taken[name] = value
        lifted += [name] if given.dim() != target.dim() else []
        adapted += [name] if given.dim() > 1 and given.shape[1] != target.shape[1] else []
    model.load_state_dict(taken, strict=False)
    # Counters of batches, which not every writer keeps, do not matter.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unused = [name for name in state if name not in own]
    return Transfer(tuple(taken), tuple(lifted), tuple(adapted), misfits, tuple(missing), tuple(unused))


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """Return a kernel that sees images of another number of channels, as timm does.

    A single channel has the sum of all; more repeat them, with weights such that the sum over channels stays.

    Args:
        kernel: ``(out, in, *kernel)``.
        channels: Those of the images.

    Example:
        >>> adapt_channels(torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1), 1).flatten().tolist()
        [6.0]
    """
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    index = torch.arange(channels, device=kernel.device) % kernel.shape[1]
    return kernel[:, index] * (kernel.shape[1] / channels)

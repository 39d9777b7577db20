"""Memory for time: forget what is inside a model's blocks and compute it again for the gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pixvox.errors import ConfigError
from pixvox.segmenter import Segmenter

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def recompute_blocks(model: Segmenter) -> list[nn.Module]:
    """Let the ``blocks()`` of backbone, neck and head keep their input alone while they learn.

    "Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016, https://arxiv.org/abs/1604.06174). The
    gradients are those of plain training: random numbers are drawn alike the second time, and statistics of batch
    norms move once.

    Args:
        model: The model; its weights and their names stay as they are.

    Returns:
        The blocks.

    Raises:
        ConfigError: If the model has no blocks that tell themselves.
    """
    blocks = [*model.backbone.blocks(), *model.neck.blocks(), *model.head.blocks()]
    if not blocks:
        raise ConfigError(
            f"gradient_checkpointing=true: neither {type(model.backbone).__name__} nor {type(model.head).__name__} "
            "has blocks() to compute twice; leave it false, or lower batch_size or image_size"
        )
    for block in blocks:
        # The attribute of the object comes before the method of its class.
        block.forward = MethodType(_forward_twice, block)
    return blocks


def _forward_twice(block: nn.Module, *inputs: Any) -> Any:
    once = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return once(*inputs)
    contexts = partial(_contexts, block)
    return checkpoint(once, *inputs, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _statistics_at_rest(block)


@contextlib.contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    """Let batch norms normalise by the batch without moving their running statistics a second time."""
    # With momentum 0 they keep what they hold; without statistics they would save other tensors than the first time.
    moving = [
        (module, module.momentum, None if count is None else count.clone())
        for module in block.modules()
        if isinstance(module, _BATCH_NORMS) and module.training and module.track_running_stats
        for count in (module.num_batches_tracked,)
    ]
    for module, _, _ in moving:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum, count in moving:
            module.momentum = momentum
            if count is not None and module.num_batches_tracked is not None:
                module.num_batches_tracked.copy_(count)

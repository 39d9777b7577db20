"""Count the arithmetic of a model by its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from pixvox.segmenter import Segmenter


def count_flops(model: Segmenter, size: Sequence[int], batch_size: int = 1) -> dict[str, int]:
    """Return the floating-point operations of a prediction, for each part and in total.

    Convolutions, matrix products and attention count, two operations per multiply-add; element-wise layers,
    sampling and suppression do not. Work that depends on what is in the image (regions) is that of noise.
    The model, its statistics and the random numbers of others are left as they were.

    Args:
        model: The model.
        size: Spatial size of the image in array order.
        batch_size: Images at a time.

    Example:
        >>> from pixvox.models import create_model
        >>> model = create_model(head="fcn", backbone="simple", num_classes=2)
        >>> counts = count_flops(model, (64, 96))
        >>> sorted(counts), counts["total"] == counts["backbone"] + counts["neck"] + counts["head"]
        (['backbone', 'head', 'neck', 'total'], True)
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch_size, model.in_channels, *size), generator=generator).to(device)
    modes = [(module, module.training) for module in model.modules()]
    # The counter hooks into gradients of what requires some, also where none are computed.
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    counter = FlopCounterMode(display=False)
    try:
        model.eval().requires_grad_(False)
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
            counter,
        ):
            model(images)
    finally:
        for module, training in modes:
            module.training = training
        for parameter in learning:
            parameter.requires_grad_(True)
    by_module = counter.get_flop_counts()
    counts = {
        part: sum(by_module.get(f"{type(model).__name__}.{part}", {}).values())
        for part in ("backbone", "neck", "head")
    }
    return {**counts, "total": counter.get_total_flops()}

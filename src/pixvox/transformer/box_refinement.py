"""How a predicted change moves a reference: two forms, and the branch that predicts the change.

Boxes are ``(cx, cy[, cz], w, h[, d])`` relative to the valid part of each image; a reference may be its centre alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.transformer.mlp import MLP

BoxForm = Callable[[Tensor, Tensor], Tensor]
"""``(reference, deltas) -> boxes``: one of the two functions below."""

_LARGEST_EXPONENT = 10.0


def inverse_sigmoid(x: Float[Tensor, "*shape"], eps: float = 1e-5) -> Float[Tensor, "*shape"]:
    """Return the logits of shares in [0, 1], which are kept ``eps`` away from both ends."""
    x = x.float().clamp(0, 1)
    return x.clamp(min=eps).log() - (1 - x).clamp(min=eps).log()


def move_in_logits(
    reference: Float[Tensor, "*queries coordinates"], deltas: Float[Tensor, "*queries sides"]
) -> Float[Tensor, "*queries sides"]:
    """Return ``sigmoid(inverse_sigmoid(reference) + deltas)``; a reference without sides moves the centre alone.

    Appendix A.4 of "Deformable DETR" (Zhu et al., 2020, https://arxiv.org/abs/2010.04159).

    Example:
        >>> move_in_logits(torch.tensor([0.5, 0.25]), torch.zeros(4)).tolist()
        [0.5, 0.25, 0.5, 0.5]
    """
    logits = inverse_sigmoid(reference)
    missing = deltas.shape[-1] - logits.shape[-1]
    return (F.pad(logits, (0, missing)) + deltas.float()).sigmoid()


def move_in_proportion(
    reference: Float[Tensor, "*queries sides"], deltas: Float[Tensor, "*queries sides"]
) -> Float[Tensor, "*queries sides"]:
    """Return centres moved by shares of the reference's sides, and sides times the exponential of their deltas.

    The form of "LW-DETR" (Chen et al., 2024, https://arxiv.org/abs/2406.03459); boxes may leave the image.

    Example:
        >>> move_in_proportion(torch.tensor([0.5, 0.5, 0.2, 0.4]), torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()
        [0.699999988079071, 0.5, 0.20000000298023224, 0.4000000059604645]
    """
    centre, sides = reference.float().chunk(2, dim=-1)
    shift, growth = deltas.float().chunk(2, dim=-1)
    # One wild delta must not make the losses infinite: beyond e^10 a box is wrong by any measure.
    return torch.cat([centre + shift * sides, growth.clamp(max=_LARGEST_EXPONENT).exp() * sides], dim=-1)


class BoxBranch(MLP):
    """Three layers that predict the change of a box, none at the start.

    Args:
        channels: Channels of the queries.
        spatial_dims: 2 or 3.
        side: Share of the image that the sides of a box measure at the start, for references without sides.
    """

    def __init__(self, channels: int, spatial_dims: int = 2, side: float = 0.5) -> None:
        super().__init__(channels, channels, 2 * spatial_dims, num_layers=3)
        weight, bias = self.layers[-1].parameters()
        nn.init.zeros_(weight)
        nn.init.zeros_(bias)
        with torch.no_grad():
            bias[spatial_dims:] = inverse_sigmoid(torch.tensor(side))

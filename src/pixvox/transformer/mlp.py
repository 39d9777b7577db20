"""A small multi-layer perceptron, as prediction branches of queries use it."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        in_features: Values of each input.
        hidden_features: Width of the layers between.
        out_features: Values of each output.
        num_layers: Linear layers.

    Example:
        >>> import torch
        >>> tuple(MLP(8, 16, 4, num_layers=3)(torch.zeros(2, 5, 8)).shape)
        (2, 5, 4)
    """

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, num_layers: int = 3
    ) -> None:
        super().__init__()
        widths = [in_features, *[hidden_features] * (num_layers - 1), out_features]
        self.layers = nn.ModuleList(
            nn.Linear(width, following) for width, following in itertools.pairwise(widths)
        )

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        """Return the output for each input."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        output: Tensor = self.layers[-1](x)
        return output

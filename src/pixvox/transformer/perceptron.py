"""A few linear layers, as query heads predict with them."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Linear layers with a ReLU between them.

    Args:
        in_features: Features of the input.
        hidden_features: Features of the hidden layers.
        out_features: Features of the output.
        num_layers: Linear layers.

    Example:
        >>> import torch
        >>> tuple(Perceptron(8, 16, 4, num_layers=3)(torch.zeros(2, 5, 8)).shape)
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

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed features."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        output: Tensor = self.layers[-1](x)
        return output

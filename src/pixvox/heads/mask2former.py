"""Mask2Former for images and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pixvox.heads.head import Outputs
from pixvox.heads.query_head import QueryHead
from pixvox.heads.query_predictions import QueryMasks, QueryPrediction
from pixvox.losses.query_classification import QueryClassification, SoftmaxWithNoObject
from pixvox.structures import Features, Targets
from pixvox.transformer.masked_decoder import MaskedDecoder

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
"""Of the losses and of the matching costs, in the paper."""


class Mask2Former(QueryHead):
    """Learned queries, each of which becomes a class and a mask: an object, or all of a class.

    "Masked-attention Mask Transformer for Universal Image Segmentation" (Cheng et al., 2021,
    https://arxiv.org/abs/2112.01527), for images and volumes. The finest level of the neck carries the masks;
    queries look at the others in turn, or at the finest itself when there is no other.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        num_queries: Queries: the most objects (or classes) that can be found in an image.
        channels: Channels of queries and tokens, a multiple of 4 and of ``num_heads``.
        num_layers: Layers of the decoder.
        num_heads: Heads of its attentions.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        project: Project the levels even where their channels fit.
        classification: How queries are classified; softmax with "no object" by default.
        costs: Weights of the matching costs ``class``, ``mask`` and ``dice``; those of the paper by default.
        weights: Weights of the losses of the same names.
        options: Further arguments of ``QueryHead``.

    Example:
        >>> import torch
        >>> head = Mask2Former((6, 8), ((4, 4), (8, 8)), 3, channels=8, num_queries=5, num_layers=2, num_heads=2)
        >>> levels = (torch.zeros(1, 6, 4, 6), torch.zeros(1, 8, 2, 3))
        >>> images, sizes = torch.zeros(1, 1, 16, 24), torch.tensor([[16, 24]])
        >>> outputs = head(Features(levels, ((4, 4), (8, 8)), images, (16, 24), sizes))
        >>> outputs["class_logits"].shape, outputs["mask_logits"].shape
        (torch.Size([1, 5, 4]), torch.Size([1, 5, 4, 6]))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        num_queries: int = 100,
        channels: int = 256,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.0,
        project: bool = False,
        classification: QueryClassification | None = None,
        costs: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        classification = classification or SoftmaxWithNoObject()
        super().__init__(
            spatial_dims, num_classes, classification, costs or WEIGHTS, weights or WEIGHTS, **options
        )
        self.first = min(1, len(in_channels) - 1)
        self.strides = tuple(tuple(stride) for stride in strides)
        self.decoder = MaskedDecoder(
            in_channels[self.first :], spatial_dims, in_channels[0], num_queries, channels, num_layers,
            num_heads, feedforward, dropout, project,
        )  # fmt: skip
        self.classifier = nn.Linear(channels, classification.num_logits(num_classes))
        classification.init_bias(self.classifier)

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the decoder."""
        return list(self.decoder.layers)

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return classes and masks of the queries, before the first layer and after each."""
        pixels = features.levels[0]
        steps = self.decoder(
            features.levels[self.first :], self.strides[self.first :], pixels, features.valid_sizes
        )
        predictions = [
            QueryPrediction(self.classifier(known), masks=QueryMasks(embeddings, pixels))
            for known, embeddings in steps
        ]
        return self.outputs(features, predictions, targets=targets)

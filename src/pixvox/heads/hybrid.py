"""Hybrid: a convolutional network, tokens of its finest map, and a transformer decoder, for images and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixvox.heads.head import Outputs
from pixvox.heads.query_head import QueryHead
from pixvox.heads.query_predictions import QueryMasks, QueryPrediction
from pixvox.layers import ConvNormAct, PerAxis, average_pool, conv, per_axis
from pixvox.losses.query_classification import QueryClassification, SoftmaxWithNoObject
from pixvox.ranges import check_at_least, check_shares
from pixvox.structures import Features, Targets
from pixvox.transformer.attention import check_heads
from pixvox.transformer.levels import Tokens
from pixvox.transformer.masked_decoder import outside_masks
from pixvox.transformer.mlp import MLP
from pixvox.transformer.positions import SinePositionalEncoding

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
"""Of the losses and of the matching costs."""


class Hybrid(QueryHead):
    """Learned queries that look at all tokens of one map, each of which becomes a class and a mask.

    The layers are those of "Attention Is All You Need" (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762), as
    ``torch.nn.TransformerDecoderLayer`` has them; queries as in "End-to-End Object Detection with Transformers" (Carion
    et al., 2020, https://arxiv.org/abs/2005.12872), masks as products of queries and pixels. The finest level of the
    neck is cut into patches, which become tokens with the sine of their place added, so that any size will do. Each
    query is matched to one object, and all layers learn.

    Args:
        in_channels: Channels of each level, finest first; the finest alone is used.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        num_queries: Queries: the most objects that can be found in an image.
        channels: Channels of queries and tokens, a multiple of 4 and of ``num_heads``.
        num_layers: Layers of the decoder.
        num_heads: Heads of its attentions.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        patch_size: Cells of the finest level that one token stands for along each axis: 1 or 2, or one per axis.
        masks_from: ``"features"`` gives masks the size of the finest level; ``"tokens"`` that of the tokens.
        mask_convs: 3x3 convolutions that refine the pixels of the masks.
        mask_channels: Channels that a query and a pixel are compared in; ``channels`` when None.
        masked_attention: A query looks only where its mask of the layer before is, as in "Masked-attention Mask
            Transformer" (Cheng et al., 2021, https://arxiv.org/abs/2112.01527): it learns in far fewer steps.
        norm: Normalisation of the convolutions, see ``pixvox.layers.norm``.
        classification: How queries are classified; softmax with "no object" by default.
        costs: Weights of the matching costs ``class``, ``mask`` and ``dice``; 2, 5 and 5 by default.
        weights: Weights of the losses of the same names.
        num_points: Points per mask in matching and loss; None takes every cell of the mask grid, which a coarse map
            allows.
        options: Further arguments of ``QueryHead``.

    Raises:
        ValueError: If ``patch_size`` or ``masks_from`` is none of these, or a number makes no sense.

    Example:
        >>> head = Hybrid((6,), ((4, 4),), 3, channels=8, num_queries=5, num_layers=2, num_heads=2, feedforward=8)
        >>> images, sizes = torch.zeros(1, 1, 12, 24), torch.tensor([[12, 24]])
        >>> outputs = head.eval()(Features((torch.zeros(1, 6, 3, 6),), ((4, 4),), images, (12, 24), sizes))
        >>> outputs["class_logits"].shape, outputs["mask_logits"].shape
        (torch.Size([1, 5, 4]), torch.Size([1, 5, 3, 6]))
    """

    predicts_boxes = False

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        num_queries: int = 100,
        channels: int = 384,
        num_layers: int = 6,
        num_heads: int = 6,
        feedforward: int = 2048,
        dropout: float = 0.1,
        patch_size: PerAxis = 2,
        masks_from: Literal["features", "tokens"] = "features",
        mask_convs: int = 0,
        mask_channels: int | None = None,
        masked_attention: bool = True,
        norm: str = "batch",
        classification: QueryClassification | None = None,
        costs: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        num_points: int | None = None,
        **options: Any,
    ) -> None:
        check_at_least(1, num_queries=num_queries)
        check_at_least(0, num_layers=num_layers, mask_convs=mask_convs)
        check_at_least(1, feedforward=feedforward)
        check_shares(dropout=dropout)
        check_heads(channels, num_heads)
        classification = classification or SoftmaxWithNoObject()
        super().__init__(
            in_channels[:1],
            spatial_dims,
            num_classes,
            classification,
            costs or WEIGHTS,
            weights or WEIGHTS,
            num_points,
            **options,
        )
        self.patch = per_axis(patch_size, spatial_dims, "patch_size")
        if not set(self.patch) <= {1, 2}:
            raise ValueError(f"patch_size must be 1 or 2 along each axis, got {patch_size}")
        if masks_from not in ("features", "tokens"):
            raise ValueError(f"masks_from must be 'features' or 'tokens', got {masks_from!r}")
        self.token_stride = tuple(step * side for step, side in zip(strides[0], self.patch, strict=True))
        self.masks_from = masks_from
        self.masked_attention = masked_attention
        self.num_heads = num_heads
        self.patchify = ConvNormAct(spatial_dims, in_channels[0], channels, self.patch, self.patch, norm)
        self.positions = SinePositionalEncoding(spatial_dims, channels)
        self.queries = nn.Parameter(torch.randn(num_queries, channels))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(channels, num_heads, feedforward, dropout, batch_first=True)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.classifier = nn.Linear(channels, classification.num_logits(num_classes))
        classification.init_bias(self.classifier)
        compared = mask_channels or channels
        self.mask_embedding = MLP(channels, channels, compared, 3)
        source = channels if masks_from == "tokens" else in_channels[0]
        refine = [ConvNormAct(spatial_dims, source, source, 3, 1, norm) for _ in range(mask_convs)]
        self.pixels = nn.Sequential(*refine, conv(spatial_dims, source, compared, 1))

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the decoder."""
        return list(self.layers)

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return classes and masks of the queries, before the first layer and after each."""
        features = self.placed(features)
        level = features.levels[0]
        patches = self.patchify(self._whole_patches(level))
        tokens = Tokens.of([patches], [self.token_stride], features.valid_sizes)
        places = self.positions(patches, tokens.valid_cells(0)).flatten(2).transpose(1, 2)
        memory = tokens.values + places.to(tokens.values.dtype)
        pixels, seen = self._mask_features(level, patches)
        queries = self.queries.expand(len(memory), -1, -1)
        predictions = [self._predict(queries, pixels)]
        for layer in self.layers:
            blocked, padding = self._blocked(predictions[-1], seen, tokens.padding)
            # In the order of the layer's parameters: checkpointing hands on no keywords.
            queries = layer(queries, memory, None, blocked, None, padding)
            predictions.append(self._predict(queries, pixels))
        return self.outputs(features, predictions, targets=targets)

    def _predict(self, queries: Tensor, pixels: Tensor) -> QueryPrediction:
        known = self.norm(queries)
        return QueryPrediction(self.classifier(known), masks=QueryMasks(self.mask_embedding(known), pixels))

    def _mask_features(self, level: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels that masks are made of, and their means over the patches, without gradient."""
        if self.masks_from == "features":
            pixels = self.pixels(level)
            return pixels, average_pool(self._whole_patches(pixels.detach()), self.patch, self.patch)
        if self._whole_patches(level).shape != level.shape:
            raise ValueError(
                f"masks_from='tokens': a map of size {tuple(level.shape[2:])} is not whole patches of {self.patch}; "
                "choose masks_from='features', or patch_size=1 along the odd axis"
            )
        pixels = self.pixels(patches)
        return pixels, pixels.detach()

    def _blocked(
        self, prediction: QueryPrediction, seen: Float[Tensor, "batch channels *grid"], padding: Tensor | None
    ) -> tuple[Bool[Tensor, "heads queries tokens"] | None, Bool[Tensor, "batch tokens"] | None]:
        """Return where each query must not look, for each head, and what none may look at."""
        if not self.masked_attention or prediction.masks is None:
            return None, padding
        outside = outside_masks(prediction.masks.embeddings, seen.flatten(2), padding)
        return outside.repeat_interleave(self.num_heads, dim=0), None

    def _whole_patches(self, x: Tensor) -> Tensor:
        """Pad the far end of each axis to whole patches."""
        extra = [-length % side for length, side in zip(x.shape[2:], self.patch, strict=True)]
        return F.pad(x, [side for length in reversed(extra) for side in (0, length)]) if any(extra) else x

"""What heads with queries predict: classes, boxes, and masks that are products of queries and pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class QueryMasks:
    """Masks of queries, kept as the two factors of their logits: ``sum over k of embeddings * pixels``.

    Interpolation is linear, so the logits at any place are the products of the embeddings with the interpolated
    pixel features; a map of every query is never needed to match or to learn.

    Args:
        embeddings: One vector per query.
        pixels: One vector per cell of a grid that covers the padded images. A bias is one more channel: of the
            biases here, of ones there.

    Example:
        >>> masks = QueryMasks(torch.tensor([[[2.0]]]), torch.tensor([[[[1.0, -3.0]]]]))
        >>> masks.logits().tolist()
        [[[[2.0, -6.0]]]]
    """

    embeddings: Float[Tensor, "batch queries channels"]
    pixels: Float[Tensor, "batch channels *grid"]

    @property
    def grid(self) -> tuple[int, ...]:
        """Lengths of the grid in array order."""
        return tuple(self.pixels.shape[2:])

    def logits(self) -> Float[Tensor, "batch queries *grid"]:
        """Return the logits of all queries on the grid: for those who ask."""
        logits = self.embeddings @ self.pixels.flatten(2)
        return logits.reshape(*logits.shape[:2], *self.grid)

    def of_image(
        self, image: int, queries: Int[Tensor, " chosen"] | slice = slice(None)
    ) -> Float[Tensor, "chosen *grid"]:
        """Return the logits, in float32, of some queries of one image."""
        with torch.autocast(self.pixels.device.type, enabled=False):
            chosen = self.embeddings[image, queries].float()
            logits = chosen @ self.pixels[image].float().flatten(1)
            return logits.reshape(len(chosen), *self.grid)


@dataclass
class QueryPrediction:
    """One set of predictions, such as those of one decoder layer.

    Args:
        class_logits: Logits; how many there are for the classes, the classification says.
        boxes: ``[cx, cy, (cz,) w, h, (d)]`` relative to the valid part of each image.
        masks: Masks of the queries.
    """

    class_logits: Float[Tensor, "batch queries logits"]
    boxes: Float[Tensor, "batch queries sides"] | None = None
    masks: QueryMasks | None = None


@dataclass
class DenoisingPredictions:
    """Predictions of queries that started from a noised object, so that no matching is needed.

    Args:
        predictions: One set per decoder layer, in order.
        objects: The object that each query comes from, as its number among the objects of its image **that are not
            ignored**; -1 for a query that must learn that there is none.
        valid: False for queries that only fill up the batch and learn nothing; None when all learn.
    """

    predictions: list[QueryPrediction]
    objects: Int[Tensor, "batch queries"]
    valid: Bool[Tensor, "batch queries"] | None = None

    @property
    def with_object(self) -> Bool[Tensor, "batch queries"]:
        """True for queries that learn to give back an object."""
        found = self.objects >= 0
        return found if self.valid is None else found & self.valid

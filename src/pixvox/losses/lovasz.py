"""Lovász-Softmax loss over class maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixvox.data.class_weights import ClassWeighting
from pixvox.distributed.world import world_mean
from pixvox.losses.class_factors import check_length, class_counts, class_factors
from pixvox.structures import IGNORE_INDEX


class Lovasz(nn.Module):
    """A convex extension of one minus the Jaccard index (IoU) of each class, the score of most benchmarks.

    "The Lovász-Softmax loss: A tractable surrogate for the optimization of the intersection-over-union measure in
    neural networks" (Berman et al., 2018, https://arxiv.org/abs/1705.08790). For hard predictions it is the mean of
    1 - IoU over the classes that are present in the truth. It sorts all pixels once per class. Each process sorts its
    own, so the batch of one process, or one image, is what an IoU is taken of.

    Args:
        weight: Factor of the term.
        per_image: Mean over the loss of each image instead of one of the whole batch.
        class_weights: Factor of each class in the mean, or None; in a configuration also a word, see
            ``pixvox.data.class_weights``.
        ignore_index: Label left out.

    Raises:
        ValueError: If ``class_weights`` are not numbers from 0 up.

    Example:
        >>> labels = torch.tensor([[[0, 1, 1]]])
        >>> predicted = 99.0 * torch.tensor([[[[1, 1, 0]], [[0, 0, 1]]]]).float()  # classes 0, 0, 1
        >>> round(float(Lovasz()(predicted, labels)), 4)  # both IoU are 1 / 2
        0.5
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        per_image: bool = False,
        class_weights: Sequence[float] | ClassWeighting | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.per_image = per_image
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_factors(class_weights), persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch classes *spatial"], labels: Int[Tensor, "batch *spatial"]
    ) -> Float[Tensor, ""]:
        """Return the mean over batches or images with labels, in all processes that share a step."""
        probabilities = logits.float().softmax(dim=1)
        size = 1 if self.per_image else max(len(labels), 1)
        parts = zip(torch.split(probabilities, size), torch.split(labels, size), strict=True)
        losses = [loss for part in parts if (loss := self._of_part(*part)) is not None]
        total = sum(losses, 0.0 * probabilities.sum())
        return self.weight * total / world_mean(len(losses))

    def _of_part(
        self, probabilities: Float[Tensor, "images classes *spatial"], labels: Int[Tensor, "images *spatial"]
    ) -> Float[Tensor, ""] | None:
        """Return the mean over the classes that are present; None where there are none."""
        num_classes = probabilities.shape[1]
        factors = (class_counts(labels, num_classes, self.ignore_index) > 0).float()
        if self.class_weights is not None:
            check_length(self.class_weights, num_classes)
            factors = factors * self.class_weights
        valid = (labels != self.ignore_index).flatten()
        losses = []
        for label, factor in enumerate((factors / factors.sum()).tolist()):
            if factor > 0:  # neither 0 nor, without any class, NaN
                truth = (labels == label).flatten() & valid
                of_class = probabilities[:, label].flatten()
                errors = torch.where(truth, 1 - of_class, of_class) * valid
                losses.append(factor * (errors * jaccard_slopes(errors.detach(), truth, valid)).sum())
        return torch.stack(losses).sum() if losses else None


def jaccard_slopes(
    errors: Float[Tensor, " pixels"], truth: Bool[Tensor, " pixels"], valid: Bool[Tensor, " pixels"]
) -> Float[Tensor, " pixels"]:
    """Return how much each pixel's error adds to the loss: what 1 - IoU gains when it is the next one to be wrong.

    Pixels become wrong in the order of their errors, the largest first. The difference of two indices is taken in
    closed form, because in a large volume it is less than what float32 tells apart near 1.

    Args:
        errors: Of each pixel, from 0 to 1.
        truth: Pixels of the class.
        valid: Pixels that count.
    """
    order = torch.where(valid, errors, -1.0).argsort(descending=True)
    sorted_truth = truth[order]
    missed = sorted_truth.cumsum(0)
    volume = truth.sum()
    union = volume + torch.arange(1, len(order) + 1, device=order.device) - missed
    union, left = union.float(), (volume - missed).float()
    # A missed pixel of the class leaves the union as it is; any other one is new to it.
    slopes = torch.where(sorted_truth, 1 / union, left / (union * (union - 1)).clamp(min=1.0))
    return torch.empty_like(slopes).scatter(0, order, slopes)

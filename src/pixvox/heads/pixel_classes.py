"""A dense teacher of classes beside the sparse one of queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.distributed.world import world_mean
from pixvox.layers import conv
from pixvox.structures import Instances

_PRIOR = 0.1  # probability that a class begins with: most cells hold no object of it


class PixelClasses(nn.Module):
    """Tells each cell of a feature map which classes have an object there; takes part in training alone.

    Queries teach classes at a few places of an image, and only once their masks are right. Features learn classes from
    far fewer images when every cell teaches them: the semantic segmentation loss of "YOLACT" (Bolya et al., 2019,
    https://arxiv.org/abs/1904.02689); "Co-DETR" (Zong et al., 2022, https://arxiv.org/abs/2211.12860) shows how much
    dense teachers help queries.

    Args:
        in_channels: Channels of the feature map.
        num_classes: Classes of the data.
        spatial_dims: 2 or 3.

    Example:
        >>> teacher = PixelClasses(8, num_classes=3)
        >>> tuple(teacher(torch.zeros(1, 8, 4, 6)).shape)
        (1, 3, 4, 6)
    """

    def __init__(self, in_channels: int, num_classes: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.classifier = conv(spatial_dims, in_channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.constant_(self.classifier.bias, -math.log(1 / _PRIOR - 1))  # type: ignore[arg-type]

    def forward(self, level: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch classes *grid"]:
        """Return the logit of each class in each cell."""
        logits: Tensor = self.classifier(level)
        return logits


def pixel_class_loss(
    logits: Float[Tensor, "batch classes *grid"],
    targets: Sequence[Instances],
    valid_sizes: Int[Tensor, "batch dims"],
    padded_size: Sequence[int],
) -> Float[Tensor, ""]:
    """Return the binary cross entropy of each class with the share of each cell that its objects fill.

    It is summed over the classes and averaged over the valid cells of all images of all processes; cells count as far
    as they are neither padding nor ignored.

    Args:
        logits: Of ``PixelClasses``.
        targets: The instances of each image.
        valid_sizes: The part of each image that is not padding, in array order.
        padded_size: Canvas that the grid covers, in array order.

    Raises:
        ValueError: If the targets have boxes only.
    """
    truths, weights = [], []
    for instances, valid_size in zip(targets, valid_sizes.tolist(), strict=True):
        truth, weight = _shares(instances, logits.shape[1:], valid_size, padded_size)
        truths.append(truth)
        weights.append(weight)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), torch.stack(truths), reduction="none")
    weight = torch.stack(weights)
    return (entropy.sum(dim=1) * weight).sum() / world_mean(weight.sum())


@torch.no_grad()
def _shares(
    instances: Instances, shape: Sequence[int], valid_size: Sequence[int], padded_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the share of each cell that the objects of each class fill, and the weight of each cell."""
    if instances.masks is None:
        raise ValueError(
            "the weight pixel_class needs masks, but the targets have boxes only; give Instances(masks=...), "
            "or set head.weights.pixel_class=0"
        )
    classes, *grid = shape
    filled, weight = instances.masks.pool(grid, padded_size, valid_size)
    ignored = instances.ignore
    if ignored.any():
        weight = weight * (1 - filled[ignored].amax(dim=0))
    truth = filled.new_zeros(classes, *grid)
    truth.index_add_(0, instances.labels[~ignored], filled[~ignored])
    return truth.clamp(max=1), weight

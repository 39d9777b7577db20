"""PIDNet's decoder: classes, and while it learns details and borders too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from pixvox.backbones.pidnet import norm_act_conv
from pixvox.heads.head import Outputs
from pixvox.heads.semantic_head import SemanticHead, labels_of, to_images
from pixvox.layers import conv, max_pool
from pixvox.losses.balanced_bce import BalancedBCE
from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.ranges import check_at_least, check_shares
from pixvox.structures import IGNORE_INDEX, Features, Targets


class PIDNet(SemanticHead):
    """Score the fused branches; teach the branch of details classes, and that of borders where classes meet.

    "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers" (Xu et al., 2022,
    https://arxiv.org/abs/2206.02066), section 3.5, as in https://github.com/XuJiacong/PIDNet, over
    ``backbone=pidnet``. Borders are made from the labels, not by an edge detector.

    Args:
        in_channels: Channels of each branch.
        strides: Strides of each branch, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2.
        hidden_channels: Channels before the scores of classes; 256 with variant l.
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms of the scores by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_weight: Weight of the cross-entropy of the branch of details.
        border_weight: Weight of the balanced cross-entropy of borders.
        border_width: Pixels on both sides of a border that belong to it together.
        border_share: The terms count once more where a border is more probable than this, as far as it is predicted.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2, or an argument is out of range.
    """

    supported_dims = (2,)
    branches = ("proportional", "derivative", "fused")

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        hidden_channels: int = 128,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        aux_weight: float = 0.4,
        border_weight: float = 20.0,
        border_width: int = 4,
        border_share: float = 0.8,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        del strides  # the scores are resized to the images
        check_at_least(2, border_width=border_width)
        check_shares(border_share=border_share)
        self.border_width, self.border_share = border_width, border_share
        details, borders, fused = in_channels
        self.classifier = PIDClassifier(spatial_dims, fused, hidden_channels, num_classes, norm)
        self.aux_classifier = PIDClassifier(spatial_dims, details, hidden_channels, num_classes, norm)
        self.borders = PIDClassifier(spatial_dims, borders, borders // 2, 1, norm)
        self.aux_loss = CrossEntropy(aux_weight)
        self.border_loss = BalancedBCE(border_weight)

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores of the fused branches, and those of the branch of details."""
        details, _, fused = features.levels
        return self.classifier(fused), {"aux_p": self.aux_classifier(details)} if auxiliary else {}

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return ``logits``, and while learning ``aux_logits`` and ``border_logits``, at the size of the images."""
        outputs = super().forward(features, targets)
        if "aux_logits" in outputs:
            outputs["border_logits"] = to_images(self.borders(features.levels[1]), features)[:, 0]
        return outputs

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return each configured term everywhere and at predicted borders, and those of the two branches."""
        labels = labels_of(outputs, targets)
        logits, border_logits = outputs["logits"], outputs["border_logits"]
        near = border_logits.detach().float().sigmoid() > self.border_share
        labels_near = torch.where(near, labels, IGNORE_INDEX)
        losses = {name: term(logits, labels) for name, term in self.losses.items()}
        losses |= {f"near_border_{name}": term(logits, labels_near) for name, term in self.losses.items()}
        losses["aux_p_cross_entropy"] = self.aux_loss(outputs["aux_logits"]["aux_p"], labels)
        borders = borders_of(labels, outputs["valid_sizes"], self.border_width)
        losses["border"] = self.border_loss(border_logits, borders, labels != IGNORE_INDEX)
        return losses


class PIDClassifier(nn.Sequential):
    """Normalisation, ReLU and a convolution, twice; the last gives the scores.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the map.
        hidden_channels: Channels between.
        num_classes: Scores.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, hidden_channels: int, num_classes: int, norm: str
    ) -> None:
        last = norm_act_conv(spatial_dims, hidden_channels, num_classes, 1, norm)
        last[2] = conv(spatial_dims, hidden_channels, num_classes, 1)
        super().__init__(*norm_act_conv(spatial_dims, in_channels, hidden_channels, 3, norm), *last)


def borders_of(
    labels: Int[Tensor, "batch *spatial"], valid_sizes: Int[Tensor, "batch dims"], width: int
) -> Bool[Tensor, "batch *spatial"]:
    """Return where two classes, or a class and what is ignored, meet; the edge of an image is no border.

    Args:
        labels: Label maps.
        valid_sizes: The part of each that is not padding, in array order.
        width: Pixels across a border, from 2 up.

    Example:
        >>> borders_of(torch.tensor([[[0, 0, 0, 1, 1, 1, 255]]]), torch.tensor([[1, 6]]), 4).int().tolist()
        [[[0, 1, 1, 1, 1, 0, 0]]]
    """
    labels = labels.clone()
    for label_map, valid in zip(labels, valid_sizes.tolist(), strict=True):
        for axis, length in enumerate(valid):  # padding repeats the last pixel
            rest = label_map.shape[axis] - length
            label_map.narrow(axis, length, rest).copy_(label_map.narrow(axis, length - 1, 1).clone())
    near = torch.zeros(labels.shape, device=labels.device)
    for axis in range(1, labels.dim()):
        length = labels.shape[axis] - 1
        meet = labels.narrow(axis, 0, length) != labels.narrow(axis, 1, length)
        for start in (0, 1):  # both sides
            near.narrow(axis, start, length).masked_fill_(meet, 1.0)
    reach = width // 2 - 1
    return max_pool(near[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0

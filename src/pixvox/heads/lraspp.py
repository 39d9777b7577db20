"""Lite R-ASPP: the cheapest head for backbones of mobile devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pixvox.heads.semantic_head import SemanticHead, level_index, level_of_stride
from pixvox.layers import ConvNormAct, adaptive_average_pool, conv, resize
from pixvox.structures import Features


class LRASPP(SemanticHead):
    """Weighs the channels of a coarse level by the mean of its whole map, and adds the scores of a fine one.

    "Searching for MobileNetV3" (Howard et al., 2019, https://arxiv.org/abs/1905.02244), section 6.4. The layers are
    those of torchvision's ``LRASPPHead``.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        in_level: The coarse level, by index.
        low_level: The fine level, by index; by default that whose stride is nearest to 8.
        channels: Channels that the coarse level is reduced to.
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, or there is no such level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        in_level: int = -1,
        low_level: int | None = None,
        channels: int = 128,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes,
            spatial_dims,
            losses,
            score_threshold=score_threshold,
            pseudo_label_threshold=pseudo_label_threshold,
        )
        self.in_level = level_index(in_level, len(in_channels), "in_level")
        low = level_of_stride(strides, 8) if low_level is None else low_level
        self.low_level = level_index(low, len(in_channels), "low_level")
        coarse = in_channels[self.in_level]
        self.reduction = ConvNormAct(spatial_dims, coarse, channels, 1, 1, norm)
        self.scale = nn.Sequential(conv(spatial_dims, coarse, channels, 1, bias=False), nn.Sigmoid())
        self.low_classifier = conv(spatial_dims, in_channels[self.low_level], num_classes, 1)
        self.high_classifier = conv(spatial_dims, channels, num_classes, 1)

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of both levels' scores on the fine one."""
        coarse, low = features.levels[self.in_level], features.levels[self.low_level]
        weighed = self.reduction(coarse) * self.scale(adaptive_average_pool(coarse, 1))
        scores: Tensor = self.low_classifier(low) + self.high_classifier(resize(weighed, low.shape[2:]))
        return scores, {}

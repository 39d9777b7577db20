"""BiSeNet: a shallow path that keeps the place of things, and a deep one that knows what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixvox.heads.semantic_head import SemanticHead, classifier
from pixvox.layers import ConvNormAct, adaptive_average_pool, resize
from pixvox.structures import Features, Size


class BiSeNet(SemanticHead):
    """Join a path of three convolutions over the image with the context of a backbone's two coarsest levels.

    "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation" (Yu et al., 2018,
    https://arxiv.org/abs/1808.00897), as in https://github.com/CoinCheung/BiSeNet: the levels are those of strides 16
    and 32 of a network without dilation. With other strides the path over the image goes down to half the stride of the
    finer of them, at most to 8.

    Args:
        in_channels: Channels of each level, finest first; the last two are used.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        image_channels: Channels of the images.
        channels: Channels of both paths; they are joined to twice as many.
        spatial_channels: Channels inside the path over the image.
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_weight: Weight of the terms of the scores of the two levels of the context path, ``aux_16`` and ``aux_32``.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, or the two coarsest levels have the same stride.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        image_channels: int = 3,
        channels: int = 128,
        spatial_channels: int = 64,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        aux_weight: float = 1.0,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        _check_strides(strides)
        self.aux_names = [f"aux_{stride[-1]}" for stride in strides[-2:]]
        half = [max(1, step // 2) for step in strides[-2]]
        self.spatial_path = SpatialPath(spatial_dims, image_channels, spatial_channels, channels, half, norm)
        self.context_path = ContextPath(spatial_dims, in_channels[-2:], channels, norm)
        self.fusion = FeatureFusion(spatial_dims, 2 * channels, norm)
        self.classifier = classifier(spatial_dims, 2 * channels, 2 * channels, num_classes, 0.0, norm)
        self.aux_classifiers = nn.ModuleList(
            classifier(spatial_dims, channels, channels // 2, num_classes, 0.0, norm) for _ in self.aux_names
        )

    def blocks(self) -> list[nn.Module]:
        """Return the path over the image, whose maps are the largest."""
        return [self.spatial_path]

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores of the joined paths, and those of the context path's two levels."""
        spatial = self.spatial_path(features.images)
        context = self.context_path(features.levels[-2:], spatial.shape[2:])
        scores = self.classifier(self.fusion(torch.cat([spatial, context[0]], dim=1)))
        if not auxiliary:
            return scores, {}
        maps = zip(self.aux_names, self.aux_classifiers, context, strict=True)
        return scores, {name: scores_of(level) for name, scores_of, level in maps}


class SpatialPath(nn.Sequential):
    """Three convolutions that halve the image until ``stride`` is reached, and one that mixes the channels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        hidden_channels: Channels of the first three.
        out_channels: Channels of the last.
        stride: Image pixels per pixel of the path, per axis; powers of two up to 8 are reached.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        stride: Sequence[int],
        norm: str,
    ) -> None:
        layers: list[nn.Module] = []
        for i in range(3):
            steps = [2 if 2 ** (i + 1) <= axis else 1 for axis in stride]
            width, kernel = (hidden_channels, 3) if layers else (in_channels, 7)
            layers.append(ConvNormAct(spatial_dims, width, hidden_channels, kernel, steps, norm))
        layers.append(ConvNormAct(spatial_dims, hidden_channels, out_channels, 1, 1, norm))
        super().__init__(*layers)


class ContextPath(nn.Module):
    """The two coarsest levels, weighed by channels, with the mean of the coarsest everywhere.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the finer and the coarser level.
        channels: Channels that are given out.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, in_channels: Sequence[int], channels: int, norm: str) -> None:
        super().__init__()
        self.refine = nn.ModuleList(
            AttentionRefinement(spatial_dims, width, channels, norm) for width in in_channels
        )
        self.smooth = nn.ModuleList(
            ConvNormAct(spatial_dims, channels, channels, 3, 1, norm) for _ in in_channels
        )
        self.mean = ConvNormAct(spatial_dims, in_channels[-1], channels, 1, 1, norm)

    def forward(self, levels: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Return the finer level at ``size``, and the coarser one at the size of the finer."""
        fine, coarse = levels
        wide = self.refine[1](coarse) + self.mean(adaptive_average_pool(coarse, 1))
        coarse = self.smooth[1](resize(wide, fine.shape[2:], mode="nearest"))
        fine = self.smooth[0](resize(self.refine[0](fine) + coarse, size, mode="nearest"))
        return fine, coarse


class AttentionRefinement(nn.Module):
    """A convolution whose channels are weighed by what is in the whole map (ARM).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the map.
        channels: Channels that are given out.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = ConvNormAct(spatial_dims, in_channels, channels, 3, 1, norm)
        self.attention = ConvNormAct(spatial_dims, channels, channels, 1, 1, norm, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighed maps."""
        x = self.conv(x)
        weighed: Tensor = x * self.attention(adaptive_average_pool(x, 1)).sigmoid()
        return weighed


class FeatureFusion(nn.Module):
    """Mixes the channels of both paths and adds them once more, weighed by what is in the whole map (FFM).

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of both paths together.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, channels: int, norm: str) -> None:
        super().__init__()
        self.mix = ConvNormAct(spatial_dims, channels, channels, 1, 1, norm)
        self.attention = ConvNormAct(spatial_dims, channels, channels, 1, 1, norm, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined maps."""
        x = self.mix(x)
        joined: Tensor = x + x * self.attention(adaptive_average_pool(x, 1)).sigmoid()
        return joined


def _check_strides(strides: Sequence[Sequence[int]]) -> None:
    """Refuse levels that do not end in two of different strides, as dilation makes them."""
    if len(strides) < 2 or tuple(strides[-2]) == tuple(strides[-1]):
        raise ValueError(
            "BiSeNet takes its context from two levels of different strides, such as 16 and 32, got strides "
            f"{[tuple(stride) for stride in strides]}; leave backbone.output_stride at 32, or give out more levels"
        )

"""BiSeNet V2's decoder: each branch tells the other where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pixvox.heads.semantic_head import SemanticHead, classifier
from pixvox.layers import ConvNormAct, average_pool, conv, resize
from pixvox.structures import Features


class BiSeNetV2(SemanticHead):
    """Join details and meaning by guided aggregation; every stage of the semantic branch learns by itself too.

    "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation" (Yu et al., 2020,
    https://arxiv.org/abs/2004.02147), as in https://github.com/CoinCheung/BiSeNet, over ``backbone=bisenetv2``.

    Args:
        in_channels: Channels of each branch.
        strides: Strides of each branch, per axis in array order.
        num_classes: Classes, background included.
        spatial_dims: 2.
        hidden_channels: Channels before the scores.
        aux_channels: Channels before those of the stages.
        dropout: Share of hidden channels set to zero in training, in [0, 1).
        norm: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_weight: Weight of the terms of the stages' scores, ``aux_4`` to ``aux_32``.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2.
    """

    supported_dims = (2,)
    branches = ("stem", "detail", "semantic_3", "semantic_4", "semantic_5", "context")

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        hidden_channels: int = 1024,
        aux_channels: int = 128,
        dropout: float = 0.1,
        norm: str = "batch",
        losses: Mapping[str, nn.Module] | None = None,
        aux_weight: float = 1.0,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        by_name = dict(zip(self.branches, in_channels, strict=True))
        self.aggregation = GuidedAggregation(spatial_dims, by_name["detail"], by_name["context"], norm)
        self.classifier = classifier(
            spatial_dims, by_name["detail"], hidden_channels, num_classes, dropout, norm
        )
        self.aux_branches = {
            f"aux_{stride[-1]}": i
            for i, (name, stride) in enumerate(zip(self.branches, strides, strict=True))
            if name not in ("detail", "context")
        }
        self.aux_classifiers = nn.ModuleDict(
            {
                name: StageClassifier(
                    spatial_dims, in_channels[i], aux_channels, strides[i][-1], num_classes, dropout, norm
                )
                for name, i in self.aux_branches.items()
            }
        )

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores of the joined branches, and those of each stage of the semantic branch."""
        by_name = dict(zip(self.branches, features.levels, strict=True))
        scores = self.classifier(self.aggregation(by_name["detail"], by_name["context"]))
        if not auxiliary:
            return scores, {}
        stages = self.aux_branches.items()
        return scores, {name: self.aux_classifiers[name](features.levels[i]) for name, i in stages}


class GuidedAggregation(nn.Module):
    """Weighs details by meaning and meaning by details, each at the other's size (BGA).

    Args:
        spatial_dims: 2 or 3.
        detail_channels: Channels of the detail branch, and of what is given out.
        context_channels: Channels of the semantic branch, at a quarter of its size.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(self, spatial_dims: int, detail_channels: int, context_channels: int, norm: str) -> None:
        super().__init__()
        dims, width = spatial_dims, detail_channels

        def separable(channels: int) -> nn.Sequential:
            each = ConvNormAct(dims, channels, channels, 3, 1, norm, act=False, groups=channels)
            return nn.Sequential(*each, conv(dims, channels, width, 1, bias=False))

        self.fine_detail = separable(detail_channels)
        self.coarse_detail = ConvNormAct(dims, width, width, 3, 2, norm, act=False)
        self.fine_context = ConvNormAct(dims, context_channels, width, 3, 1, norm, act=False)
        self.coarse_context = separable(context_channels)
        self.last = ConvNormAct(dims, width, width, 3, 1, norm)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        """Return the joined maps at the size of ``detail``."""
        size = detail.shape[2:]
        fine = self.fine_detail(detail) * resize(self.fine_context(context), size, "nearest").sigmoid()
        coarse = average_pool(self.coarse_detail(detail), 3, 2, 1) * self.coarse_context(context).sigmoid()
        joined: Tensor = self.last(fine + resize(coarse, size, "nearest"))
        return joined


class StageClassifier(nn.Module):
    """Scores a stage at twice its size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the stage.
        hidden_channels: Channels of the first convolution.
        stride: Of the stage; the second convolution has its square of channels.
        num_classes: Classes.
        dropout: Share of hidden channels set to zero in training.
        norm: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        hidden_channels: int,
        stride: int,
        num_classes: int,
        dropout: float,
        norm: str,
    ) -> None:
        super().__init__()
        self.first = ConvNormAct(spatial_dims, in_channels, hidden_channels, 3, 1, norm)
        self.dropout = nn.Dropout(dropout)
        self.second = ConvNormAct(spatial_dims, hidden_channels, stride**2, 3, 1, norm)
        self.last = conv(spatial_dims, stride**2, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        hidden = self.dropout(self.first(x))
        scores: Tensor = self.last(self.second(resize(hidden, [2 * n for n in x.shape[2:]], "nearest")))
        return scores

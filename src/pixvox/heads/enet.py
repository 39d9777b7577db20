"""ENet's decoder: maps grow where pooling had found their largest values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from pixvox.backbones.enet import Bottleneck, drop_channels
from pixvox.heads.semantic_head import SemanticHead
from pixvox.layers import ConvNormAct, conv_transpose, max_unpool, norm
from pixvox.structures import Features, Size


class ENet(SemanticHead):
    """Bring the coarsest level back to the finest, step by step, and score it at twice that size.

    "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation" (Paszke et al., 2016,
    https://arxiv.org/abs/1606.02147), stages 4 and 5. Unpooling needs to know where the largest values of each cell had
    been; they are looked up in the next finer level, so that the levels may come from any backbone.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order; each a multiple of the one before.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        dropout: Share of channels set to zero in training, in [0, 1).
        norm_name: Normalisation, see ``pixvox.layers.norm``.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, or a stride is no multiple of the one before.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        dropout: float = 0.1,
        norm_name: str = "batch",
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
        steps = _steps(strides)
        self.upsamplings, self.stages = nn.ModuleList(), nn.ModuleList()
        for level in range(len(in_channels) - 2, -1, -1):
            width = in_channels[level]
            self.upsamplings.append(
                Upsampling(spatial_dims, in_channels[level + 1], width, steps[level], dropout, norm_name)
            )
            self.stages.append(
                nn.Sequential(
                    *(
                        Bottleneck(spatial_dims, width, dropout=dropout, norm_name=norm_name, act=nn.ReLU)
                        for _ in range(2 if level else 1)
                    )
                )
            )
        last = [min(2, step) for step in strides[0]]
        self.classifier = conv_transpose(spatial_dims, in_channels[0], num_classes, 3, last, bias=False)

    def blocks(self) -> list[nn.Module]:
        """Return the bottlenecks."""
        return [block for stage in self.stages if isinstance(stage, nn.Sequential) for block in stage]

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores at twice the finest level's size; none of them only teach."""
        *finer, x = features.levels
        for upsampling, stage, level in zip(self.upsamplings, self.stages, reversed(finer), strict=True):
            x = stage(upsampling(x, level))
        return self.classifier(x), {}


class Upsampling(nn.Module):
    """A bottleneck with a transposed convolution, beside unpooling.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output, which are those of the next finer level.
        step: How much longer each axis becomes, in array order.
        dropout: Share of channels set to zero in training.
        norm_name: Normalisation, see ``pixvox.layers.norm``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        step: Size,
        dropout: float,
        norm_name: str,
    ) -> None:
        super().__init__()
        hidden = max(1, in_channels // 4)
        self.step, self.dropout = step, dropout
        self.main = ConvNormAct(spatial_dims, in_channels, out_channels, 1, 1, norm_name, act=False)
        self.reduce = ConvNormAct(spatial_dims, in_channels, hidden, 1, 1, norm_name)
        self.grow = nn.Sequential(
            conv_transpose(spatial_dims, hidden, hidden, step, step, bias=False),
            norm(norm_name, spatial_dims, hidden),
            nn.ReLU(inplace=True),
        )
        self.expand = ConvNormAct(spatial_dims, hidden, out_channels, 1, 1, norm_name, act=False)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """Return maps of the size of ``finer``."""
        added = self.expand(self.grow(self.reduce(x)))
        main = max_unpool(self.main(x), finer, self.step)
        return F.relu(main + drop_channels(added, self.dropout, self.training))


def _steps(strides: Sequence[Sequence[int]]) -> list[Size]:
    """Return how much coarser each level is than the one before."""
    steps = []
    for fine, coarse in pairwise(strides):
        if any(c % f for f, c in zip(fine, coarse, strict=True)):
            raise ValueError(
                f"ENet unpools from each level to the one before it, but stride {tuple(coarse)} is no multiple of "
                f"{tuple(fine)}; choose backbone=enet, or a convolutional backbone"
            )
        steps.append(tuple(c // f for f, c in zip(fine, coarse, strict=True)))
    return steps

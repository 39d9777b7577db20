"""A second classifier on a coarser level, which teaches deep networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pixvox.heads.semantic_head import classifier, level_index
from pixvox.structures import Features


class AuxiliaryClassifier(nn.Sequential):
    """Scores classes on one level beside the head's own scores; only the loss looks at it.

    "Pyramid Scene Parsing Network" (Zhao et al., 2017, https://arxiv.org/abs/1612.01105), section 3.3; the layers are
    those of torchvision's ``FCNHead``.

    Args:
        in_channels: Channels of each level, finest first.
        level: Which of them, by index.
        num_classes: Classes of the data.
        spatial_dims: 2 or 3.
        hidden_channels: Channels before the scores; by default a quarter of the level's.
        dropout: Share of hidden channels set to zero in training.
        norm: Normalisation, see ``pixvox.layers.norm``.

    Raises:
        ValueError: If there is no such level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        level: int,
        num_classes: int,
        spatial_dims: int = 2,
        hidden_channels: int | None = None,
        dropout: float = 0.1,
        norm: str = "batch",
    ) -> None:
        level = level_index(level, len(in_channels), "aux_level")
        hidden = hidden_channels or max(in_channels[level] // 4, num_classes)
        super().__init__(*classifier(spatial_dims, in_channels[level], hidden, num_classes, dropout, norm))
        self.level = level

    def of(self, features: Features) -> dict[str, Tensor]:
        """Return its scores by name, as ``SemanticHead.scores`` wants them."""
        return {"aux": self(features.levels[self.level])}

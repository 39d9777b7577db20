"""What every neck tells the head, and the neck that does nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion


class Neck(nn.Module, ABC):
    """Combines the levels of a backbone and tells the channels and strides of what it gives out.

    Args:
        channels: Channels of each level given out, finest first.
        strides: Input pixels per feature pixel, per level and per axis in array order.

    Raises:
        ValueError: If a level has no channel.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        if not all(width >= 1 for width in channels):
            raise ValueError(f"every level of a neck needs at least 1 channel, got {list(channels)}")
        self.channels = tuple(int(c) for c in channels)
        self.strides = tuple(tuple(int(s) for s in stride) for stride in strides)

    @classmethod
    def suggest(
        cls, facts: Fingerprint, options: Mapping[str, Any], strides: Sequence[Sequence[int]]
    ) -> list[Suggestion]:
        """Return values for options of this neck that follow from a dataset's fingerprint.

        Args:
            facts: The fingerprint, in the pixels that the network sees.
            options: The options as they stand.
            strides: Strides of the backbone's levels, per axis in array order.
        """
        return []

    def blocks(self) -> list[nn.Module]:
        """Return the parts that gradient checkpointing computes twice."""
        return []

    @abstractmethod
    def forward(
        self, levels: Sequence[Tensor], valid_sizes: Int[Tensor, "batch dims"] | None = None
    ) -> tuple[Tensor, ...]:
        """Return the combined levels, finest first.

        Args:
            levels: The backbone's levels, finest first.
            valid_sizes: The part of each image that is not padding, in input pixels and array order; None is
                all. Necks that look far must not look at padding.
        """


class NoNeck(Neck):
    """Hands the backbone's levels on as they are.

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        strides: Strides of the backbone's levels.
    """

    def __init__(self, in_channels: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        super().__init__(in_channels, strides)

    def forward(
        self, levels: Sequence[Tensor], valid_sizes: Int[Tensor, "batch dims"] | None = None
    ) -> tuple[Tensor, ...]:
        """Return the levels."""
        return tuple(levels)

"""What every neck tells the head, and the neck that does nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Neck(nn.Module, ABC):
    """Combines the levels of a backbone and tells the channels and strides of what it gives out.

    Args:
        channels: Channels of each level given out, finest first.
        strides: Input pixels per feature pixel, per level and per axis in array order.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.channels = tuple(int(c) for c in channels)
        self.strides = tuple(tuple(int(s) for s in stride) for stride in strides)

    @abstractmethod
    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the combined levels, finest first."""


class NoNeck(Neck):
    """Hands the backbone's levels on as they are.

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        strides: Strides of the backbone's levels.
    """

    def __init__(self, in_channels: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        super().__init__(in_channels, strides)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the levels."""
        return tuple(levels)

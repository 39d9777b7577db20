"""What every backbone tells the next part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Turns normalised images into feature maps, fine to coarse, and tells their channels and strides.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        channels: Channels of each level, finest first.
        strides: Input pixels per feature pixel, per level and per axis in array order.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: Sequence[int], strides: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.channels = tuple(int(c) for c in channels)
        self.strides = tuple(tuple(int(s) for s in stride) for stride in strides)

    @property
    def size_divisor(self) -> tuple[int, ...]:
        """Input sizes are padded to multiples of this, per axis in array order."""
        return tuple(max(stride[axis] for stride in self.strides) for axis in range(self.spatial_dims))

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first."""

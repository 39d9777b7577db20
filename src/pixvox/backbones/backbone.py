"""What every backbone tells the next part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from pixvox.layers import pad_to_multiple

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion


class Backbone(nn.Module, ABC):
    """Turns normalised images into feature maps, fine to coarse, and tells their channels and strides.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        channels: Channels of each level, finest first.
        strides: Input pixels per feature pixel, per level and per axis in array order.
    """

    supported_dims: ClassVar[tuple[int, ...]] = (2, 3)
    branches: ClassVar[tuple[str, ...]] = ()
    """Names of the levels where they are branches of one network rather than a pyramid: only a head that names the same
    ones takes them."""

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: Sequence[int], strides: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.check_dims(spatial_dims)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.channels = tuple(int(c) for c in channels)
        self.strides = tuple(tuple(int(s) for s in stride) for stride in strides)

    @classmethod
    def check_dims(cls, spatial_dims: int) -> None:
        """Refuse a number of axes that this backbone does not exist for.

        Raises:
            ValueError: With the backbones that do.
        """
        if spatial_dims not in cls.supported_dims:
            from pixvox.models import list_backbones

            others = ", ".join(list_backbones(spatial_dims)) if spatial_dims in (2, 3) else "none"
            raise ValueError(
                f"{cls.__name__} exists for spatial_dims in {cls.supported_dims}, got {spatial_dims}; "
                f"with {spatial_dims} there are {others}"
            )

    @property
    def size_divisor(self) -> tuple[int, ...]:
        """Input sizes are padded to multiples of this, per axis in array order."""
        return tuple(max(stride[axis] for stride in self.strides) for axis in range(self.spatial_dims))

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Return values for options of this backbone that follow from a dataset's fingerprint.

        Args:
            facts: The fingerprint.
            options: The options as they stand.
        """
        return []

    def blocks(self) -> list[nn.Module]:
        """Return the blocks that the input passes, in order, for gradient checkpointing and layer-wise learning rates.

        Each takes and returns tensors. What comes before the first (a stem) is in none; a backbone that returns no
        blocks is refused where they are needed.
        """
        return []

    def padded(self, images: Tensor) -> Tensor:
        """Return images with zeros at their far ends, so that their sizes are multiples of ``size_divisor``."""
        return pad_to_multiple(images, self.size_divisor)

    def cropped(self, levels: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the part of the maps that images of ``size`` cover.

        Raises:
            ValueError: If a map is smaller than its stride tells.
        """
        result = []
        for level, stride in zip(levels, self.strides, strict=True):
            wanted = [-(-length // step) for length, step in zip(size, stride, strict=True)]
            if any(have < want for have, want in zip(level.shape[2:], wanted, strict=True)):
                raise ValueError(
                    f"a map of {tuple(level.shape[2:])} where the strides tell {tuple(wanted)}: the network does not "
                    "keep to a grid; choose another"
                )
            for axis, length in enumerate(wanted, start=2):
                level = level.narrow(axis, 0, length)
            result.append(level)
        return tuple(result)

    def deploy(self) -> None:
        """Take the form that is fastest once learning is over, in place; the maps stay the same."""
        return

    def frozen_parts(self) -> list[nn.Module]:
        """Return the parts whose weights and statistics stay as they are."""
        return []

    def freeze_parts(self) -> None:
        """Let no gradient reach the weights of ``frozen_parts``; to be called when all parts are built."""
        for part in self.frozen_parts():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen parts keep their statistics and leave nothing out."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first."""

"""Un-normalised images in, what a network was trained on out.

A normaliser is part of the model: it is saved with it, so a prediction never guesses how an image was scaled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Normalizer(nn.Module, ABC):
    """Scales images and sets their padding to zero."""

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        intensity_ranges: Float[Tensor, "batch channels 2"] | None = None,
        valid_sizes: Int[Tensor, "batch dims"] | None = None,
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Return normalised images.

        Args:
            images: Un-normalised images.
            intensity_ranges: Low and high percentile of each channel of each full image, where known.
            valid_sizes: The part of each image that is not padding, in array order.
        """
        normalized = self.scale(images, intensity_ranges, valid_sizes)
        if valid_sizes is not None:
            for image, valid in zip(normalized, valid_sizes.tolist(), strict=True):
                for axis, length in enumerate(valid):
                    image.narrow(axis + 1, length, image.shape[axis + 1] - length).zero_()
        return normalized

    @abstractmethod
    def scale(self, images: Tensor, intensity_ranges: Tensor | None, valid_sizes: Tensor | None) -> Tensor:
        """Return a new tensor of scaled images."""


class FixedNormalizer(Normalizer):
    """Divides by a constant, subtracts a mean, divides by a standard deviation.

    Args:
        mean: Per channel, after the division by ``max_value``. One number serves all channels.
        std: Per channel, likewise.
        max_value: 255 for 8-bit images, 65535 for 16-bit ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        max_value: float = 255.0,
    ) -> None:
        super().__init__()
        self.max_value = max_value
        self.register_buffer("mean", torch.tensor(list(mean)), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)), persistent=False)

    def scale(self, images: Tensor, intensity_ranges: Tensor | None, valid_sizes: Tensor | None) -> Tensor:
        """Return ``(images / max_value - mean) / std``."""
        channels = images.shape[1]
        shape = (1, -1) + (1,) * (images.dim() - 2)
        # Images of another number of channels than the statistics get their average: grey from RGB
        # statistics.
        mean, std = (v if len(v) == channels else v.mean().expand(channels) for v in (self.mean, self.std))
        return (images / self.max_value - mean.view(shape)) / std.view(shape)


class PercentileNormalizer(Normalizer):
    """Maps the low and high percentile of each image to fixed values, for contrasts that differ by file.

    Args:
        mean: Value, between 0 (low percentile) and 1 (high percentile), that becomes 0.
        std: Width on the same scale that becomes 1.
        limit: Values are clipped to ``[-limit, limit]`` afterwards: hot pixels do not rule the network.
    """

    def __init__(self, mean: float = 0.25, std: float = 0.25, limit: float = 10.0) -> None:
        super().__init__()
        self.mean = mean
        self.std = std
        self.limit = limit

    def scale(self, images: Tensor, intensity_ranges: Tensor | None, valid_sizes: Tensor | None) -> Tensor:
        """Return images whose percentiles lie at fixed values."""
        if intensity_ranges is None:
            intensity_ranges = intensity_range(images, valid_sizes)
        shape = images.shape[:2] + (1,) * (images.dim() - 2)
        low, high = (bound.reshape(shape) for bound in intensity_ranges.to(images.dtype).unbind(-1))
        width = high - low
        # A constant image has no contrast to scale; dividing by 1 keeps it at one finite value.
        width = torch.where(width > 0, width, torch.ones_like(width))
        scaled = ((images - low) / width - self.mean) / self.std
        return torch.nan_to_num(scaled, nan=0.0).clamp(-self.limit, self.limit)


def intensity_range(
    images: Float[Tensor, "batch channels *spatial"],
    valid_sizes: Int[Tensor, "batch dims"] | None = None,
    percentiles: tuple[float, float] = (1.0, 99.8),
    max_samples: int = 1_000_000,
) -> Float[Tensor, "batch channels 2"]:
    """Return the low and high percentile of each channel of each image, from at most ``max_samples`` pixels."""
    quantiles = torch.tensor(percentiles, device=images.device) / 100
    ranges = []
    for i, image in enumerate(images):
        if valid_sizes is not None:
            for axis, length in enumerate(valid_sizes[i].tolist()):
                image = image.narrow(axis + 1, 0, length)
        pixels = image.flatten(1).float()
        pixels = pixels[:, :: max(1, -(-pixels.shape[1] // max_samples))]
        ranges.append(torch.nanquantile(pixels, quantiles, dim=1).T)
    return torch.stack(ranges)

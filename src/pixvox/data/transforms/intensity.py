"""Change intensities in units of each image's own range, so that 8-bit, 16-bit and float are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens, uniform


def channel_range(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return low end and width of each channel's intensities, shaped to broadcast; a width is never 0."""
    if sample.intensity_range is not None:
        low, high = sample.intensity_range.unbind(1)
    else:
        flat = sample.image.flatten(1)
        low, high = flat.amin(dim=1), flat.amax(dim=1)
    shape = (-1, *[1] * sample.spatial_dims)
    width = high - low
    return low.view(shape), torch.where(width > 0, width, torch.ones_like(width)).view(shape)


class RandomBrightnessContrast(Transform):
    """Scale intensities about the low end of the range, and shift them.

    The intensity range of the sample stays that of the file, so that the change survives the normaliser.

    Args:
        brightness: Largest shift, as a share of the range.
        contrast: Largest relative change of the contrast.
        probability: Probability of a change.
    """

    def __init__(self, brightness: float = 0.1, contrast: float = 0.25, probability: float = 0.5) -> None:
        self.brightness = brightness
        self.contrast = contrast
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample."""
        if not happens(generator, self.probability):
            return sample
        low, width = channel_range(sample)
        shift = uniform(generator, -self.brightness, self.brightness)
        gain = uniform(generator, 1 - self.contrast, 1 + self.contrast)
        return replace(sample, image=(sample.image - low) * gain + low + shift * width)


class RandomGamma(Transform):
    """Raise the intensities, scaled to 0..1 by the range, to a power.

    Args:
        log_gamma: Largest absolute natural logarithm of the exponent.
        probability: Probability of a change.
    """

    def __init__(self, log_gamma: float = 0.3, probability: float = 0.5) -> None:
        self.log_gamma = log_gamma
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample."""
        if not happens(generator, self.probability):
            return sample
        low, width = channel_range(sample)
        exponent = math.exp(uniform(generator, -self.log_gamma, self.log_gamma))
        relative = (sample.image - low) / width
        # The power is taken inside the range; what lies outside goes on linearly.
        inside = relative.clamp(0, 1)
        return replace(sample, image=(inside**exponent + (relative - inside)) * width + low)


class RandomNoise(Transform):
    """Add independent Gaussian noise.

    Args:
        deviation: Smallest and largest standard deviation, as a share of the range.
        probability: Probability of a change.
    """

    def __init__(self, deviation: Sequence[float] = (0.0, 0.05), probability: float = 0.3) -> None:
        self.deviation = (float(deviation[0]), float(deviation[1]))
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample."""
        if not happens(generator, self.probability):
            return sample
        _, width = channel_range(sample)
        deviation = uniform(generator, *self.deviation)
        noise = torch.randn(sample.image.shape, generator=generator)
        return replace(sample, image=sample.image + noise * (deviation * width))


class RandomBlur(Transform):
    """Blur with a Gaussian of one physical width on all axes.

    Args:
        sigma: Smallest and largest standard deviation, in pixels of the finest axis.
        probability: Probability of a change.
        size: Length of the kernel in pixels, an odd number; when None it reaches three standard deviations.

    Raises:
        ValueError: If ``size`` is even or below 1.
    """

    def __init__(
        self, sigma: Sequence[float] = (0.3, 1.2), probability: float = 0.2, size: int | None = None
    ) -> None:
        if size is not None and (size < 1 or size % 2 == 0):
            raise ValueError(f"size must be an odd number of pixels such as 5, got {size}")
        self.sigma = (float(sigma[0]), float(sigma[1]))
        self.probability = probability
        self.size = size

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample."""
        if not happens(generator, self.probability):
            return sample
        sigma = uniform(generator, *self.sigma)
        spacing = sample.spacing if sample.spacing is not None else (1.0,) * sample.spatial_dims
        finest = min(spacing)
        sigmas = [sigma * finest / step for step in spacing]
        return replace(sample, image=gaussian_blur(sample.image, sigmas, self.size))


class RandomColor(Transform):
    """Mix and move the channels of colour images; images with another number of channels pass unchanged.

    Args:
        saturation: Largest relative change of the distance from grey.
        tint: Largest relative change of each channel's gain.
        probability: Probability of a change.
    """

    def __init__(self, saturation: float = 0.4, tint: float = 0.1, probability: float = 0.5) -> None:
        self.saturation = saturation
        self.tint = tint
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample."""
        if not happens(generator, self.probability) or sample.image.shape[0] != 3:
            return sample
        shape = (3, *[1] * sample.spatial_dims)
        weights = torch.tensor([0.299, 0.587, 0.114]).view(shape)  # luma of ITU-R BT.601
        grey = (sample.image * weights).sum(dim=0, keepdim=True)
        factor = uniform(generator, 1 - self.saturation, 1 + self.saturation)
        gains = [uniform(generator, 1 - self.tint, 1 + self.tint) for _ in range(3)]
        return replace(
            sample, image=(grey + (sample.image - grey) * factor) * torch.tensor(gains).view(shape)
        )


def gaussian_blur(image: Tensor, sigmas: Sequence[float], size: int | None = None) -> Tensor:
    """Blur ``(channels, *spatial)`` with one standard deviation in pixels per axis, edges repeated.

    Args:
        image: What is blurred.
        sigmas: Standard deviation per axis, in pixels.
        size: Length of the kernel; when None it reaches three standard deviations.
    """
    for axis, sigma in enumerate(sigmas, start=1):
        radius = math.ceil(3 * sigma) if size is None else size // 2
        if sigma <= 0.05 or radius < 1:
            continue
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        moved = image.movedim(axis, -1)
        rows = F.pad(moved.reshape(1, -1, moved.shape[-1]), (radius, radius), mode="replicate")[0]
        blurred = F.conv1d(rows[:, None], (kernel / kernel.sum())[None, None])[:, 0]
        image = blurred.reshape(moved.shape).movedim(-1, axis)
    return image

"""Colour and contrast in units of the image's own range: torchvision's operations without its 8-bit limits.

Every operation equals that of ``torchvision.transforms.v2.functional`` on images in 0..1, except that values
beyond the range are kept instead of cut off: the normaliser sees what the camera saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens, uniform
from pixvox.data.transforms.intensity import channel_range

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, rounded as torchvision and Pillow have it


class RandomColorJitter(Transform):
    """Change brightness, contrast, saturation and hue, in an order that is drawn as well.

    "Some Improvements on Deep Convolutional Neural Network Based Image Classification" (Howard, 2013,
    https://arxiv.org/abs/1312.5402), with the arguments of ``torchvision.transforms.v2.ColorJitter``.
    Saturation and hue leave images alone that have not three channels; brightness and contrast change any image
    or volume. All channels share one range, so that grey stays grey.

    Args:
        brightness: Largest relative change of the intensities, from the low end of the range.
        contrast: Largest relative change of the distance from the mean.
        saturation: Largest relative change of the distance from grey.
        hue: Largest turn of the hue, 0..0.5 of the colour circle.
        probability: Probability of a change.

    Raises:
        ValueError: If a number is negative, or ``hue`` is above 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        probability: float = 0.8,
    ) -> None:
        if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
            raise ValueError(
                f"brightness, contrast and saturation must be 0 or above and hue lie in 0..0.5, got "
                f"{brightness}, {contrast}, {saturation}, {hue}"
            )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample."""
        if not happens(generator, self.probability):
            return sample
        steps: list[tuple[Callable[[Tensor, float], Tensor], float]] = [
            (adjust_brightness, _factor(generator, self.brightness)),
            (adjust_contrast, _factor(generator, self.contrast)),
            (adjust_saturation, _factor(generator, self.saturation)),
            (adjust_hue, uniform(generator, -self.hue, self.hue)),
        ]
        neutral = (1.0, 1.0, 1.0, 0.0)
        low, width = common_range(sample)
        image = (sample.image - low) / width
        for i in torch.randperm(4, generator=generator).tolist():
            change, factor = steps[i]
            if factor != neutral[i]:
                image = change(image, factor)
        return replace(sample, image=image * width + low)


class RandomGrayscale(Transform):
    """Replace the colours by their brightness; images with another number of channels than 3 pass unchanged.

    Args:
        probability: Probability of a change.
    """

    def __init__(self, probability: float = 0.2) -> None:
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the grey sample, with as many channels as before."""
        if not happens(generator, self.probability) or sample.image.shape[0] != 3:
            return sample
        return replace(sample, image=luma(sample.image).expand_as(sample.image).clone())


class RandomAutoContrast(Transform):
    """Stretch each channel of what is seen to the whole of the image's range.

    After a crop this shows dim patches as bright as others. A constant channel stays as it is.

    Args:
        probability: Probability of a change.
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the stretched sample."""
        if not happens(generator, self.probability):
            return sample
        low, width = channel_range(sample)
        flat = sample.image.flatten(1)
        shape = low.shape if low.shape[0] == flat.shape[0] else (-1, *[1] * sample.spatial_dims)
        least, most = flat.amin(dim=1).view(shape), flat.amax(dim=1).view(shape)
        stretched = (sample.image - least) / (most - least).clamp(min=1e-12) * width + low
        return replace(sample, image=torch.where(most > least, stretched, sample.image))


def common_range(sample: Sample) -> tuple[float, float]:
    """Return low end and width of the intensities of all channels together; the width is never 0."""
    low, width = channel_range(sample)
    least, most = float(low.min()), float((low + width).max())
    return least, most - least


def luma(image: Float[Tensor, "3 *spatial"]) -> Float[Tensor, "1 *spatial"]:
    """Return the brightness of colours."""
    red, green, blue = image
    weighted: Tensor = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return weighted[None]


def adjust_brightness(image: Float[Tensor, "channels *spatial"], factor: float) -> Tensor:
    """Multiply the intensities, which are relative to their range."""
    return image * factor


def adjust_contrast(image: Float[Tensor, "channels *spatial"], factor: float) -> Tensor:
    """Multiply the distance from the mean brightness; without colours that is the mean of all channels."""
    mean = (luma(image) if image.shape[0] == 3 else image).mean()
    return torch.lerp(mean, image, factor)


def adjust_saturation(image: Float[Tensor, "channels *spatial"], factor: float) -> Tensor:
    """Multiply the distance of colours from grey."""
    if image.shape[0] != 3:
        return image
    grey = luma(image)
    return grey + (image - grey) * factor


def adjust_hue(image: Float[Tensor, "channels *spatial"], turn: float) -> Tensor:
    """Turn the hue by a share of the colour circle, at the same value and saturation (HSV)."""
    if image.shape[0] != 3:
        return image
    inside = image.clamp(0, 1)
    red, green, blue = inside
    value, lowest = inside.amax(dim=0), inside.amin(dim=0)
    chroma = value - lowest
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # in sixths of the circle
    hue = hue + 6 * turn
    # Each channel lies between the lowest and the value, by the distance of its own hue.
    places = torch.tensor([5.0, 3.0, 1.0]).view(3, *[1] * (image.ndim - 1))
    distance = (places + hue).remainder(6)
    turned = value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1)
    return turned + (image - inside)


def _factor(generator: torch.Generator, change: float) -> float:
    return uniform(generator, max(0.0, 1 - change), 1 + change)

"""Joint transforms of image and annotations: thin, N-dimensional, exact in ids, seeded from outside."""

from pixvox.data.transforms.affine import RandomAffine
from pixvox.data.transforms.compose import Compose, Transform
from pixvox.data.transforms.crop import RandomCrop
from pixvox.data.transforms.elastic import RandomElastic
from pixvox.data.transforms.flip import RandomFlip
from pixvox.data.transforms.intensity import (
    RandomBlur,
    RandomBrightnessContrast,
    RandomColor,
    RandomGamma,
    RandomNoise,
)
from pixvox.data.transforms.resize import Resize

__all__ = [
    "Compose", "RandomAffine", "RandomBlur", "RandomBrightnessContrast", "RandomColor", "RandomCrop",
    "RandomElastic", "RandomFlip", "RandomGamma", "RandomNoise", "Resize", "Transform",
]  # fmt: skip

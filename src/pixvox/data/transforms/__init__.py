"""Joint transforms of image and annotations: thin, N-dimensional, exact in ids, seeded from outside."""

from pixvox.data.transforms.affine import RandomAffine
from pixvox.data.transforms.color import RandomAutoContrast, RandomColorJitter, RandomGrayscale
from pixvox.data.transforms.compose import Compose, Transform
from pixvox.data.transforms.copy_paste import CopyPaste
from pixvox.data.transforms.crop import RandomCrop
from pixvox.data.transforms.elastic import RandomElastic
from pixvox.data.transforms.erasing import RandomErasing
from pixvox.data.transforms.flip import RandomFlip
from pixvox.data.transforms.intensity import (
    RandomBlur,
    RandomBrightnessContrast,
    RandomColor,
    RandomGamma,
    RandomNoise,
)
from pixvox.data.transforms.mosaic import Mosaic
from pixvox.data.transforms.pad import Pad
from pixvox.data.transforms.resample import Resample
from pixvox.data.transforms.resize import RandomRescale, Resize

__all__ = [
    "Compose", "CopyPaste", "Mosaic", "Pad", "RandomAffine", "RandomAutoContrast", "RandomBlur",
    "RandomBrightnessContrast", "RandomColor", "RandomColorJitter", "RandomCrop", "RandomElastic",
    "RandomErasing", "RandomFlip", "RandomGamma", "RandomGrayscale", "RandomNoise", "RandomRescale", "Resample",
    "Resize", "Transform",
]  # fmt: skip

"""Any image becomes RGB for the eye: any number of channels, any range of values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

PERCENTILES = (0.5, 99.8)
_SAMPLES = 200_000
# Two channels are read best as green and magenta; more add up in these colours.
_CHANNEL_COLORS = ((0, 1, 0), (1, 0, 1), (0, 0.6, 1), (1, 0.8, 0), (1, 0.2, 0.2), (0.6, 0.6, 0.6))


@dataclass(frozen=True)
class Contrast:
    """The values that become black and white, per channel.

    Args:
        limits: Low and high value of each channel.
    """

    limits: Float[np.ndarray, "channels 2"]

    @classmethod
    def of(cls, image: Shaped[Tensor, "channels *spatial"]) -> Contrast:
        """Keep 8-bit colour images as they are, and stretch others between percentiles of each channel."""
        flat = image.detach().cpu().reshape(image.shape[0], -1)
        flat = flat[:, :: max(1, flat.shape[1] // _SAMPLES)].to(torch.float64)
        values = np.nan_to_num(flat.numpy())
        colored = len(values) == 3 and bool((values[0] != values[1:]).any())
        if colored and values.min(initial=0) >= 0 and 1 < values.max(initial=0) <= 255:
            return cls(np.tile([0.0, 255.0], (3, 1)))
        if values.shape[1] == 0:
            return cls(np.tile([0.0, 1.0], (len(values), 1)))
        limits = np.percentile(values, PERCENTILES, axis=1).T
        flat_channels = limits[:, 1] <= limits[:, 0]
        limits[flat_channels, 1] = limits[flat_channels, 0] + 1
        return cls(limits)

    def rgb(self, image: Shaped[Tensor, "channels height width"]) -> UInt8[np.ndarray, "height width 3"]:
        """Return a 2-D image, or one slice of a volume, as RGB."""
        values = np.nan_to_num(image.detach().cpu().to(torch.float64).numpy())
        low, high = self.limits[:, 0, None, None], self.limits[:, 1, None, None]
        scaled = ((values - low) / (high - low)).clip(0, 1)
        if len(scaled) == 1:
            mixed = np.repeat(scaled, 3, axis=0)
        elif len(scaled) == 3:
            mixed = scaled
        else:
            weights = np.array([_CHANNEL_COLORS[i % len(_CHANNEL_COLORS)] for i in range(len(scaled))])
            mixed = np.einsum("chw,cr->rhw", scaled, weights.astype(np.float64)).clip(0, 1)
        return (mixed.transpose(1, 2, 0) * 255).round().astype(np.uint8)

"""A segmenter that sees one pixel at a time: in whatever tile or view, it says the same of a pixel."""

import torch

from pixvox.backbones.backbone import Backbone
from pixvox.heads.semantic_head import SemanticHead
from pixvox.layers import conv
from pixvox.normalizer import PercentileNormalizer
from pixvox.segmenter import Segmenter


class PixelFeatures(Backbone):
    """One convolution of a single pixel.

    Args:
        dims: 2 or 3.
        classes: Channels of the only level.
    """

    def __init__(self, dims, classes):
        super().__init__(dims, 1, [classes], [[1] * dims])
        self.conv = conv(dims, 1, classes, 1)

    def forward(self, images):
        return [self.conv(images)]


class PixelScores(SemanticHead):
    """Features are scores."""

    def scores(self, features, auxiliary):
        return features.levels[0], {}


def pointwise(dims=2, classes=4, seed=0):
    """Return a segmenter whose classes are bands of brightness, relative to the range of the full image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Segmenter(
            PixelFeatures(dims, classes), None, PixelScores(classes, dims), PercentileNormalizer()
        )
    steps = torch.arange(classes, dtype=torch.float32)
    with torch.no_grad():
        model.backbone.conv.weight.copy_((2 * steps).view(-1, *[1] * (dims + 1)))
        model.backbone.conv.bias.copy_(-(steps**2) + 2 * steps)
    return model.eval()


def noise(size, seed=0):
    """Return an un-normalised image whose contrast differs from place to place."""
    drawn = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.linspace(50, 4000, size[-1])

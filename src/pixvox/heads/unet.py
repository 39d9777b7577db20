"""U-Net's decoder: back up the levels of any backbone, and on to the pixels of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pixvox.heads.semantic_head import SemanticHead
from pixvox.layers import PerAxis, conv, conv_transpose, norm, resize
from pixvox.structures import Features

UPSAMPLING = ("transposed", "nearest", "linear")


class UNet(SemanticHead):
    """Goes from the coarsest level to the image's own pixels, putting each finer level beside what comes from below.

    "U-Net: Convolutional Networks for Biomedical Image Segmentation" (Ronneberger et al., 2015,
    https://arxiv.org/abs/1505.04597), with the norms, activations and deep supervision of "nnU-Net: a self-configuring
    method for deep learning-based biomedical image segmentation" (Isensee et al., 2021,
    https://arxiv.org/abs/1809.10486). Over ``residual_encoder`` and with one convolution it is nnU-Net's residual
    network.

    Args:
        in_channels: Channels of each level, finest first.
        strides: Strides of each level, per axis in array order; each a multiple of the finer one's. Where the finest is
            above 1, steps that double the size lead on to the image.
        num_classes: Classes, background included.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of each step, coarse to fine; by default those of the level that it reaches, and half as many
            at each step beyond the finest.
        kernel_sizes: Kernels of each step, coarse to fine, odd: one number or one per axis. By default 3.
        convs: Convolutions of each step.
        upsampling: ``"transposed"`` convolutions, or ``"nearest"`` or ``"linear"`` resizing.
        norm: Normalisation, see ``pixvox.layers.norm``.
        negative_slope: Of the leaky ReLU; 0 for the plain one.
        deep_supervision: Let the coarser steps, but for the coarsest, learn to classify too.
        losses: Terms by name, called as ``term(logits, labels)``; by default cross-entropy.
        aux_weight: Weight of the terms of the step before the last; each coarser one's is multiplied by it once more.
        score_threshold: Not used by semantic heads.
        pseudo_label_threshold: Pixels above this probability teach a student.

    Raises:
        ValueError: If ``spatial_dims`` is not 2 or 3, a stride is not a multiple of the finer one, a list does not have
            one entry per step, or there is no such ``upsampling``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        channels: Sequence[int] | None = None,
        kernel_sizes: Sequence[PerAxis] | None = None,
        convs: int = 2,
        upsampling: str = "transposed",
        norm: str = "instance",
        negative_slope: float = 0.01,
        deep_supervision: bool = True,
        losses: Mapping[str, nn.Module] | None = None,
        aux_weight: float = 0.5,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.95,
    ) -> None:
        super().__init__(
            num_classes, spatial_dims, losses, aux_weight, score_threshold, pseudo_label_threshold
        )
        if upsampling not in UPSAMPLING:
            raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLING)}, got {upsampling!r}")
        path = _path_up(strides)
        self.strides = path[1:]
        skips = [*reversed(in_channels[:-1]), *[0] * (len(path) - len(in_channels))]
        widths = list(channels) if channels is not None else _widths(in_channels, skips)
        kernels = list(kernel_sizes) if kernel_sizes is not None else [3] * len(skips)
        for name, given in (("channels", widths), ("kernel_sizes", kernels)):
            if len(given) != len(skips):
                raise ValueError(
                    f"{name} needs one entry for each of the {len(skips)} steps up from strides "
                    f"{[tuple(stride) for stride in strides]}, got {given}"
                )
        self.ups = nn.ModuleList()
        self.steps = nn.ModuleList()
        width = in_channels[-1]
        for i, (skip, out, kernel) in enumerate(zip(skips, widths, kernels, strict=True)):
            factor = [coarse // fine for coarse, fine in zip(path[i], path[i + 1], strict=True)]
            if upsampling == "transposed":
                self.ups.append(_Transposed(spatial_dims, width, skip or out, factor))
                width = skip or out
            else:
                self.ups.append(_Resize(upsampling))
            self.steps.append(_convs(spatial_dims, width + skip, out, kernel, convs, norm, negative_slope))
            width = out
        self.classifier = conv(spatial_dims, width, num_classes, 1)
        # The coarsest step has no scores of its own: nnU-Net gives them a weight of zero.
        taught = reversed(widths[1:-1]) if deep_supervision else ()
        self.aux_classifiers = nn.ModuleList(conv(spatial_dims, out, num_classes, 1) for out in taught)

    def blocks(self) -> list[nn.Module]:
        """Return the convolutions of each step."""
        return list(self.steps)

    def weight_of(self, which: str) -> float:
        """Return the weight of the terms of a step: ``aux1`` is the one before the last, ``aux2`` that before."""
        return float(self.aux_weight ** int(which.removeprefix("aux")))

    def scores(self, features: Features, auxiliary: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores on the image's pixels, and those of the coarser steps."""
        *skips, x = features.levels
        maps = []
        for up, step, stride in zip(self.ups, self.steps, self.strides, strict=True):
            skip = skips.pop() if skips else None
            size = _size(features, stride) if skip is None else skip.shape[2:]
            x = up(x, size)
            x = step(x if skip is None else torch.cat([x, skip], dim=1))
            maps.append(x)
        coarser = zip(self.aux_classifiers, reversed(maps[:-1]), strict=False) if auxiliary else ()
        scores = self.classifier(x)
        return scores, {f"aux{i}": classify(level) for i, (classify, level) in enumerate(coarser, 1)}


class _Transposed(nn.Module):
    """A transposed convolution whose kernel is its stride, cut off at the size that is wanted."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, factor: Sequence[int]) -> None:
        super().__init__()
        self.conv = conv_transpose(spatial_dims, in_channels, out_channels, factor, factor)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = self.conv(x)
        for axis, length in enumerate(size, start=2):
            x = x.narrow(axis, 0, length)
        return x


class _Resize(nn.Module):
    """Resizing without weights."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return resize(x, size, self.mode)


def _convs(
    spatial_dims: int,
    in_channels: int,
    channels: int,
    kernel: PerAxis,
    count: int,
    norm_name: str,
    slope: float,
) -> nn.Sequential:
    """Return convolutions, each with its norm and leaky ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [
            conv(spatial_dims, channels if i else in_channels, channels, kernel, bias=norm_name == "none"),
            norm(norm_name, spatial_dims, channels),
            nn.LeakyReLU(slope, inplace=True),
        ]
    return nn.Sequential(*layers)


def _path_up(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the strides from the coarsest level to the image: those of the levels, then halved step by step."""
    path = [tuple(stride) for stride in reversed(strides)]
    for coarse, fine in pairwise(path):
        if any(c % f for c, f in zip(coarse, fine, strict=True)):
            raise ValueError(f"stride {coarse} of a level is not a multiple of the finer one's, {fine}")
    while max(path[-1]) > 1:
        path.append(tuple(step // 2 if step % 2 == 0 else 1 for step in path[-1]))
    return path


def _widths(in_channels: Sequence[int], skips: Sequence[int]) -> list[int]:
    """Return the channels of each step: those of the level that it reaches, then half of the step before."""
    widths = [in_channels[-1]]
    for skip in skips:
        widths.append(skip or max(widths[-1] // 2, 1))
    return widths[1:]


def _size(features: Features, stride: Sequence[int]) -> tuple[int, ...]:
    """Return the size of a map of this stride."""
    return tuple(-(-length // step) for length, step in zip(features.padded_size, stride, strict=True))

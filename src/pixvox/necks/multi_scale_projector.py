"""The neck of LW-DETR: all levels of the backbone, brought to each scale and mixed there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pixvox.layers import ChannelNorm, conv, conv_transpose, norm
from pixvox.necks.neck import Neck

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}

_WIDE = 512
"""Maps of more channels are narrowed before they are made finer, as LW-DETR does."""


class MultiScaleProjector(Neck):
    """Gives each scale what all levels of the backbone know, mixed by one C2f block per scale.

    "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection" (Chen et al., 2024,
    https://arxiv.org/abs/2406.03459), section 3: maps of several blocks of a plain transformer, all of one stride,
    are made finer or coarser by ``scale_factors``, joined, and mixed.

    It takes pyramids as well (``simple``, ``resnet``): factors then refer to the finest level, and every level is
    brought to every scale, by halvings (convolutions of stride 2) and doublings (transposed convolutions, which
    halve the channels). Axes may have strides of their own; an axis whose finest stride is 1 is made no finer.

    Args:
        in_channels: Channels of the backbone's levels.
        strides: Strides of the backbone's levels, per axis in array order.
        spatial_dims: 2 or 3.
        scale_factors: Size of each scale over the finest level's, finest scale first, powers of 2: LW-DETR small has
            ``[1.0]``, large ``[2.0, 0.5]``. None gives the strides that the backbone has: one scale after a
            plain transformer, all of a pyramid.
        out_channels: Channels of every scale.
        num_blocks: Pairs of convolutions in each C2f block.
        expansion: Width inside the C2f block over ``out_channels``.
        activation: ``"silu"``, ``"relu"`` or ``"gelu"``.
        norm: As ``pixvox.layers.norm``: ``"batch"`` (LW-DETR), ``"channel"`` (RF-DETR), ``"group"`` for batches of one
            or two.

    Raises:
        ValueError: If the factors are no descending powers of 2 or lead to a stride that is no whole number, or a
            level's stride is no power of 2 times the finest's.

    Example:
        >>> neck = MultiScaleProjector((8, 8), ((16, 16), (16, 16)), scale_factors=(2.0, 0.5), out_channels=4)
        >>> levels = neck((torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 4, 6)))
        >>> [tuple(level.shape) for level in levels], neck.strides
        ([(1, 4, 8, 12), (1, 4, 2, 3)], ((8, 8), (32, 32)))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        spatial_dims: int = 2,
        scale_factors: Sequence[float] | None = None,
        out_channels: int = 256,
        num_blocks: int = 3,
        expansion: float = 0.5,
        activation: str = "silu",
        norm: str = "batch",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        targets = _targets(strides, scale_factors)
        super().__init__((out_channels,) * len(targets), targets)
        self.scales = nn.ModuleList()
        for target in targets:
            steps = [
                Resampler(spatial_dims, channels, stride, target, norm)
                for channels, stride in zip(in_channels, strides, strict=True)
            ]
            joined = sum(step.out_channels for step in steps)
            mix = C2f(spatial_dims, joined, out_channels, num_blocks, expansion, activation, norm)
            self.scales.append(Scale(steps, mix))

    def blocks(self) -> list[nn.Module]:
        """Return the blocks that mix the levels, one per scale."""
        return [block for block in self.modules() if isinstance(block, C2f)]

    def forward(
        self, levels: Sequence[Tensor], valid_sizes: Int[Tensor, "batch dims"] | None = None
    ) -> tuple[Tensor, ...]:
        """Return one map per scale, finest first."""
        return tuple(scale(levels) for scale in self.scales)


class Scale(nn.Module):
    """All levels at one scale: resampled, joined, mixed and normalised.

    Args:
        resamplers: What brings each level to this scale.
        mix: The block that mixes them.
    """

    def __init__(self, resamplers: Sequence[nn.Module], mix: C2f) -> None:
        super().__init__()
        self.resamplers = nn.ModuleList(resamplers)
        self.mix = mix
        self.norm = ChannelNorm(mix.out_channels, eps=1e-6)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the map of this scale."""
        joined = torch.cat([step(x) for step, x in zip(self.resamplers, levels, strict=True)], dim=1)
        output: Tensor = self.norm(self.mix(joined))
        return output


class C2f(nn.Module):
    """Half of the channels pass a chain of convolutions, and every link of it is joined.

    The block of YOLOv8 in LW-DETR's form: without shortcuts, with pairs of 3 x 3 convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_blocks: Links of the chain.
        expansion: Width of the chain over ``out_channels``.
        activation: See ``ACTIVATIONS``.
        norm: As ``pixvox.layers.norm``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        expansion: float,
        activation: str,
        norm: str,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        width = int(out_channels * expansion)

        def unit(channels: int, outputs: int, kernel: int) -> nn.Sequential:
            return _unit(spatial_dims, channels, outputs, kernel, (1,) * spatial_dims, norm, activation)

        self.split = unit(in_channels, 2 * width, 1)
        self.chain = nn.ModuleList(
            nn.Sequential(unit(width, width, 3), unit(width, width, 3)) for _ in range(num_blocks)
        )
        self.join = unit((2 + num_blocks) * width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed maps."""
        links = list(self.split(x).chunk(2, dim=1))
        for pair in self.chain:
            links.append(pair(links[-1]))
        output: Tensor = self.join(torch.cat(links, dim=1))
        return output


class Resampler(nn.Sequential):
    """Brings maps of one stride to another by halvings and doublings.

    Args:
        spatial_dims: 2 or 3.
        channels: Channels of the maps.
        stride: Their stride, per axis in array order.
        target: The stride wanted.
        norm: As ``pixvox.layers.norm``.
    """

    def __init__(
        self, spatial_dims: int, channels: int, stride: Sequence[int], target: Sequence[int], norm: str
    ) -> None:
        layers: list[nn.Module] = []
        finer = [max(1, s // t) for s, t in zip(stride, target, strict=True)]
        while any(ratio > 1 for ratio in finer):
            step = [min(2, ratio) for ratio in finer]
            if channels > _WIDE:
                layers.append(
                    _unit(spatial_dims, channels, channels // 2, 1, (1,) * spatial_dims, norm, "relu")
                )
                channels //= 2
            layers.append(conv_transpose(spatial_dims, channels, channels // 2, step, step))
            channels //= 2
            finer = [ratio // s for ratio, s in zip(finer, step, strict=True)]
        coarser = [max(1, t // s) for s, t in zip(stride, target, strict=True)]
        while any(ratio > 1 for ratio in coarser):
            step = [min(2, ratio) for ratio in coarser]
            layers.append(_unit(spatial_dims, channels, channels, 3, step, norm, "relu"))
            coarser = [ratio // s for ratio, s in zip(coarser, step, strict=True)]
        super().__init__(*layers)
        self.out_channels = channels


def _unit(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: Sequence[int],
    norm_name: str,
    activation: str,
) -> nn.Sequential:
    return nn.Sequential(
        conv(spatial_dims, in_channels, out_channels, kernel_size, stride, bias=norm_name == "none"),
        norm(norm_name, spatial_dims, out_channels),
        ACTIVATIONS[activation](),
    )


def _targets(
    strides: Sequence[Sequence[int]], scale_factors: Sequence[float] | None
) -> list[tuple[int, ...]]:
    """Return the stride of each scale, per axis."""
    finest = tuple(min(stride[axis] for stride in strides) for axis in range(len(strides[0])))
    ratios = {s / f for stride in strides for s, f in zip(stride, finest, strict=True)}
    odd = sorted(ratio for ratio in ratios if not _is_power_of_2(ratio))
    if odd:
        raise ValueError(
            f"strides {[tuple(s) for s in strides]} are no powers of 2 times the finest, {finest}: halvings and "
            "doublings do not lead from one to the other"
        )
    if scale_factors is None:
        return sorted({tuple(int(s) for s in stride) for stride in strides})
    factors = list(scale_factors)
    if not factors or factors != sorted(set(factors), reverse=True) or not all(map(_is_power_of_2, factors)):
        raise ValueError(
            f"scale_factors must be descending powers of 2, such as [2.0, 1.0, 0.5, 0.25], got {factors}"
        )
    exact = [tuple(max(1.0, s / factor) for s in finest) for factor in factors]
    if any(
        not t.is_integer() or not _is_power_of_2(s / t) for e in exact for s, t in zip(finest, e, strict=True)
    ):
        raise ValueError(
            f"scale_factors={factors} of the finest level, of stride {finest}, give the strides {exact}: doublings "
            "lead to whole strides only; choose smaller factors, or a backbone whose stride is a power of 2"
        )
    targets = [tuple(int(t) for t in target) for target in exact]
    if len(set(targets)) < len(targets):
        raise ValueError(
            f"scale_factors={factors} give the strides {targets} twice: the finest level has stride {finest}, and 1 "
            "is the finest that there is"
        )
    return targets


def _is_power_of_2(value: float) -> bool:
    return value > 0 and math.log2(value).is_integer()

"""ResNet-18 to -152 from timm; in 3-D the same network, lifted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import timm
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import Suggestion, suggest_depth_strides
from pixvox.layers import lift_to_3d

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

REDUCTIONS = ("conv1", "maxpool", "layer2", "layer3", "layer4")
"""Names of the parts of a usual residual network that halve the size, in their order."""

_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class ResidualBackbone(Backbone):
    """What residual networks have in common: lifting to 3-D, frozen parts, blocks.

    Args:
        network: A network for images whose parts have torchvision's names (``conv1``, ``bn1``, ``maxpool``,
            ``layer1``, ...) and which returns a list of feature maps.
        channels: Channels of each feature map.
        strides: Input pixels per feature pixel of each feature map.
        reductions: Names of the parts that halve the size, in their order.
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        out_levels: Levels given out, counted from 1; 0 is the stem's output.
        depth_strides: In 3-D, strides along depth of ``reductions``; by default as in the plane.
        frozen_stages: Parts whose weights and statistics stay as they are.
        norm: ``"frozen"`` keeps weights and statistics of every batch norm as they are.
        stride_in_1x1: Bottlenecks stride in their first layer instead of the second.

    Raises:
        ValueError: If ``depth_strides`` has another length than ``reductions``, or ``norm`` is unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        reductions: Sequence[str],
        spatial_dims: int,
        in_channels: int,
        out_levels: Sequence[int],
        depth_strides: Sequence[int] | None,
        frozen_stages: int,
        norm: str,
        stride_in_1x1: bool,
    ) -> None:
        if norm not in ("batch", "frozen"):
            raise ValueError(f"norm must be 'batch' or 'frozen' (as loaded, never trained), got {norm!r}")
        if stride_in_1x1:
            _stride_first(network)
        per_axis: list[tuple[int, ...]] = [(stride,) * 2 for stride in strides]
        if spatial_dims == 3:
            depth = tuple(depth_strides) if depth_strides is not None else (2,) * len(reductions)
            if len(depth) != len(reductions):
                raise ValueError(
                    f"depth_strides needs one entry for each of {tuple(reductions)}, got {depth}"
                )
            steps = dict(zip(reductions, depth, strict=True))
            for part, child in network.named_children():
                setattr(network, part, lift_to_3d(child, depth_stride=steps.get(part)))
            per_axis = [
                (_depth_reduction(steps, level), *s) for level, s in zip(out_levels, per_axis, strict=True)
            ]
        super().__init__(spatial_dims, in_channels, channels, per_axis)
        self.network = network
        self.frozen_stages = frozen_stages
        self.norm = norm
        for frozen in self._frozen_parts():
            frozen.requires_grad_(False)

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        return suggest_depth_strides(facts, cls.num_reductions(options))

    @classmethod
    def num_reductions(cls, options: Mapping[str, Any]) -> int:
        """Return how many parts halve the size, given the options of the backbone."""
        return len(REDUCTIONS)

    def _frozen_parts(self) -> list[nn.Module]:
        stages = ["stem", *(name for name, _ in self.network.named_children() if name.startswith("layer"))]
        names = stages[: self.frozen_stages]
        names += ["conv1", "bn1"] if names else []
        parts = [part for name, part in self.network.named_children() if name in names]
        if self.norm == "frozen":
            parts += [part for part in self.network.modules() if isinstance(part, _BATCH_NORMS)]
        return parts

    def train(self, mode: bool = True) -> ResidualBackbone:
        """Set the mode; the statistics of frozen parts do not move."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks."""
        stages = [child for name, child in self.network.named_children() if name.startswith("layer")]
        return [block for stage in stages for block in stage.children()]

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first."""
        return tuple(self.network(images))


class ResNet(ResidualBackbone):
    """Residual networks.

    "Deep Residual Learning for Image Recognition" (He et al., 2015, https://arxiv.org/abs/1512.03385). timm's
    ``resnet*`` have torchvision's layers and weights' names. In 3-D every layer is lifted with its 2-D
    kernel in the centre slice, so ImageNet weights serve volumes too.

    Args:
        name: timm's name, such as ``"resnet50"``.
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images; other than 3 adapts the first layer's weights.
        pretrained: Load timm's ImageNet weights (fetched once by timm).
        out_levels: Levels given out, counted from 1 (stride 4) to 4 (stride 32); 0 is the stem's output
            (stride 2).
        depth_strides: In 3-D, strides along depth of stem, pool, and stages 2 to 4; ``(1, 1, 2, 2, 2)``
            keeps thin or anisotropic volumes longer. By default as in the plane.
        frozen_stages: Parts whose weights and statistics stay as they are: 0 none, 1 the stem, 2 also stage
            1, ...
        output_stride: 8 or 16 replaces the last strides by dilation (2-D only).
        norm: ``"batch"``, or ``"frozen"``: weights and statistics of every batch norm stay as they are, as in
            most published detectors.
        stride_in_1x1: Bottlenecks stride in their first layer, as in the paper, instead of the second.

    Raises:
        ValueError: If ``output_stride`` is asked for in 3-D, ``depth_strides`` has not 5 entries, or ``norm`` is
            unknown.
    """

    def __init__(
        self,
        name: str = "resnet50",
        spatial_dims: int = 2,
        in_channels: int = 3,
        pretrained: bool = False,
        out_levels: Sequence[int] = (1, 2, 3, 4),
        depth_strides: Sequence[int] | None = None,
        frozen_stages: int = 0,
        output_stride: int = 32,
        norm: str = "batch",
        stride_in_1x1: bool = False,
    ) -> None:
        if spatial_dims == 3 and output_stride != 32:
            raise ValueError(
                f"output_stride={output_stride} exists for spatial_dims=2; in 3-D choose depth_strides and out_levels"
            )
        network = timm.create_model(
            name,
            pretrained=pretrained,
            features_only=True,
            in_chans=in_channels,
            out_indices=tuple(out_levels),
            output_stride=output_stride,
        )
        info: Any = network.feature_info
        super().__init__(
            network,
            info.channels(),
            info.reduction(),
            REDUCTIONS,
            spatial_dims,
            in_channels,
            out_levels,
            depth_strides,
            frozen_stages,
            norm,
            stride_in_1x1,
        )


def _depth_reduction(steps: Mapping[str, int], level: int) -> int:
    """Return the product of the strides along depth up to ``level`` (0 is the stem's convolution)."""
    reached = (
        ["conv1", "maxpool", *(f"layer{stage}" for stage in range(1, level + 1))] if level else ["conv1"]
    )
    return math.prod(steps.get(part, 1) for part in reached)


def _stride_first(network: nn.Module) -> None:
    """Move the stride of each bottleneck from its second layer to its first."""
    for block in network.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if hasattr(block, "conv3") and first is not None and second is not None:
            first.stride, second.stride = second.stride, first.stride

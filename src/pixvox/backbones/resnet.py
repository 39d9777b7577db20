"""ResNet-18 to -152 from timm; in 3-D the same network, lifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import timm
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.data.suggestions import NNUNET, Suggestion, by, halving
from pixvox.layers import lift_to_3d

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

_REDUCTIONS = ("conv1", "maxpool", "layer2", "layer3", "layer4")
"""timm's names of the parts that halve the size, in their order."""


class ResNet(Backbone):
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

    Raises:
        ValueError: If ``output_stride`` is asked for in 3-D, or ``depth_strides`` has not 5 entries.
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
        strides: list[tuple[int, ...]] = [(reduction,) * 2 for reduction in info.reduction()]
        if spatial_dims == 3:
            depth = tuple(depth_strides) if depth_strides is not None else (2, 2, 2, 2, 2)
            if len(depth) != len(_REDUCTIONS):
                raise ValueError(f"depth_strides needs one entry for each of {_REDUCTIONS}, got {depth}")
            for part, child in network.named_children():
                step = depth[_REDUCTIONS.index(part)] if part in _REDUCTIONS else None
                setattr(network, part, lift_to_3d(child, depth_stride=step))
            strides = [
                (_depth_reduction(depth, level), *s) for level, s in zip(out_levels, strides, strict=True)
            ]
        super().__init__(spatial_dims, in_channels, info.channels(), strides)
        self.network = network
        self.frozen_stages = frozen_stages
        for frozen in self._frozen_parts():
            frozen.requires_grad_(False)

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        if facts.spatial_dims == 2:
            return []
        reached, depth = [1, 1, 1], []
        for _ in _REDUCTIONS:
            depth.append(halving(facts, reached)[0])
            reached = [reached[0] * depth[-1], reached[1] * 2, reached[2] * 2]
        return [
            Suggestion(
                "depth_strides",
                depth,
                f"spacing {by(facts.spacing) if facts.spacing else 'unknown'}, {facts.median_size[0]} planes (median)",
                "depth is not halved while its voxels are twice as long as those in the plane, or cells run out",
                NNUNET,
            )
        ]

    def _frozen_parts(self) -> list[nn.Module]:
        stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
        names = [name for stage in stages[: self.frozen_stages] for name in stage]
        return [part for name, part in self.network.named_children() if name in names]

    def train(self, mode: bool = True) -> ResNet:
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


def _depth_reduction(depth_strides: Sequence[int], level: int) -> int:
    """Return the product of the strides along depth up to ``level`` (0 is the stem)."""
    product = 1
    for step in depth_strides[: level + 1]:
        product *= step
    return product

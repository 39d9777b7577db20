"""What backbones made of a network for images have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.backbones.lifting import lift_to_3d
from pixvox.data.suggestions import Suggestion, suggest_depth_strides

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_LIFTABLE = "for volumes choose a convolutional network, or backbone=swin, dino or dinov3"

_PROBE = 64
"""Side of the image that tells which weights a level is made of."""


class NetworkBackbone(Backbone):
    """A network for images behind the interface of backbones: lifted to volumes, frozen in part, of any input size.

    Levels are numbered as in feature pyramids: level ``l`` has ``2 ** l`` input pixels per feature pixel, but for those
    whose strides are replaced by dilation.

    Args:
        network: The network, convolutional where ``spatial_dims`` is 3.
        channels: Channels of each level given out.
        strides: Input pixels per feature pixel of each, in the plane.
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images.
        out_levels: Levels given out, ascending.
        depth_strides: In 3-D, stride along depth for each halving of the plane; by default 2.
        depth_kernels: In 3-D, longest kernels along depth at each level from 1 on; by default as in the plane.
        freeze: Weights and statistics that this level and those before it are made of stay as they are; 0 for none, -1
            for all.
        freeze_norms: Weights and statistics of every batch norm stay as they are.

    Raises:
        ValueError: If ``depth_strides`` or ``depth_kernels`` have too few entries, ``freeze`` is out of range, or a
            layer has no twin for volumes.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        spatial_dims: int,
        in_channels: int,
        out_levels: Sequence[int],
        depth_strides: Sequence[int] | None = None,
        depth_kernels: Sequence[int] | None = None,
        freeze: int = 0,
        freeze_norms: bool = False,
    ) -> None:
        depth = tuple(depth_strides) if depth_strides is not None else (2,) * max(out_levels)
        halvings = [round(math.log2(stride)) for stride in strides]
        along = [(math.prod(depth[:count]),) * (spatial_dims - 2) for count in halvings]
        per_level = [(*deep, stride, stride) for deep, stride in zip(along, strides, strict=True)]
        super().__init__(spatial_dims, in_channels, channels, per_level)
        self.out_levels = tuple(out_levels)
        self.network = network
        self.pads = _needs_whole_cells(network)
        frozen = self._made_of(freeze) if freeze else []
        if spatial_dims == 3:
            self._lift(depth, depth_kernels)
        norms = [
            name
            for name, part in self.network.named_modules()
            if freeze_norms and isinstance(part, _BATCH_NORMS)
        ]
        self._frozen = (*frozen, *norms)
        self.freeze_parts()

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        return suggest_depth_strides(facts, max(options["out_levels"] or [cls.last_level(options)]))

    @classmethod
    def last_level(cls, options: Mapping[str, Any]) -> int:
        """Return the coarsest level that is given out by default."""
        return 5

    @abstractmethod
    def maps(self, images: Tensor, levels: Sequence[int]) -> Sequence[Tensor]:
        """Return the maps of ``levels``, up to the last that is given out."""

    @abstractmethod
    def known_levels(self) -> list[int]:
        """Return all levels that ``maps`` can give."""

    def frozen_parts(self) -> list[nn.Module]:
        """Return what stays as it is."""
        return [self.network.get_submodule(name) for name in self._frozen]

    def blocks(self) -> list[nn.Module]:
        """Return the composite parts of the network's stages."""
        return list(_composites(self.network))

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first.

        Networks that cut images into patches or windows get them padded with zeros at their far ends to multiples of
        ``size_divisor``, and their maps are cropped; purely convolutional ones take any size as it is.

        Raises:
            ValueError: If the network's maps do not have the strides that it tells.
        """
        levels = self.maps(self.padded(images) if self.pads else images, self.out_levels)
        return self.cropped(levels, images.shape[2:])

    def _lift(self, depth_strides: Sequence[int], depth_kernels: Sequence[int] | None) -> None:
        """Lift the network and make sure that it gives for a slice what it gave for the image."""
        kind = type(self.network).__name__

        def run(images: Tensor) -> Sequence[Tensor]:
            return self.maps(images, self.out_levels)

        image = torch.rand(1, self.in_channels, *(_PROBE,) * 2, generator=torch.Generator().manual_seed(0))
        self.network.eval()
        with torch.no_grad():
            expected = run(image)
            self.network = lift_to_3d(
                self.network, self.in_channels, depth_strides, depth_kernels, run
            ).eval()
            try:
                given = [level[:, :, 0] for level in run(image[:, :, None])]
            except (RuntimeError, ValueError, AssertionError, IndexError) as error:
                raise ValueError(f"{kind} has layers for images alone ({error}); {_LIFTABLE}") from error
        self.network.train()
        for level, reference in zip(given, expected, strict=True):
            if not torch.allclose(level, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max())):
                raise ValueError(f"{kind} has layers that look at two axes of volumes alone; {_LIFTABLE}")

    def _made_of(self, freeze: int) -> list[str]:
        """Return the names of the outermost parts of the network all of whose weights the frozen levels are made of."""
        last = max(self.out_levels)
        if not -1 <= freeze <= last:
            raise ValueError(
                f"freeze={freeze}: it is a level from 1 to {last} (that and finer ones stay as they are), 0 for none, "
                "-1 for all"
            )
        if freeze == -1:
            return [""]
        training = self.network.training
        self.network.eval()
        image = torch.zeros(1, self.in_channels, *(_PROBE,) * 2)
        finer = [level for level in self.known_levels() if level <= freeze]
        maps = self.maps(image, finer) if finer else ()
        self.network.train(training)
        weights = dict(self.network.named_parameters())
        total = sum((level.sum() for level in maps), torch.zeros(()))
        used = torch.autograd.grad(total, list(weights.values()), allow_unused=True) if finer else []
        names = {name for name, gradient in zip(weights, used, strict=False) if gradient is not None}
        return list(_outermost(self.network, names, ""))


def _needs_whole_cells(network: nn.Module) -> bool:
    """Tell whether the network would lose pixels at the far ends, or has windows."""
    return any(
        isinstance(part, nn.Linear)
        or (isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and part.stride == part.kernel_size
            and part.stride not in (1, (1, 1)))
        for part in network.modules()
    )  # fmt: skip


def _outermost(module: nn.Module, names: set[str], prefix: str) -> Iterator[str]:
    """Yield the names of the outermost parts whose parameters, of which there are some, are all among ``names``."""
    own = [prefix + name for name, _ in module.named_parameters()]
    if own and names.issuperset(own):
        yield prefix.removesuffix(".")
    else:
        for name, child in module.named_children():
            yield from _outermost(child, names, f"{prefix}{name}.")


def _composites(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts inside containers and stages that are made of parts themselves."""
    for child in module.children():
        inside = [part for part in child.children() if next(part.parameters(), None) is not None]
        if isinstance(child, nn.Sequential | nn.ModuleList) or type(child).__name__.endswith("Stage"):
            yield from _composites(child)
        elif len(inside) > 1:
            yield child

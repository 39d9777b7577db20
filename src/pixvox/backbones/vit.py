"""Plain vision transformers of timm with a simple feature pyramid, for images and volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.backbones.lifting import lift_conv
from pixvox.data.suggestions import Suggestion, suggest_depth_strides
from pixvox.layers import conv_transpose, max_pool, norm
from pixvox.weights.timm_network import create_timm

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

_DEPTH_POSITIONS = 16
"""Entries of the table of positions along depth, before it is resized to a volume's."""


class ViT(Backbone):
    """A vision transformer of one stride, like DINOv2, DINOv3 or SAM's, with a pyramid of four levels made of its map.

    "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (Dosovitskiy et al., 2020,
    https://arxiv.org/abs/2010.11929); the pyramid is that of "Exploring Plain Vision Transformer Backbones for Object
    Detection" (Li et al., 2022, https://arxiv.org/abs/2203.16527). Any input size and aspect: images are padded inside
    to whole cells, positions are resized to the grid, maps are cropped.

    Volumes are cut into patches with a depth and all their tokens attend to each other. The patch embedding is lifted
    with its 2-D kernel in the centre slice; positions along depth come from a learned table that is added and starts
    at zero, so that a volume of one patch along depth begins with what the network gives for its slice.

    Args:
        name: timm's name, such as ``"vit_small_patch14_dinov2"``, ``"vit_small_patch16_dinov3"`` or
            ``"samvit_base_patch16"`` (images only); may hold ``{variant}``.
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of the images; other than 3 adapts the embedding's weights.
        pretrained: Load timm's weights (fetched once by timm), or those of a file or run folder at this path.
        patch_size: Side of the patches in the plane, a power of two; weights for another side are resampled.
        feature_layer: Block whose tokens are used, counted from 1, or from the end if negative; later ones are left
            out.
        out_levels: Levels given out; level ``l`` has stride ``2 ** l``.
        depth_strides: In 3-D, stride along depth for each halving of the plane; those before the patch's level give
            the depth of a patch. By default as in the plane.
        drop_path: Chance that a block is left out of a training step, for the last block; earlier ones less.
        freeze: 1 keeps the embedding as it is, ``1 + b`` also the first ``b`` blocks; 0 nothing, -1 the whole
            transformer. The pyramid always learns.
        variant: Takes the place of ``{variant}`` in the name.

    Raises:
        ValueError: If timm has no such network or it is not a plain one, ``patch_size`` is no power of two, a block or
            level does not exist, or volumes are asked of SAM's.
        WeightsError: If the weights are not found or do not fit.

    Example:
        >>> vit = ViT("vit_tiny_patch16_224", feature_layer=1, in_channels=1)
        >>> [tuple(level.shape) for level in vit(torch.zeros(1, 1, 61, 83))]
        [(1, 48, 16, 21), (1, 96, 8, 11), (1, 192, 4, 6), (1, 192, 2, 3)]
    """

    def __init__(
        self,
        name: str = "vit_small_patch14_dinov2",
        spatial_dims: int = 2,
        in_channels: int = 3,
        pretrained: bool | str = False,
        patch_size: int = 16,
        feature_layer: int | None = None,
        out_levels: Sequence[int] = (2, 3, 4, 5),
        depth_strides: Sequence[int] | None = None,
        drop_path: float | None = None,
        freeze: int = 0,
        variant: str | None = None,
    ) -> None:
        name = name.format(variant=variant)
        base = _base_level(patch_size)
        last = max(*out_levels, base)
        depth = tuple(depth_strides) if depth_strides is not None else (2,) * last
        if len(depth) < last:
            raise ValueError(
                f"depth_strides needs one entry for each of {last} halvings of the plane, got {list(depth)}"
            )
        if min(out_levels) < base - 2 or max(out_levels) > base + 2:
            raise ValueError(
                f"out_levels must be of {base - 2} to {base + 2} with patches of {patch_size}, got {list(out_levels)}"
            )
        options: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
        network = _transformer(name, pretrained, in_channels, patch_size, feature_layer, options)
        # SAM's last layers are called its neck, and change the channels.
        sam = isinstance(network, VisionTransformerSAM)
        width: int = network.neck[0].out_channels if sam else network.embed_dim
        if spatial_dims == 3:
            network = VolumeTransformer(network, name, math.prod(depth[:base]))
        levels = sorted(out_levels)
        strides = [
            (*(math.prod(depth[:level]),) * (spatial_dims - 2), 2**level, 2**level) for level in levels
        ]
        super().__init__(
            spatial_dims, in_channels, [width // 2 ** max(base - level, 0) for level in levels], strides
        )
        self.patch = (*(math.prod(depth[:base]),) * (spatial_dims - 2), patch_size, patch_size)
        self.network = network
        self.freeze = freeze
        steps = [(*(step,) * (spatial_dims - 2), 2, 2) for step in depth]
        self.pyramid = nn.ModuleList(
            _Up(spatial_dims, width, steps[level:base][::-1]) if level < base else _Down(steps[base:level])
            for level in levels
        )
        self.freeze_parts()

    @classmethod
    def suggest(cls, facts: Fingerprint, options: Mapping[str, Any]) -> list[Suggestion]:
        """Choose the strides along depth by spacing and size."""
        return suggest_depth_strides(facts, max(*options["out_levels"], _base_level(options["patch_size"])))

    @property
    def size_divisor(self) -> tuple[int, ...]:
        """Input sizes are padded to whole patches and whole cells of the coarsest level."""
        return tuple(max(pair) for pair in zip(super().size_divisor, self.patch, strict=True))

    def frozen_parts(self) -> list[nn.Module]:
        """Return the embedding and the blocks that stay as they are."""
        if self.freeze == -1:
            return [self.network]
        return [self.network.get_submodule("patch_embed"), *self.blocks()][: self.freeze]

    def freeze_parts(self) -> None:
        """Let no gradient reach the weights of ``frozen_parts``, nor the learned tokens and positions of images."""
        super().freeze_parts()
        for name, parameter in self.network.named_parameters():
            if self.freeze and name.removeprefix("network.") in ("pos_embed", "cls_token", "reg_token"):
                parameter.requires_grad_(False)

    def blocks(self) -> list[nn.Module]:
        """Return the transformer blocks."""
        transformer = self.network.network if isinstance(self.network, VolumeTransformer) else self.network
        return list(transformer.get_submodule("blocks").children())

    def forward(self, images: Float[Tensor, "batch channels *spatial"]) -> tuple[Tensor, ...]:
        """Return one feature map per level, finest first."""
        maps = self._maps(self.padded(images))
        return self.cropped([level(maps) for level in self.pyramid], images.shape[2:])

    def _maps(self, images: Tensor) -> Tensor:
        if isinstance(self.network, VolumeTransformer):
            volume: Tensor = self.network(images)
            return volume
        network: Any = self.network
        maps: list[Tensor] = network.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )
        return maps[0]


class ImageViT(ViT):
    """A vision transformer whose blocks have windows or positions in the plane, such as SAM's: for images.

    Arguments and errors are those of ``ViT``; what is for volumes has no effect.
    """

    supported_dims = (2,)


class VolumeTransformer(nn.Module):
    """The blocks of a transformer for images, fed with the patches of volumes.

    Args:
        network: ``VisionTransformer`` or ``Eva`` of timm.
        name: Its name, for errors.
        depth: Slices of a patch.

    Raises:
        ValueError: If it is of another kind.
    """

    def __init__(self, network: Any, name: str, depth: int) -> None:
        if not isinstance(network, VisionTransformer | Eva) or getattr(network, "rope_mixed", False):
            raise ValueError(
                f"{name!r} has windows or positions for images alone; for volumes choose backbone=dino, dinov3 or swin"
            )
        super().__init__()
        self.patch_embed = lift_conv(network.patch_embed.proj, depth)
        self.grid = tuple(network.patch_embed.grid_size)
        self.depth_positions = nn.Parameter(torch.zeros(1, network.embed_dim, _DEPTH_POSITIONS))
        network.patch_embed = nn.Identity()
        self.network: Any = network

    def forward(self, volumes: Float[Tensor, "batch channels depth height width"]) -> Tensor:
        """Return the map of the last block, ``(batch, channels, *grid)``."""
        network = self.network
        patches = self.patch_embed(volumes).movedim(1, -1)
        depth, *plane = patches.shape[1:4]
        learned = [token for token in (network.cls_token, network.reg_token) if token is not None]
        prefix = torch.cat([*learned, patches.new_zeros(1, 0, patches.shape[-1])], dim=1)
        if network.pos_embed is not None:
            count = 0 if network.no_embed_class else network.num_prefix_tokens
            positions = resample_abs_pos_embed(
                network.pos_embed, new_size=plane, old_size=self.grid, num_prefix_tokens=count
            )
            patches = patches + positions[:, count:].unflatten(1, (1, *plane))
            prefix = prefix + positions[:, :count] if count else prefix
        along = F.interpolate(self.depth_positions, size=depth, mode="linear")
        patches = patches + along.movedim(1, -1)[:, :, None, None]
        tokens = torch.cat([prefix.expand(len(patches), -1, -1), patches.flatten(1, 3)], dim=1)
        tokens = network.norm_pre(network.pos_drop(tokens))
        rope = getattr(network, "rope", None)
        angles = () if rope is None else (rope.get_embed(plane).repeat(depth, 1),)
        for block in network.blocks:
            tokens = block(tokens, *angles)
        maps: Tensor = network.norm(tokens)[:, prefix.shape[1] :].unflatten(1, (depth, *plane)).movedim(-1, 1)
        return maps


class _Up(nn.Sequential):
    """Transposed convolutions that double the size and halve the channels, one per level."""

    def __init__(self, spatial_dims: int, channels: int, steps: Sequence[Sequence[int]]) -> None:
        layers: list[nn.Module] = []
        for i, step in enumerate(steps):
            if i:
                layers += [norm("channel", spatial_dims, channels), nn.GELU()]
            layers.append(conv_transpose(spatial_dims, channels, channels // 2, step, step))
            channels //= 2
        super().__init__(*layers)


class _Down(nn.Module):
    """Maxima that halve the size, one per level; the map itself for none."""

    def __init__(self, steps: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.steps = tuple(steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = max_pool(x, step, step)
        return x


def _base_level(patch_size: int) -> int:
    """Return the level of the patches."""
    level = round(math.log2(patch_size)) if patch_size > 0 else 0
    if 2**level != patch_size:
        raise ValueError(
            f"patch_size={patch_size}: the levels of a pyramid need a power of two, such as 16; weights for another "
            "side (DINOv2's have 14) are resampled"
        )
    return level


def _transformer(
    name: str,
    pretrained: bool | str,
    in_channels: int,
    patch_size: int,
    feature_layer: int | None,
    options: dict[str, Any],
) -> Any:
    """Return a transformer without head, cut off after ``feature_layer``."""
    with torch.device("meta"):
        native = create_timm(name)
    plain = isinstance(native, VisionTransformer | Eva | VisionTransformerSAM)
    if not plain:
        raise ValueError(
            f"{name!r} is no plain vision transformer (it is a {type(native).__name__}); choose backbone=timm "
            f"backbone.name={name}"
        )
    count = len(native.blocks)
    number = count if feature_layer is None else feature_layer + (count + 1 if feature_layer < 0 else 0)
    if not 1 <= number <= count:
        raise ValueError(
            f"feature_layer={feature_layer}: {name!r} has blocks 1 to {count}, or -1 to -{count} from the end"
        )
    # As many positions as it was trained with: they are resized to each image from there.
    size = [patches * patch_size for patches in native.patch_embed.grid_size]
    if not isinstance(native, VisionTransformerSAM):
        options = {**options, "dynamic_img_size": True}
    network = create_timm(
        name, pretrained, in_chans=in_channels, num_classes=0, patch_size=patch_size, img_size=size, **options
    )
    network.prune_intermediate_layers([number - 1], prune_norm=False, prune_head=True)
    return network

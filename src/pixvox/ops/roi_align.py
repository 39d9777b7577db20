"""RoIAlign for any number of dimensions, on one feature map or on the levels of a pyramid.

"Mask R-CNN" (He et al., 2017, https://arxiv.org/abs/1703.06870); levels are assigned as in "Feature Pyramid
Networks" (Lin et al., 2017, https://arxiv.org/abs/1612.03144). In 2-D values and gradients are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pixvox.ops.sampling import channels_last_table, multilinear_sampling

_MOST_TAPS = (
    2**23
)  # rows and weights of so many taps are ~100 MB; beyond, they are made again in the backward


def roi_align(
    features: Float[Tensor, "batch channels *spatial"],
    boxes: Float[Tensor, "k columns"] | Sequence[Float[Tensor, "..."]],
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Float[Tensor, "k channels *output"]:
    """Average multilinear samples of the features in each bin of each box.

    Args:
        features: Feature map; channels-last memory is used as it is, other memory costs one copy.
        boxes: ``(k, 1 + 2 * dims)`` with the image's index before the coordinates, or one ``(n, 2 * dims)``
            tensor per image; ``[x0, y0, (z0,) x1, y1, (z1)]`` in input pixels. No gradient flows to them.
        output_size: Bins per axis in array order, or one number for all axes.
        spatial_scale: Feature pixels per input pixel (1 / stride): one number, or one per axis (array order).
        sampling_ratio: Samples per bin and axis; at most 0 for as many as the bin has feature pixels.
        aligned: Shift by half a pixel, so that pixel centres lie at +0.5 in box coordinates; without, boxes
            are at least one feature pixel long.

    Returns:
        The features of each box, in the order of the boxes.

    Raises:
        ValueError: If the boxes do not fit the number of axes or of images.

    Example:
        >>> ramp = torch.arange(8.0).expand(1, 1, 4, 8)
        >>> roi_align(ramp, [torch.tensor([[2.0, 0, 6, 4]])], output_size=2, aligned=True)[0, 0].tolist()
        [[2.5, 4.5], [2.5, 4.5]]
    """
    size = tuple(features.shape[2:])
    dims = len(size)
    rois = _with_image_index(boxes, features)
    bins = (output_size,) * dims if isinstance(output_size, int) else tuple(int(n) for n in output_size)
    scales = (spatial_scale,) * dims if isinstance(spatial_scale, (int, float)) else tuple(spatial_scale)
    if len(bins) != dims or len(scales) != dims:
        raise ValueError(f"output_size {bins} and spatial_scale {scales} need {dims} values, one per axis")
    table = channels_last_table(features)
    low, extent = _box_extents(rois[:, 1:], scales, aligned)
    images = rois[:, 0].long()
    if sampling_ratio > 0:
        samples = (sampling_ratio,) * dims
        return _sample_boxes(table, low, extent, images, size, bins, samples).movedim(-1, 1)
    # Boxes that need equally many samples go together; a box with a negative side has none, and gives 0.
    counts = (extent / extent.new_tensor(bins)).ceil().clamp(min=0).long()
    kinds, group = torch.unique(counts, dim=0, return_inverse=True)
    # The empty first piece keeps the gradient of features without boxes.
    pieces = [_sample_boxes(table, low[:0], extent[:0], images[:0], size, bins, (1,) * dims)]
    chosen = [group[:0]]
    for number, kind in enumerate(kinds.tolist()):
        chosen.append((group == number).nonzero()[:, 0])
        part = (low[chosen[-1]], extent[chosen[-1]], images[chosen[-1]])
        pieces.append(_sample_boxes(table, *part, size, bins, tuple(kind)))
    return torch.cat(pieces)[torch.cat(chosen).argsort()].movedim(-1, 1)


def multi_scale_roi_align(
    levels: Sequence[Float[Tensor, "batch channels ..."]],
    strides: Sequence[Sequence[float] | float],
    boxes: Float[Tensor, "k columns"] | Sequence[Float[Tensor, "..."]],
    output_size: int | Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Float[Tensor, "k channels *output"]:
    """Pool each box from the level of a pyramid that suits its size.

    Args:
        levels: Feature maps, finest first, of equal channels.
        strides: Input pixels per feature pixel of each level: one number, or one per axis in array order.
        boxes: As for ``roi_align``, in input pixels.
        output_size: Bins per axis in array order, or one number for all axes.
        sampling_ratio: Samples per bin and axis; at most 0 for as many as the bin has feature pixels.
        aligned: As for ``roi_align``.
        canonical_size: Side of a box, in pixels of the axis with the largest stride, that belongs to ...
        canonical_level: ... the level of stride ``2 ** canonical_level``.

    Returns:
        The features of each box, in the order of the boxes.

    Example:
        >>> levels = [torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 8, 8)]
        >>> boxes = [torch.tensor([[0.0, 0, 20, 20], [0, 0, 60, 60]])]
        >>> pooled = multi_scale_roi_align(levels, [4, 8], boxes, 1, canonical_size=28, canonical_level=2)
        >>> pooled.flatten().tolist()
        [0.0, 1.0]
    """
    dims = levels[0].ndim - 2
    if len(levels) != len(strides):
        raise ValueError(f"{len(levels)} levels need as many strides, got {list(strides)}")
    per_axis = [(float(s),) * dims if isinstance(s, (int, float)) else tuple(map(float, s)) for s in strides]
    rois = _with_image_index(boxes, levels[0])
    bins = (output_size,) * dims if isinstance(output_size, int) else tuple(output_size)
    level_of_box = assign_levels(rois[:, 1:], per_axis, canonical_size, canonical_level)
    pieces, chosen = [], []
    for number, (level, stride) in enumerate(zip(levels, per_axis, strict=True)):
        chosen.append((level_of_box == number).nonzero()[:, 0])
        scale = tuple(1 / length for length in stride)
        # A level without boxes is called as well, for distributed training waits for every gradient.
        pieces.append(roi_align(level, rois[chosen[-1]], bins, scale, sampling_ratio, aligned))
    return torch.cat(pieces)[torch.cat(chosen).argsort()]


def assign_levels(
    boxes: Float[Tensor, "k sides"],
    strides: Sequence[Sequence[float]],
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Int[Tensor, " k"]:
    """Return the index of each box's level: ``canonical_level + log2(side / canonical_size)``, rounded down.

    The side is the ``dims``-th root of the area or volume. Where strides differ between axes, what counts is
    how many feature pixels a box covers: each length is scaled by (largest stride / stride of its axis) of
    the coarsest level, so that with strides (8, 32, 32) a length along z counts four times. The numbers of
    the levels are ``log2`` of their largest strides, rounded. In 2-D with equal strides this is torchvision's
    rule.

    Args:
        boxes: Boxes in input pixels.
        strides: Input pixels per feature pixel of each level and axis, array order, finest first.
        canonical_size: Side of a box that belongs to ``canonical_level``, in pixels of the largest stride.
        canonical_level: Number of the level of stride ``2 ** canonical_level``.
    """
    coarsest = torch.tensor(strides[-1], dtype=boxes.dtype, device=boxes.device)
    ratio = (coarsest.max() / coarsest).flip(0)
    dims = len(strides[0])
    sides = (boxes[:, dims:] - boxes[:, :dims]) * ratio
    side = sides.prod(dim=1) ** (1 / dims) if dims != 2 else sides.prod(dim=1).sqrt()
    numbers = [round(math.log2(max(stride))) for stride in strides]
    level = torch.floor(canonical_level + torch.log2(side / canonical_size) + 1e-6)
    # Boxes without extent (log of 0, or of a negative product) go to the finest level.
    level = torch.nan_to_num(level, nan=numbers[0], neginf=numbers[0])
    return level.clamp(min=numbers[0], max=numbers[-1]).long() - numbers[0]


def _with_image_index(
    boxes: Tensor | Sequence[Tensor], features: Float[Tensor, "batch channels ..."]
) -> Float[Tensor, "k columns"]:
    """Return boxes with the index of their image before the coordinates, detached, in float32 or float64."""
    sides = 2 * (features.ndim - 2)
    if not isinstance(boxes, Tensor):
        if len(boxes) != features.shape[0]:
            raise ValueError(f"{features.shape[0]} images need as many sets of boxes, got {len(boxes)}")
        boxes = torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])
    if boxes.ndim != 2 or boxes.shape[1] != 1 + sides:
        raise ValueError(
            f"boxes on {sides // 2}-D features have {sides} coordinates (and the image's index before them "
            f"when they come in one tensor), got the shape {tuple(boxes.shape)}"
        )
    boxes = boxes.detach()
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def _box_extents(
    boxes: Float[Tensor, "k sides"], scales: Sequence[float], aligned: bool
) -> tuple[Float[Tensor, "k dims"], Float[Tensor, "k dims"]]:
    """Return first corners and lengths in feature pixels, array order."""
    dims = len(scales)
    scale = boxes.new_tensor(scales)
    corners = boxes.view(-1, 2, dims).flip(2) * scale - (0.5 if aligned else 0.0)
    extent = corners[:, 1] - corners[:, 0]
    return corners[:, 0], extent if aligned else extent.clamp(min=1.0)


def _sample_boxes(
    table: Float[Tensor, "rows channels"],
    low: Float[Tensor, "k dims"],
    extent: Float[Tensor, "k dims"],
    images: Int[Tensor, " k"],
    size: tuple[int, ...],
    bins: tuple[int, ...],
    samples: tuple[int, ...],
) -> Float[Tensor, "k *bins_channels"]:
    """Pool boxes with the same samples per bin, in portions of bounded memory."""
    taps_per_box = math.prod(b * 2 * s for b, s in zip(bins, samples, strict=True))
    portion = max(1, _MOST_TAPS // max(taps_per_box, 1))
    if len(low) <= portion:
        return _sample_portion(table, low, extent, images, size, bins, samples)
    parts = zip(low.split(portion), extent.split(portion), images.split(portion), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat(
        [
            checkpoint(_sample_portion, table, *part, size, bins, samples, use_reentrant=False)
            for part in parts
        ]
    )


def _sample_portion(
    table: Tensor,
    low: Tensor,
    extent: Tensor,
    images: Tensor,
    size: tuple[int, ...],
    bins: tuple[int, ...],
    samples: tuple[int, ...],
) -> Tensor:
    dims = len(size)
    # int32 halves the memory of the rows, and embedding_bag's backward is faster with it.
    number = torch.int32 if table.shape[0] <= torch.iinfo(torch.int32).max else torch.int64
    axes = []
    for axis in range(dims):
        place, weight = _axis_taps(low[:, axis], extent[:, axis], size[axis], bins[axis], samples[axis])
        # (k, bins, taps) of this axis, spread over its own two of the dimensions (k, *bins, *taps).
        shape = [len(low)] + [1] * (2 * dims)
        shape[1 + axis], shape[1 + dims + axis] = place.shape[1:]
        axes.append((place.to(number).view(shape), weight.view(shape)))
    index = images.to(number).view(-1, *[1] * (2 * dims))
    weights = low.new_ones(())
    for (place, weight), length in zip(axes, size, strict=True):
        index = index * length + place
        weights = weights * weight
    taps = math.prod(2 * s for s in samples)
    return multilinear_sampling(
        table, index.reshape(len(low), *bins, taps), weights.reshape(len(low), *bins, taps)
    )


def _axis_taps(
    low: Float[Tensor, " k"], extent: Float[Tensor, " k"], length: int, bins: int, samples: int
) -> tuple[Float[Tensor, "k bins taps"], Float[Tensor, "k bins taps"]]:
    """Return (whole) places along one axis and their weights; all samples of a bin average to one value."""
    step = torch.arange(bins * samples, dtype=low.dtype, device=low.device) + 0.5
    place = low[:, None] + extent[:, None] / (bins * samples) * step
    # Up to one pixel outside counts as the border, farther outside as 0.
    inside = (place >= -1.0) & (place <= length)
    place = place.clamp(min=0, max=length - 1)
    lower = place.floor()
    fraction = place - lower
    places = torch.stack([lower, (lower + 1).clamp(max=length - 1)], dim=-1)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * (inside / samples)[..., None]
    shape = (len(low), bins, 2 * samples)
    return places.view(shape), weights.view(shape)

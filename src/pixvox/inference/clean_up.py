"""Mend predicted regions: bridge gaps, fill holes, cut off spurs, drop what is too small; pixels and voxels alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int

from pixvox.errors import ConfigError, DataError
from pixvox.structures import Instances, Masks, Segmentation

Unit = Literal["pixels", "physical"]
UNITS = ("pixels", "physical")


class CleanUp:
    """Applies, in this order: closing, filling holes, opening, and a least area.

    In a class map a closed gap or a filled hole takes the place of whatever class was there; what is removed becomes
    the class of the nearest pixel that stays. Each object of an instance result is mended by itself, and one of which
    too little is left is dropped; boxes stay as the model gave them.

    Args:
        closing: Bridge gaps up to about twice this length.
        fill_holes: Fill holes up to this area or volume; what touches the border of the image is no hole.
        opening: Cut off what is thinner than about twice this length.
        min_area: Least area or volume of a connected region, or of an object; a mapping gives it by class.
        unit: ``"pixels"`` (or voxels); or ``"physical"``, that of the image's spacing: lengths in micrometres or
            millimetres, areas in their squares, volumes in their cubes.
        classes: Names or indices of the classes that are mended; None for all. Name them where a class is background:
            an object in it is a hole of the background.
        class_names: Names by class index.

    Raises:
        ConfigError: If there is no such class or unit, or a number is negative.

    Example:
        >>> ring = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]])
        >>> CleanUp(fill_holes=1, classes=[1])(Segmentation(class_map=ring)).class_map.tolist()
        [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    """

    def __init__(
        self,
        closing: float = 0.0,
        fill_holes: float = 0.0,
        opening: float = 0.0,
        min_area: float | Mapping[str, float] = 0.0,
        unit: Unit = "pixels",
        classes: Sequence[str | int] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        if unit not in UNITS:
            raise ConfigError(f"clean_up.unit must be one of {', '.join(UNITS)}; got {unit!r}")
        areas = min_area if isinstance(min_area, Mapping) else {"min_area": min_area}
        for name, value in {
            "closing": closing,
            "fill_holes": fill_holes,
            "opening": opening,
            **areas,
        }.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"clean_up.{name} must be 0 or above, got {value}")
        self.closing = closing
        self.fill_holes = fill_holes
        self.opening = opening
        self.min_area = min_area
        self.unit = unit
        self.classes = None if classes is None else [_class_index(name, class_names) for name in classes]
        self.areas = (
            {_class_index(name, class_names): area for name, area in min_area.items()}
            if isinstance(min_area, Mapping)
            else None
        )

    @property
    def changes_nothing(self) -> bool:
        """Whether all numbers are 0."""
        areas = self.min_area.values() if isinstance(self.min_area, Mapping) else (self.min_area,)
        return not any((self.closing, self.fill_holes, self.opening, *areas))

    def __call__(self, segmentation: Segmentation) -> Segmentation:
        """Return the mended result; probabilities stay as the model gave them.

        Raises:
            DataError: If the unit is physical and the image has no spacing.
        """
        spacing = self._spacing(segmentation)
        instances, class_map = segmentation.instances, segmentation.class_map
        if instances is not None and instances.masks is not None:
            return replace(segmentation, instances=self._objects(instances, instances.masks, spacing))
        if class_map is None:
            return segmentation
        labels = class_map.cpu().numpy()
        return replace(segmentation, class_map=torch.from_numpy(self._class_map(labels, spacing)))

    def _spacing(self, segmentation: Segmentation) -> tuple[float, ...]:
        """Return the lengths of a pixel or voxel in the unit of the options."""
        if self.unit == "pixels":
            return (1.0,) * segmentation.spatial_dims
        spacing = segmentation.geometry.spacing if segmentation.geometry is not None else None
        if spacing is None:
            raise DataError(
                f"{segmentation.source or 'this image'} has no spacing, so clean_up.unit=physical says nothing; give "
                "the options in pixels"
            )
        return spacing

    def _class_map(
        self, labels: Int[np.ndarray, "*spatial"], spacing: tuple[float, ...]
    ) -> Int[np.ndarray, "*spatial"]:
        mended = labels.copy()
        chosen = [int(label) for label in np.unique(labels) if self.classes is None or label in self.classes]
        for label in chosen:
            mended[self._grown(mended == label, spacing)] = label
        removed = np.zeros(labels.shape, dtype=bool)
        for label in chosen:
            mask = mended == label
            removed |= mask & ~self._trimmed(mask, label, spacing)
        return _nearest_kept(mended, removed, spacing)

    def _objects(self, instances: Instances, masks: Masks, spacing: tuple[float, ...]) -> Instances:
        crops, kept = [], []
        for i, (crop, label) in enumerate(zip(masks, instances.labels.tolist(), strict=True)):
            mask = crop.cpu().numpy()
            if self.classes is None or label in self.classes:
                mask = self._opened(self._grown(mask, spacing), spacing)
                if mask.sum() * math.prod(spacing) < self._least(label) or not mask.any():
                    continue
            crops.append(torch.from_numpy(mask).to(masks.device))
            kept.append(i)
        mended = instances[torch.tensor(kept, dtype=torch.int64)]
        mended.masks = Masks.from_crops(crops, masks.origins[kept], masks.size).to(masks.device)
        mended.polygons = None  # outlines of what the masks were
        return mended

    def _grown(
        self, mask: Bool[np.ndarray, "*spatial"], spacing: tuple[float, ...]
    ) -> Bool[np.ndarray, "*spatial"]:
        if self.closing and mask.any():
            mask = close_gaps(mask, self.closing, spacing)
        return fill_holes(mask, self.fill_holes / math.prod(spacing)) if self.fill_holes else mask

    def _opened(
        self, mask: Bool[np.ndarray, "*spatial"], spacing: tuple[float, ...]
    ) -> Bool[np.ndarray, "*spatial"]:
        return open_spurs(mask, self.opening, spacing) if self.opening else mask

    def _trimmed(
        self, mask: Bool[np.ndarray, "*spatial"], label: int, spacing: tuple[float, ...]
    ) -> Bool[np.ndarray, "*spatial"]:
        return drop_small(self._opened(mask, spacing), self._least(label) / math.prod(spacing))

    def _least(self, label: int) -> float:
        """Return the least area of a class."""
        if isinstance(self.min_area, Mapping):
            return (self.areas or {}).get(label, 0.0)
        return self.min_area


def fill_holes(mask: Bool[np.ndarray, "*spatial"], max_size: float) -> Bool[np.ndarray, "*spatial"]:
    """Fill holes of up to ``max_size`` pixels or voxels; what touches the border is no hole.

    Example:
        >>> fill_holes(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool), max_size=1).all()
        np.True_
    """
    from scipy import ndimage

    regions, _ = ndimage.label(~mask)
    small = np.bincount(regions.ravel()) <= max_size
    small[0] = False
    for axis in range(mask.ndim):
        small[regions.take(0, axis)] = False
        small[regions.take(-1, axis)] = False
    filled: Bool[np.ndarray, "*spatial"] = mask | small[regions]
    return filled


def drop_small(mask: Bool[np.ndarray, "*spatial"], min_size: float) -> Bool[np.ndarray, "*spatial"]:
    """Drop regions below ``min_size`` pixels or voxels; pixels that touch at a corner are one region.

    Example:
        >>> drop_small(np.array([[1, 0, 1, 1]], dtype=bool), min_size=2).astype(int)
        array([[0, 0, 1, 1]])
    """
    from scipy import ndimage

    if min_size <= 1:
        return mask
    regions, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    large = np.bincount(regions.ravel()) >= min_size
    large[0] = False
    kept: Bool[np.ndarray, "*spatial"] = large[regions]
    return kept


def close_gaps(
    mask: Bool[np.ndarray, "*spatial"], radius: float, spacing: Sequence[float]
) -> Bool[np.ndarray, "*spatial"]:
    """Grow a mask by a radius and shrink it again: a morphological closing with a disc, a ball, or an ellipsoid.

    Args:
        mask: What is closed; near the border nothing is bridged that would not be inside.
        radius: In the unit of ``spacing``.
        spacing: Lengths of a pixel or voxel in array order.
    """
    frame = [math.floor(radius / step) for step in spacing]
    framed = np.pad(mask, [(width, width) for width in frame])
    closed = ~_within(~_within(framed, radius, spacing), radius, spacing)
    inner = tuple(slice(width, width + length) for width, length in zip(frame, mask.shape, strict=True))
    joined: Bool[np.ndarray, "*spatial"] = closed[inner] | mask
    return joined


def open_spurs(
    mask: Bool[np.ndarray, "*spatial"], radius: float, spacing: Sequence[float]
) -> Bool[np.ndarray, "*spatial"]:
    """Shrink a mask by a radius and grow it again: a morphological opening; what the image cuts off stays whole.

    Args:
        mask: What is opened.
        radius: In the unit of ``spacing``.
        spacing: Lengths of a pixel or voxel in array order.
    """
    opened: Bool[np.ndarray, "*spatial"] = _within(~_within(~mask, radius, spacing), radius, spacing) & mask
    return opened


def _within(
    mask: Bool[np.ndarray, "*spatial"], radius: float, spacing: Sequence[float]
) -> Bool[np.ndarray, "*spatial"]:
    """Return what lies within a radius of a mask: one distance transform, however large the radius."""
    from scipy import ndimage

    if not mask.any():
        return mask
    near: Bool[np.ndarray, "*spatial"] = ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius
    return near


def _nearest_kept(
    labels: Int[np.ndarray, "*spatial"], removed: Bool[np.ndarray, "*spatial"], spacing: Sequence[float]
) -> Int[np.ndarray, "*spatial"]:
    """Give what is removed the label of the nearest pixel that stays; where nothing stays, nothing goes."""
    from scipy import ndimage

    if not removed.any() or removed.all():
        return labels
    nearest = ndimage.distance_transform_edt(
        removed, sampling=spacing, return_distances=False, return_indices=True
    )
    kept: Int[np.ndarray, "*spatial"] = labels[tuple(nearest)]
    return kept


def _class_index(name: str | int, class_names: Sequence[str]) -> int:
    """Return the index of a class given by name or index."""
    if name in class_names:
        return list(class_names).index(str(name))
    if str(name).isdecimal() and (not class_names or int(name) < len(class_names)):
        return int(name)
    raise ConfigError(
        f"clean_up: there is no class {name!r}; the classes are {', '.join(class_names) or 'not named: give indices'}"
    )

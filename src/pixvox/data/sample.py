"""One image between reader and collate, with its annotations as label maps.

Objects travel through augmentation as integer label maps, in as many layers as objects overlap, because one
label map is warped at the price of one channel, whatever the number of objects, and its ids stay exact. They
are expanded to masks last, and boxes are recomputed from the masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixvox.errors import DataError
from pixvox.structures import IGNORE_INDEX, Geometry, Instances, Masks, Segmentation, Size

MAX_ELEMENTS = 250_000
"""Elements of a channel that are looked at for the range of its intensities."""


@dataclass
class Sample:
    """One un-normalised image or volume with what is known of it.

    Args:
        image: Intensities in the units of the file: a 16-bit image keeps its range.
        layers: Object ids 1..n (0 is background), each id in one layer; None without instance annotations.
        labels: Class index of each object.
        ignore: True for crowds and regions that are neither learned nor scored.
        class_map: Class index of each pixel or voxel; None without semantic annotations.
        spacing: Size of a pixel or voxel per axis in array order, or None when unknown.
        unit: Unit of ``spacing``.
        source: File or name that the image came from.
        index: Place in its dataset.
        seed: Seed of what a head draws for this image, by (seed, epoch, index).
        repeated: True where another process evaluates the image already; see ``Batch``.
        intensity_range: Low and high percentile of each channel of the **full** image, kept by crops.
        original_size: Size of the frame that results are given in; the size of ``image`` when None.
        ignore_index: Label of ``class_map`` that is neither learned nor scored.
        flip_pairs: Pairs of classes that change places in a mirror; ``read_sample`` takes them from the metadata.
        hidden: What is known of an unlabelled image, for scores alone; nothing may learn from it, or look at it to
            choose a patch.
        inside: Of an unlabelled image, False where a geometric step filled in what the image does not show; None
            where nobody asks.
        views: Further versions of ``image`` in the same frame: the strong views of semi-supervised methods.
        further: Draws another sample of the same dataset that went through the same steps; None where
            there are none. It exists within a pipeline of transforms only.

    Example:
        >>> sample = Sample(torch.zeros(1, 2, 3), layers=torch.tensor([[[1, 1, 0], [0, 0, 2]]]),
        ...                 labels=torch.tensor([0, 4]), ignore=torch.tensor([False, False]))
        >>> sample.targets(min_size=2).labels.tolist()
        [0]
    """

    image: Float[Tensor, "channels *spatial"]
    layers: Int[Tensor, "layers *spatial"] | None = None
    labels: Int[Tensor, " n"] | None = None
    ignore: Bool[Tensor, " n"] | None = None
    class_map: Int[Tensor, "*spatial"] | None = None
    spacing: tuple[float, ...] | None = None
    unit: str = "um"
    source: str = ""
    index: int = 0
    seed: int | None = None
    repeated: bool = False
    intensity_range: Float[Tensor, "channels 2"] | None = None
    original_size: Size | None = None
    ignore_index: int = IGNORE_INDEX
    flip_pairs: tuple[tuple[int, int], ...] = ()
    hidden: Sample | None = field(default=None, repr=False)
    inside: Bool[Tensor, "*spatial"] | None = field(default=None, repr=False)
    views: tuple[Float[Tensor, "channels *spatial"], ...] = ()
    further: Callable[[torch.Generator], Sample] | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> Size:
        """Size of the image in array order."""
        return tuple(self.image.shape[1:])

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return self.image.ndim - 1

    @property
    def annotated(self) -> bool:
        """False for an unlabelled image; an image that is known to hold no object is annotated."""
        return self.layers is not None or self.class_map is not None

    def remap(self, image: Callable[[Tensor], Tensor], maps: Callable[[Tensor, int], Tensor]) -> Sample:
        """Return the sample with one geometric change applied to image and label maps alike.

        Args:
            image: Takes and returns ``(channels, *spatial)``.
            maps: Takes label maps ``(layers, *spatial)`` and the value for places outside the image.
        """
        moved, hidden = image(self.image), self.hidden
        if hidden is not None:
            layers, class_map = hidden._remapped_labels(maps)
            hidden = replace(hidden, image=moved, layers=layers, class_map=class_map)
        inside = None if self.inside is None else maps(self.inside[None].byte(), 0)[0].bool()
        layers, class_map = self._remapped_labels(maps)
        return replace(self, image=moved, layers=layers, class_map=class_map, hidden=hidden, inside=inside)

    def _remapped_labels(self, maps: Callable[[Tensor, int], Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Return ``layers`` and ``class_map``, moved."""
        class_map = self.class_map
        if class_map is not None:
            class_map = maps(class_map[None], self.ignore_index)[0]
        return maps(self.layers, 0) if self.layers is not None else None, class_map

    def mirrored_classes(self) -> Sample:
        """Return the sample with the classes of each of ``flip_pairs`` exchanged, as a mirror shows them."""
        if not self.flip_pairs:
            return self
        return replace(
            self,
            labels=None if self.labels is None else self._exchanged(self.labels),
            class_map=None if self.class_map is None else self._exchanged(self.class_map),
            hidden=None
            if self.hidden is None
            else replace(self.hidden, flip_pairs=self.flip_pairs).mirrored_classes(),
        )

    def _exchanged(self, labels: Tensor) -> Tensor:
        exchanged = labels.clone()
        for one, other in self.flip_pairs:
            exchanged[labels == one] = other
            exchanged[labels == other] = one
        return exchanged

    def unlabelled(self) -> Sample:
        """Return the image with its annotations hidden."""
        hidden = self if self.annotated else self.hidden
        return replace(self, layers=None, labels=None, ignore=None, class_map=None, hidden=hidden)

    def instances(self, min_size: int = 1) -> Instances:
        """Expand the layers to masks and recompute the boxes; objects below ``min_size`` pixels are dropped.

        Raises:
            DataError: If the sample has no instance annotations.
        """
        if self.layers is None or self.labels is None or self.ignore is None:
            raise DataError(f"{self.source or 'sample'} (index {self.index}) has no instance annotations")
        parts, ids = [Masks.empty(self.size)], []
        for layer in self.layers:
            areas = torch.bincount(layer.flatten(), minlength=1)
            areas[0] = 0
            present = (areas >= max(min_size, 1)).nonzero()[:, 0]
            if len(present):
                parts.append(Masks.from_label_map(layer, present))
                ids.append(present)
        if not ids:
            return Instances.empty(self.size)
        joined = torch.cat(ids)
        order = joined.argsort()
        kept = joined[order] - 1
        masks = Masks.cat(parts)[order]
        # Crops of a label map are tight: their corners are the boxes.
        corners = [masks.origins.flip(1), (masks.origins + masks.shapes).flip(1)]
        return Instances(
            boxes=torch.cat(corners, dim=1).float(),
            labels=self.labels[kept],
            masks=masks,
            ignore=self.ignore[kept],
            size=self.size,
        )

    def targets(self, min_size: int = 1) -> Instances | Tensor | None:
        """Return what a head learns from: instances, a class map, or None for an unlabelled image."""
        if self.layers is not None:
            return self.instances(min_size)
        return self.class_map

    def truth(self, class_names: tuple[str, ...] = ()) -> Segmentation:
        """Return image and annotations as a ``Segmentation`` in the frame the sample is in."""
        geometry = replace(Geometry.identity(self.size, self.spacing), unit=self.unit)
        return Segmentation(
            instances=self.instances() if self.layers is not None else None,
            class_map=self.class_map,
            geometry=geometry,
            class_names=class_names,
            source=self.source,
            image=self.image,
            ignore_index=self.ignore_index,
        )

    def geometry(self, input_size: Size) -> Geometry:
        """Return the geometry of the sample once it is padded to ``input_size``."""
        original = self.original_size or self.size
        spacing = self.spacing
        if (
            spacing is not None
        ):  # that of the current frame: a resize changes it, the original is its way back
            spacing = tuple(
                step * now / before for step, now, before in zip(spacing, self.size, original, strict=True)
            )
        return Geometry(input_size, self.size, original, spacing, self.unit)


def renumber(label_map: np.ndarray) -> tuple[Int[Tensor, "*spatial"], np.ndarray]:
    """Return an int32 label map with the ids 1..n in the order of the ids given, and those ids.

    Ids of any integer type are exact, above 2^24 too. Small ids take one pass over a table instead of a sort.

    Raises:
        DataError: If an id is negative.

    Example:
        >>> renumber(np.array([[0, 7], [70000, 7]]))[0].tolist()
        [[0, 1], [2, 1]]
    """
    lowest = int(label_map.min()) if label_map.size else 0
    if lowest < 0:
        raise DataError(f"instance ids must be 0 (background) or above, the label map holds {lowest}")
    highest = int(label_map.max()) if label_map.size else 0
    if label_map.size and highest < 2**22:
        values = label_map.ravel()
        # An id is where a run of it ends; there are far fewer runs than elements.
        ends = np.append((values[1:] != values[:-1]).nonzero()[0], -1)
        present = np.zeros(highest + 1, dtype=bool)
        present[values[ends].astype(np.intp)] = True
        present[0] = False
        ids = present.nonzero()[0]
        if len(ids) == len(present) - 1:  # 1..n already
            return torch.from_numpy(label_map.astype(np.int32)), ids
        table = np.where(present, np.cumsum(present, dtype=np.int32), np.int32(0))
        numbers = table.take(values.astype(np.intp, copy=False), mode="clip")
        return torch.from_numpy(numbers.reshape(label_map.shape)), ids
    ids, inverse = np.unique(label_map, return_inverse=True)
    background = bool(len(ids)) and ids[0] == 0
    numbers = inverse.reshape(label_map.shape).astype(np.int32) + (0 if background else 1)
    return torch.from_numpy(numbers), ids[1:] if background else ids


def layers_from_masks(masks: Masks) -> Int[Tensor, "layers *spatial"]:
    """Paint masks as ids 1..n on as few layers as a first fit finds without two of them overlapping.

    Example:
        >>> pair = Masks.from_dense(torch.tensor([[[1, 1, 0]], [[0, 1, 1]]]).bool())
        >>> layers_from_masks(pair).tolist()
        [[[1, 1, 0]], [[0, 2, 2]]]
    """
    layers = [torch.zeros(masks.size, dtype=torch.int32)]
    for i, crop in enumerate(masks):
        region = masks.region(i)
        free = next((layer for layer in layers if not (layer[region].bool() & crop).any()), None)
        if free is None:
            free = torch.zeros(masks.size, dtype=torch.int32)
            layers.append(free)
        free[region][crop] = i + 1
    return torch.stack(layers)


def subsample_step(elements: int, most: int = MAX_ELEMENTS) -> int:
    """Return the distance of the elements that ``intensity_range`` looks at."""
    return max(1, elements // most) | 1  # an odd step visits all columns of images with even sides


def intensity_range(
    image: np.ndarray, percentiles: tuple[float, float] = (1.0, 99.8), max_elements: int = MAX_ELEMENTS
) -> Float[Tensor, "channels 2"]:
    """Return the low and the high percentile of each channel, from an even subsample of a large image.

    Args:
        image: Intensities ``(channels, *spatial)``, finite.
        percentiles: Low and high percentile, 0..100.
        max_elements: Elements per channel that are looked at.
    """
    flat = image.reshape(image.shape[0], -1)
    seen = flat[:, :: subsample_step(flat.shape[1], max_elements)]
    if seen.dtype in (np.uint8, np.uint16):
        limits = np.array([_percentiles_of_counts(np.bincount(channel), percentiles) for channel in seen])
    else:
        limits = np.percentile(seen, percentiles, axis=1).T
    return torch.from_numpy(limits.astype(np.float32))


def _percentiles_of_counts(counts: np.ndarray, percentiles: tuple[float, float]) -> list[float]:
    """Return percentiles, interpolated linearly as numpy's, of values given by their counts."""
    ends = np.cumsum(counts)
    result = []
    for percentile in percentiles:
        place = percentile / 100 * (ends[-1] - 1)
        below = int(np.searchsorted(ends, math.floor(place), side="right"))
        above = int(np.searchsorted(ends, math.ceil(place), side="right"))
        result.append(below + (above - below) * (place - math.floor(place)))
    return result

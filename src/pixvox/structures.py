"""The types that flow: data -> backbone -> neck -> head -> loss | post-processing -> metrics -> pictures.

Conventions, stated once:

- Tensors are ``(batch, channels, *spatial)`` with ``*spatial`` = ``(height, width)`` or
  ``(depth, height, width)``; ``spatial_dims`` is 2 or 3.
- Boxes and points are ``(x, y[, z])``: ``[x0, y0, (z0,) x1, y1, (z1)]``, absolute, half-open, float32,
  in pixels or voxels. Raw boxes of networks are normalised ``[cx, cy, (cz,) w, h, (d)]``, relative to the
  padded input.
- Sizes, strides, spacing, crops and mask origins are per axis in **array order** (``[z,] y, x``).
- Instance labels are 0-based and contiguous and know no background class.
- Semantic label maps hold class indices; ``IGNORE_INDEX`` marks what is neither learned nor scored.
- Spacing is the size of one pixel or voxel, in micrometres or millimetres (``Geometry.unit``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixvox.masks import Masks, Size
from pixvox.ops import boxes as box_ops

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from pixvox.inference.cutout import CutOut

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "Features",
    "Geometry",
    "Instances",
    "Masks",
    "Segmentation",
    "Size",
    "Targets",
]

IGNORE_INDEX = 255


@dataclass(frozen=True)
class Geometry:
    """Where an input came from and the way back: resize, then padding at the far end of each axis.

    Args:
        input_size: Size of the padded tensor that a network saw.
        valid_size: The part of it that holds the image; the rest is padding.
        original_size: Size of the frame that results are given in.
        spacing: Size of one original pixel or voxel per axis in array order, or None when unknown.
        unit: Unit of ``spacing``: ``"um"`` or ``"mm"``.
    """

    input_size: Size
    valid_size: Size
    original_size: Size
    spacing: tuple[float, ...] | None = None
    unit: str = "um"

    @classmethod
    def identity(cls, size: Sequence[int], spacing: Sequence[float] | None = None) -> Geometry:
        """Return the geometry of an input that was neither resized nor padded."""
        size = tuple(int(length) for length in size)
        return cls(size, size, size, tuple(spacing) if spacing is not None else None)

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.input_size)

    @property
    def scale(self) -> tuple[float, ...]:
        """Original pixels per input pixel, per axis in array order."""
        return tuple(
            original / valid for original, valid in zip(self.original_size, self.valid_size, strict=True)
        )

    def input_frame(self) -> Geometry:
        """Return the geometry that leaves results in the padded input frame, as a teacher needs them."""
        return replace(
            Geometry.identity(self.input_size), valid_size=self.valid_size, original_size=self.valid_size
        )

    def boxes_to_original(self, boxes: Float[Tensor, "n sides"]) -> Float[Tensor, "n sides"]:
        """Clip absolute boxes of the input frame to the valid part and scale them to the original frame."""
        boxes = box_ops.clip_boxes(boxes, self.valid_size)
        return boxes * boxes.new_tensor(self.scale[::-1] * 2)

    def boxes_from_original(self, boxes: Float[Tensor, "n sides"]) -> Float[Tensor, "n sides"]:
        """Scale absolute boxes of the original frame to the input frame."""
        return boxes / boxes.new_tensor(self.scale[::-1] * 2)


class Instances:
    """The objects of one image or volume: boxes, labels, masks, and for predictions scores.

    Args:
        boxes: Absolute half-open boxes; derived from ``masks`` when None.
        labels: 0-based class indices; all 0 when None.
        masks: ``Masks``, dense bool ``(n, *spatial)``, an integer label map, a list of RLE dictionaries, or a
            list of polygons (then ``size`` is needed).
        scores: Confidence in [0, 1] of each object, for predictions.
        polygons: Outlines that came with the data, or that a contour head predicted.
        ignore: True for crowds and regions that are neither learned nor scored.
        size: Canvas size; known from ``masks`` unless they are polygons or absent.

    Raises:
        ValueError: If the fields have different lengths, or if neither boxes nor masks are given.

    Example:
        >>> cells = Instances(masks=torch.tensor([[1, 1, 0], [0, 0, 2]]))
        >>> len(cells), cells.boxes.tolist(), cells.labels.tolist()
        (2, [[0.0, 0.0, 2.0, 1.0], [2.0, 1.0, 3.0, 2.0]], [0, 0])
    """

    def __init__(
        self,
        boxes: Float[Tensor, "n sides"] | None = None,
        labels: Int[Tensor, " n"] | None = None,
        masks: Masks | Tensor | Sequence[Any] | None = None,
        scores: Float[Tensor, " n"] | None = None,
        polygons: list[list[list[float]]] | None = None,
        ignore: Bool[Tensor, " n"] | None = None,
        size: Sequence[int] | None = None,
    ) -> None:
        self.masks = _as_masks(masks, size)
        if boxes is None and self.masks is None:
            raise ValueError(
                "instances need boxes or masks; for an image without objects use Instances.empty(size)"
            )
        self.boxes = self.masks.boxes() if boxes is None else boxes.to(torch.float32)  # type: ignore[union-attr]
        n, device = self.boxes.shape[0], self.boxes.device
        self.labels = torch.zeros(n, dtype=torch.int64, device=device) if labels is None else labels.long()
        self.scores = scores
        self.polygons = polygons
        self.ignore = torch.zeros(n, dtype=torch.bool, device=device) if ignore is None else ignore
        known = self.masks.size if self.masks is not None else size
        self.size: Size | None = tuple(int(length) for length in known) if known is not None else None
        lengths = {
            name: len(value)
            for name, value in (
                ("boxes", self.boxes), ("labels", self.labels), ("masks", self.masks),
                ("scores", scores), ("polygons", polygons), ("ignore", self.ignore),
            )
            if value is not None
        }  # fmt: skip
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the fields of Instances must have one length, got {lengths}")

    @classmethod
    def empty(
        cls, size: Sequence[int], device: torch.device | str | None = None, scores: bool = False
    ) -> Instances:
        """Return an image without objects, every field typed; ``scores`` adds an empty score field."""
        return cls(
            boxes=torch.zeros((0, 2 * len(size)), device=device),
            masks=Masks.empty(size, device),
            scores=torch.zeros(0, device=device) if scores else None,
        )

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> Instances:
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        index = torch.as_tensor(index, device=self.boxes.device)
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        index = index.long()
        return Instances(
            boxes=self.boxes[index],
            labels=self.labels[index],
            masks=self.masks[index] if self.masks is not None else None,
            scores=self.scores[index] if self.scores is not None else None,
            polygons=[self.polygons[i] for i in index.tolist()] if self.polygons is not None else None,
            ignore=self.ignore[index],
            size=self.size,
        )

    def __repr__(self) -> str:
        ignored = int(self.ignore.sum())
        return f"Instances({len(self)}{f', {ignored} ignored' if ignored else ''}, size={self.size})"

    def on_canvas(self, size: Size) -> Instances:
        """Return the instances on a larger canvas: padding at the far ends moves nothing."""
        if self.size == size:
            return self
        masks = self.masks
        if masks is not None:
            masks = Masks(masks.data, masks.origins, masks.shapes, size)
        return Instances(self.boxes, self.labels, masks, self.scores, self.polygons, self.ignore, size)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Instances:
        """Return the instances on ``device``."""
        return Instances(
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            masks=self.masks.to(device, non_blocking) if self.masks is not None else None,
            scores=self.scores.to(device, non_blocking=non_blocking) if self.scores is not None else None,
            polygons=self.polygons,
            ignore=self.ignore.to(device, non_blocking=non_blocking),
            size=self.size,
        )

    def pin_memory(self) -> Instances:
        """Return the instances in page-locked memory."""
        return Instances(
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
            masks=self.masks.pin_memory() if self.masks is not None else None,
            scores=self.scores.pin_memory() if self.scores is not None else None,
            polygons=self.polygons,
            ignore=self.ignore.pin_memory(),
            size=self.size,
        )


def _as_masks(masks: Masks | Tensor | Sequence[Any] | None, size: Sequence[int] | None) -> Masks | None:
    """Turn any of the accepted forms of masks into ``Masks``."""
    if masks is None or isinstance(masks, Masks):
        return masks
    if isinstance(masks, Tensor):
        return Masks.from_dense(masks) if masks.dtype == torch.bool else Masks.from_label_map(masks)
    if len(masks) > 0 and isinstance(masks[0], dict):
        return Masks.from_rle(masks)
    if size is None:
        raise ValueError(
            "masks given as polygons or as an empty list need the canvas: Instances(..., size=(h, w))"
        )
    return Masks.from_polygons(masks, size)


@dataclass
class Segmentation:
    """What is known of one image or volume, predicted or true, in the frame that ``geometry`` names.

    Metrics and drawing know only this type, whatever head or dataset made it.

    Args:
        instances: Objects, for instance and panoptic tasks.
        class_map: Class index of each pixel or voxel, for semantic and panoptic tasks.
        probabilities: Class probabilities ``(classes, *spatial)``, when they were asked for.
        segments: Panoptic segments: dictionaries with ``id``, ``category_id`` and ``isthing``.
        geometry: Frame, spacing and the way back.
        class_names: Names by class index.
        source: File or name that the image came from.
        image: Un-normalised image ``(channels, *spatial)`` in the original frame, kept for drawing.
        ignore_index: Label of ``class_map`` that is left out of scores.
    """

    instances: Instances | None = None
    class_map: Int[Tensor, "*spatial"] | None = None
    probabilities: Float[Tensor, "classes *spatial"] | None = None
    segments: list[dict[str, Any]] | None = None
    geometry: Geometry | None = None
    class_names: tuple[str, ...] = ()
    source: str | None = None
    image: Tensor | None = None
    ignore_index: int = IGNORE_INDEX

    @property
    def size(self) -> Size:
        """Size of the frame, in array order."""
        if self.class_map is not None:
            return tuple(self.class_map.shape)
        if self.instances is not None and self.instances.size is not None:
            return self.instances.size
        if self.geometry is not None:
            return self.geometry.original_size
        raise ValueError("this segmentation holds neither a class map, nor instances, nor a geometry")

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.size)

    def label_map(self) -> Int[Tensor, "*spatial"]:
        """Return instance ids 1..n (0 is background; the best score wins where masks overlap), or the class map."""
        if self.instances is None or self.instances.masks is None:
            if self.class_map is None:
                raise ValueError("this segmentation has no masks and no class map to make a label map of")
            return self.class_map
        scores = self.instances.scores
        order = None if scores is None else scores.argsort(descending=True, stable=True)
        return self.instances.masks.label_map(order)

    def polygons(self) -> list[list[list[float]]]:
        """Return the outlines of each instance as lists of ``[x0, y0, x1, y1, ...]`` (2-D only)."""
        if self.instances is None or (self.instances.polygons is None and self.instances.masks is None):
            raise ValueError("this segmentation has no masks or outlines of instances to make polygons of")
        if self.instances.polygons is not None:
            return self.instances.polygons
        return self.instances.masks.polygons()  # type: ignore[union-attr]

    def to_coco(self, image_id: int = 1, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO annotations (or results, when there are scores) with compressed RLE and ``xywh`` boxes."""
        from pixvox.inference.results import to_coco

        return to_coco(self, image_id, category_ids)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per instance, or per class: id, class, score, size, centroid, box, in physical units."""
        from pixvox.inference.results import table

        return table(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write label map, COCO or table, and overlay into ``folder``; return the files."""
        from pixvox.inference.results import save

        return save(self, Path(folder))

    def plot(self, **options: Any) -> Figure:
        """Draw the result over its image: an overlay in 2-D, orthogonal slices and a projection in 3-D."""
        from pixvox.visualization.overlay import plot

        return plot(self, **options)

    def overlay(self) -> np.ndarray:
        """Return the picture of ``plot`` as an RGB array ``(height, width, 3)``, uint8."""
        from pixvox.visualization.overlay import overlay

        return overlay(self)

    def cut_out(self, of: str | int | None = None, **options: Any) -> CutOut:
        """Return the image with only a class left, the rest transparent or replaced (2-D only).

        Args:
            of: Name or index of the class; None takes the objects of every class.
            options: Those of ``pixvox.inference.cutout.cut_out``: ``score_threshold``, ``background``, ``invert``, ...
        """
        from pixvox.inference.cutout import cut_out

        return cut_out(self, of, **options)

    def to(self, device: torch.device | str) -> Segmentation:
        """Return the segmentation on ``device``."""
        return replace(
            self,
            instances=self.instances.to(device) if self.instances is not None else None,
            class_map=self.class_map.to(device) if self.class_map is not None else None,
            probabilities=self.probabilities.to(device) if self.probabilities is not None else None,
        )


@dataclass
class Features:
    """What a head is given: feature maps fine to coarse, and what else it may need.

    Args:
        levels: Feature maps ``(batch, channels, *spatial)``, finest first.
        strides: Input pixels per feature pixel, per level and per axis in array order.
        images: The normalised images that the levels were computed from, padded to what the backbone needs.
        input_size: Size of the images as they were given, in array order: the frame of targets and outputs.
        valid_sizes: The part of each image that is not padding, in array order.
        extras: Named by-products of a backbone, such as pooling indices.
        seeds: Seed of whatever the head draws for each image; None draws from torch's global generator.
    """

    levels: tuple[Tensor, ...]
    strides: tuple[Size, ...]
    images: Float[Tensor, "batch channels *spatial"]
    input_size: Size
    valid_sizes: Int[Tensor, "batch dims"]
    extras: dict[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] | None = None

    @property
    def padded_size(self) -> Size:
        """Size of the images that the levels were computed from, in array order."""
        return tuple(self.images.shape[2:])

    def generators(self, stream: int = 0) -> list[torch.Generator | None]:
        """Return a generator per image on the features' device, or None for each to use the global one.

        A head that draws (samples of anchors, noise) draws from these, so that the draws of an image depend
        neither on the rest of its batch nor on the number of processes.

        Args:
            stream: Number of what is drawn, 0 or greater: draws for two purposes must not be the same numbers.
        """
        if self.seeds is None:
            return [None] * self.images.shape[0]
        device = self.images.device
        # The generator of the CPU looks at 32 bits only; an odd step visits all of them.
        shift = stream * 0x9E3779B1
        return [torch.Generator(device).manual_seed((seed + shift) % 2**32) for seed in self.seeds]


Targets = Sequence[Instances] | Int[Tensor, "batch *spatial"]
"""Truth of a batch: one ``Instances`` per image (an empty one where nothing is), or stacked label maps."""


@dataclass
class Batch:
    """A batch as the data side makes it: un-normalised images, padded to one size at the far ends.

    Args:
        images: Un-normalised images; 16-bit images keep their range.
        targets: Truth in the input frame, None for unlabelled data.
        geometries: One per image.
        intensity_ranges: Low and high percentile of each channel of each **full** image, for normalisers that
            work per image whatever was cropped; None when unknown.
        truths: Truth in the original frame, for evaluation only; it stays on the CPU.
        indices: Index of each image in its dataset.
        sources: File or name of each image.
        seeds: Seed of what a head draws for each image, by (seed, epoch, index); None when unknown.
        repeated: True for a batch that another process evaluates already: it only keeps the number of steps of
            all processes equal, and is not scored.
        views: Further versions of ``images`` in the same frame: strong views for semi-supervised methods.
        hidden: What is known of unlabelled images in the input frame, None for an image where nothing is; for scores
            alone, nothing learns from it.
        inside: Of unlabelled images, where they show what is there: neither padding nor what a step filled in.
    """

    images: Float[Tensor, "batch channels *spatial"]
    targets: Sequence[Instances] | Tensor | None
    geometries: list[Geometry]
    intensity_ranges: Float[Tensor, "batch channels 2"] | None = None
    truths: list[Segmentation] | None = None
    indices: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    seeds: list[int] | None = None
    repeated: bool = False
    views: list[Float[Tensor, "batch channels *spatial"]] = field(default_factory=list)
    hidden: list[Instances | Tensor | None] | None = None
    inside: Bool[Tensor, "batch *spatial"] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def valid_sizes(self) -> Int[Tensor, "batch dims"]:
        """The part of each image that is not padding, in array order."""
        return torch.tensor([geometry.valid_size for geometry in self.geometries], device=self.images.device)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on ``device``; ``truths`` and what is hidden stay where they are."""
        targets = self.targets
        if isinstance(targets, Tensor):
            targets = targets.to(device, non_blocking=non_blocking)
        elif targets is not None:
            targets = [instances.to(device, non_blocking) for instances in targets]
        ranges = self.intensity_ranges
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets=targets,
            intensity_ranges=ranges.to(device, non_blocking=non_blocking) if ranges is not None else None,
            views=[view.to(device, non_blocking=non_blocking) for view in self.views],
            inside=self.inside.to(device, non_blocking=non_blocking) if self.inside is not None else None,
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""
        targets = self.targets
        if isinstance(targets, Tensor):
            targets = targets.pin_memory()
        elif targets is not None:
            targets = [instances.pin_memory() for instances in targets]
        ranges = self.intensity_ranges
        return replace(
            self,
            images=self.images.pin_memory(),
            targets=targets,
            intensity_ranges=ranges.pin_memory() if ranges is not None else None,
            views=[view.pin_memory() for view in self.views],
            inside=self.inside.pin_memory() if self.inside is not None else None,
        )


def parts_of(batch: Batch | Mapping[str, Batch]) -> list[Batch]:
    """Return the batches of a training step: one, or those of labelled and unlabelled images, labelled first."""
    return [batch] if isinstance(batch, Batch) else list(batch.values())

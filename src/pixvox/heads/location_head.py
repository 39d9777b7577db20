"""What the SOLO heads share: cells of grids, each of which tells a class and a mask; their loss and suppression."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixvox.distributed.world import world_mean, world_size
from pixvox.heads.head import Head, Outputs, instances_of
from pixvox.heads.location_suggestions import suggest_locations
from pixvox.heads.locations import LocationRule, Taught, grids_of, ranges_of, sizes_of
from pixvox.heads.query_crops import MapFrame, maps_in_original
from pixvox.layers import ConvNormAct, PerAxis, conv, max_pool, resize
from pixvox.losses.query_classification import NO_OBJECT, SigmoidFocal
from pixvox.losses.query_masks import squared_dice_losses
from pixvox.ops.mask_nms import mask_nms
from pixvox.ops.matrix_nms import matrix_nms
from pixvox.ranges import check_at_least, check_shares, check_weights
from pixvox.structures import Features, Geometry, Instances, Masks, Segmentation, Targets

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion

_CHUNK = 2**22  # elements of the float32 maps that exist at one time: 16 MiB


class LocationMasks(ABC):
    """The masks of all cells of all levels, from which those of a few cells are made when they are needed.

    Args:
        grids: Per level the lengths of the grid of its masks, array order; each covers the padded images.
    """

    def __init__(self, grids: Sequence[tuple[int, ...]]) -> None:
        self.grids = list(grids)

    @abstractmethod
    def probabilities(
        self, image: int, level: int, cells: Int[Tensor, " chosen"], size: Sequence[int] | None = None
    ) -> Float[Tensor, "chosen *size"]:
        """Return the masks of some cells (row-major) of one level of one image, in float32.

        Args:
            image: Which image.
            level: Which level.
            cells: Which cells of it.
            size: Grid to interpolate to; the level's own when None.
        """

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Return what masks are made of: a loss without a single mask must reach it all the same."""


def resized(maps: Float[Tensor, "chosen *grid"], size: Sequence[int] | None) -> Float[Tensor, "chosen *size"]:
    """Return maps of one image at a size, or as they are when it is None."""
    return maps if size is None else resize(maps[None], size)[0]


class LocationHead(Head):
    """A head whose cells answer for the objects around them: classes and suppression are here, masks in its own file.

    There is no cap on the number of objects but ``num_candidates``.

    Args:
        in_channels: Channels of each level, finest first; all the same.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2 for images, 3 for volumes.
        num_grids: Cells along each axis, per level one number or one per axis; ``"auto"`` takes 40, 36, 24, 16, 12 in
            images, as the paper, and 16, 12, 8, 6, 4 in volumes.
        scale_ranges: Per level the least and greatest side of its objects in pixels (geometric mean of the box's);
            ``"auto"`` takes 6 to 24 times the stride, from 0 on the finest and without end on the coarsest level: with
            strides 4 to 64 those of the paper.
        level_sizes: For each level the level whose size it is brought to; ``"auto"`` does as the paper: the finest gets
            that of the next, the coarsest that of the one before it. With fewer than three levels each keeps its own.
        centre: ``"mass"`` teaches cells around the centre of mass of a mask, ``"box"`` around the middle of its box.
        centre_region: Length of that region as a share of the box's.
        channels: Channels of the convolutions of each branch.
        num_convs: Convolutions of each branch.
        norm: Normalisation of the convolutions, see ``pixvox.layers.norm``.
        classification: The focal loss of the classes.
        weights: Weights of the losses ``class`` and ``dice``; 1 and 3 by default.
        candidate_threshold: Cells whose class scores less are not looked at.
        mask_threshold: Probability from which a pixel belongs to a mask.
        num_candidates: Cells per image that go on to suppression, best first.
        matrix_kernel: ``"gaussian"`` or ``"linear"`` lowers the scores of doubles (``pixvox.ops.matrix_nms``); None
            leaves them.
        matrix_sigma: Of the Gaussian.
        mask_nms_threshold: IoU of masks of one class above which the one of lower score goes; None keeps all.
        score_threshold: Instances below are not given out.
        pseudo_label_threshold: Instances above teach a student.
        confident_score: See ``Head``.
        detections_per_image: Most instances of one image; None is as many as candidates.

    Raises:
        ValueError: If levels have different channels, a list does not fit their number, or a number makes no sense.
    """

    task = "instance"
    one_object_per_cell = True
    """Whether a cell that two objects teach learns the mask of the last one alone; its class it always does."""
    most_cells = {2: 64, 3: 24}
    """Most cells along an axis that are suggested, by dimensions."""

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        num_grids: Sequence[PerAxis] | Literal["auto"] = "auto",
        scale_ranges: Sequence[Sequence[float]] | Literal["auto"] = "auto",
        level_sizes: Sequence[int] | Literal["auto"] = "auto",
        centre: Literal["mass", "box"] = "mass",
        centre_region: float = 0.2,
        channels: int = 256,
        num_convs: int = 7,
        norm: str = "group",
        classification: SigmoidFocal | None = None,
        weights: Mapping[str, float] | None = None,
        candidate_threshold: float = 0.1,
        mask_threshold: float = 0.5,
        num_candidates: int = 500,
        matrix_kernel: Literal["gaussian", "linear"] | None = "gaussian",
        matrix_sigma: float = 2.0,
        mask_nms_threshold: float | None = None,
        score_threshold: float = 0.05,
        pseudo_label_threshold: float = 0.4,
        confident_score: float = 0.3,
        detections_per_image: int | None = None,
    ) -> None:
        super().__init__(spatial_dims, num_classes, score_threshold, pseudo_label_threshold, confident_score)
        check_at_least(1, channels=channels, num_convs=num_convs, num_candidates=num_candidates)
        check_at_least(0, matrix_sigma=matrix_sigma, centre_region=centre_region)
        check_shares(candidate_threshold=candidate_threshold, mask_threshold=mask_threshold)
        if mask_nms_threshold is not None:
            check_shares(mask_nms_threshold=mask_nms_threshold)
        if detections_per_image is not None:
            check_at_least(1, detections_per_image=detections_per_image)
        if len(set(in_channels)) > 1:
            raise ValueError(
                f"{type(self).__name__} uses the same convolutions on all levels, but they have {list(in_channels)} "
                "channels; choose a neck that makes them equal, such as neck=fpn"
            )
        self.rule = LocationRule(
            grids_of(num_grids, len(strides), spatial_dims),
            ranges_of(scale_ranges, strides),
            centre,
            centre_region,
        )
        self.level_sizes = sizes_of(level_sizes, len(strides))
        self.strides = [tuple(strides[level]) for level in self.level_sizes]
        self.classification = classification or SigmoidFocal()
        self.weights = check_weights({"class": 1.0, "dice": 3.0} if weights is None else weights, "loss")
        self.candidate_threshold = candidate_threshold
        self.mask_threshold = mask_threshold
        self.num_candidates = num_candidates
        self.matrix_kernel = matrix_kernel
        self.matrix_sigma = matrix_sigma
        self.mask_nms_threshold = mask_nms_threshold
        self.detections_per_image = detections_per_image
        self.norm_name = norm
        self.class_convs = self.tower(in_channels[0], channels, num_convs)
        self.classifier = conv(spatial_dims, channels, num_classes, 3)

    @classmethod
    def suggest(
        cls,
        facts: Fingerprint,
        options: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
    ) -> list[Suggestion]:
        """Return grids by the sides of objects, candidates by their number."""
        return suggest_locations(facts, strides, patch, cls.most_cells[len(patch)])

    def tower(self, in_channels: int, channels: int, num_convs: int) -> nn.Sequential:
        """Return the convolutions of one branch."""
        widths = [in_channels] + [channels] * num_convs
        return nn.Sequential(
            *(
                ConvNormAct(self.spatial_dims, a, b, 3, 1, self.norm_name)
                for a, b in itertools.pairwise(widths)
            )
        )

    def reset_parameters(self, unlikely: Iterable[nn.Module] = ()) -> None:
        """Begin as the paper does: small weights, and what is unlikely at first: every class, and these layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in (self.classifier, *unlikely):
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                self.classification.init_bias(module)

    def blocks(self) -> list[nn.Module]:
        """Return the convolutions of the branches."""
        return [module for module in self.modules() if isinstance(module, ConvNormAct)]

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return ``class_logits (batch, cells, classes)`` of all levels, finest first, and what masks are made of."""
        levels = [
            resize(level, features.levels[like].shape[2:])
            for level, like in zip(features.levels, self.level_sizes, strict=True)
        ]
        maps = [
            self.classifier(self.class_convs(resize(level, grid)))
            for level, grid in zip(levels, self.rule.num_grids, strict=True)
        ]
        return {
            "class_logits": torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2),
            "masks": self.masks(features, levels),
            "valid_sizes": features.valid_sizes,
            "padded_size": features.padded_size,
        }

    @abstractmethod
    def masks(self, features: Features, levels: Sequence[Tensor]) -> LocationMasks:
        """Return the masks of all cells.

        Args:
            features: What the head was given.
            levels: Its levels, brought to ``level_sizes``.
        """

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the focal loss of the classes and the Dice loss of the masks, over all cells that are taught."""
        logits, masks = outputs["class_logits"], outputs["masks"]
        lessons = [
            self._lesson(instances, outputs["padded_size"])
            for instances in instances_of(targets, type(self).__name__)
        ]
        labels = torch.stack([lesson.labels for lesson in lessons])
        count = (labels != NO_OBJECT).sum()
        # Parameters get zeros, not None, where no mask is taught.
        dice = sum((tensor[:0].sum() for tensor in masks.tensors()), logits[:0].sum())
        for image, lesson in enumerate(lessons):
            for level, taught in enumerate(lesson.taught):
                if len(taught.cells):
                    truth = _truth(lesson, taught, masks.grids[level], outputs["padded_size"])
                    dice = dice + _dice(masks, image, level, taught.cells, *truth)
        # One more than there are, as in the reference: an image without objects counts too.
        entries = world_mean(count, minimum=0.0) + 1 / world_size()
        learns = torch.stack([lesson.learns for lesson in lessons])
        terms = {
            "class": self.classification.loss(logits, labels, entries, learns),
            "dice": dice / world_mean(count),
        }
        return {name: self.weights[name] * term for name, term in terms.items() if name in self.weights}

    @torch.no_grad()
    def _lesson(self, instances: Instances, size: Sequence[int]) -> _Lesson:
        """Return what one image teaches."""
        objects, ignored = instances[~instances.ignore], instances[instances.ignore]
        taught = self.rule.locate(objects, size)
        labels, learns = [], []
        for i, (each, grid) in enumerate(zip(taught, self.rule.num_grids, strict=True)):
            owners = each.owners(math.prod(grid))
            owned = owners >= 0
            label = torch.full_like(owners, NO_OBJECT)
            label[owned] = objects.labels[each.objects[owners[owned]]]
            labels.append(label)
            learns.append(owned | ~_unknown(objects, ignored, grid, size))
            if self.one_object_per_cell:
                last = owners[owned]
                taught[i] = Taught(each.cells[last], each.objects[last])
        return _Lesson(objects, ignored, taught, torch.cat(labels), torch.cat(learns))

    @torch.no_grad()
    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return the cells that are sure of a class as instances with cropped masks, in each original frame."""
        scores = self._peaks(outputs["class_logits"].float().sigmoid())
        return [
            self._segmentation(outputs, image, scores[image], geometry)
            for image, geometry in enumerate(geometries)
        ]

    def _peaks(self, scores: Float[Tensor, "batch cells classes"]) -> Float[Tensor, "batch cells classes"]:
        """Set to 0 what is less than the cell before it along any axes."""
        kept = []
        for part, grid in zip(torch.split(scores, self._lengths(), dim=1), self.rule.num_grids, strict=True):
            level = part.transpose(1, 2).reshape(len(part), -1, *grid)
            largest = max_pool(level, 2, 1, 1)
            for axis, length in enumerate(grid):
                largest = largest.narrow(axis + 2, 0, length)
            kept.append((level * (level == largest)).flatten(2).transpose(1, 2))
        return torch.cat(kept, dim=1)

    def _segmentation(
        self, outputs: Outputs, image: int, scores: Float[Tensor, "cells classes"], geometry: Geometry
    ) -> Segmentation:
        """Return the instances of one image."""
        masks: LocationMasks = outputs["masks"]
        cells, labels = (scores > self.candidate_threshold).nonzero().unbind(1)
        scores = scores[cells, labels]
        unique, place = torch.unique(cells, return_inverse=True)
        certainty = self._certainty(masks, image, unique)[place]
        scores = scores * certainty
        best = scores.argsort(descending=True, stable=True)[: self.num_candidates]
        best = best[certainty[best] > 0]
        cells, labels, scores = cells[best], labels[best], scores[best]
        if self.matrix_kernel is not None:
            inside = torch.cat(
                [self._maps(masks, image, few) > self.mask_threshold for few in self._few(cells, masks)]
                or [cells.new_zeros((0, *masks.grids[0]), dtype=torch.bool)]
            )
            scores = matrix_nms(inside, scores, labels, self.matrix_kernel, self.matrix_sigma)
        best = scores.argsort(descending=True, stable=True)
        best = best[scores[best] > self.score_threshold]
        frame = MapFrame(masks.grids[0], outputs["padded_size"], geometry)
        found = [
            (values > 0, origin)
            for values, origin in maps_in_original(
                lambda few: self._maps(masks, image, few) - self.mask_threshold, cells[best], frame
            )
        ]
        crops = Masks.from_crops(
            [crop for crop, _ in found], [origin for _, origin in found], geometry.original_size
        )
        instances = Instances(
            masks=crops.to(scores.device),
            labels=labels[best],
            scores=scores[best],
            size=geometry.original_size,
        )
        return Segmentation(
            instances=self._separate(instances)[: self.detections_per_image], geometry=geometry
        )

    def _certainty(self, masks: LocationMasks, image: int, cells: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the mean probability inside each mask, 0 for one of no more cells than the stride of its level."""
        found = [torch.zeros(0, device=cells.device)]
        for few in self._few(cells, masks):
            maps = self._maps(masks, image, few).flatten(1)
            inside = maps > self.mask_threshold
            area = inside.sum(dim=1)
            mean = (maps * inside).sum(dim=1) / area.clamp(min=1)
            least = torch.tensor([math.prod(step) ** (1 / len(step)) for step in self.strides])
            found.append(mean * (area > least.to(area.device)[self._levels(few)]))
        return torch.cat(found)

    def _maps(self, masks: LocationMasks, image: int, cells: Int[Tensor, " n"]) -> Float[Tensor, "n *grid"]:
        """Return the masks of cells of any levels on the finest grid of masks."""
        maps = torch.zeros((len(cells), *masks.grids[0]), device=cells.device)
        levels, start = self._levels(cells), 0
        for level, length in enumerate(self._lengths()):
            chosen = (levels == level).nonzero()[:, 0]
            if len(chosen):
                maps[chosen] = masks.probabilities(image, level, cells[chosen] - start, masks.grids[0])
            start += length
        return maps

    def _few(self, cells: Int[Tensor, " n"], masks: LocationMasks) -> Sequence[Tensor]:
        """Return the cells in portions whose maps fit into memory."""
        return torch.split(cells, max(1, _CHUNK // math.prod(masks.grids[0]))) if len(cells) else ()

    def _separate(self, instances: Instances) -> Instances:
        """Return the instances that have a pixel and, if asked for, no better double."""
        instances = instances[instances.masks.areas() > 0]  # type: ignore[union-attr]
        if self.mask_nms_threshold is None:
            return instances
        return instances[
            mask_nms(instances.masks, instances.scores, instances.labels, self.mask_nms_threshold)  # type: ignore[arg-type]
        ]

    def _lengths(self) -> list[int]:
        """Return the number of cells of each level."""
        return [math.prod(grid) for grid in self.rule.num_grids]

    def _levels(self, cells: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return the level of each cell."""
        ends = torch.tensor(self._lengths(), device=cells.device).cumsum(0)
        return torch.searchsorted(ends, cells, right=True)


@dataclass(frozen=True)
class _Lesson:
    """What one image teaches.

    Args:
        objects: Its objects.
        ignored: Its ignored ones.
        taught: Per level the cells that learn a mask, and the object of each.
        labels: Class of each cell of all levels, ``NO_OBJECT`` where there is none.
        learns: False for cells in an ignored region where no object is.
    """

    objects: Instances
    ignored: Instances
    taught: list[Taught]
    labels: Int[Tensor, " cells"]
    learns: Bool[Tensor, " cells"]


def _centres(grid: Sequence[int], size: Sequence[int], device: torch.device) -> Float[Tensor, "cells dims"]:
    """Return the centre of each cell of a grid over a canvas, in pixels and array order.

    Cells finer than pixels have their centre moved to that of the outermost pixel, beyond which nothing is known.
    """
    axes = [
        ((torch.arange(cells, device=device) + 0.5) * (length / cells)).clamp(0.5, length - 0.5)
        for cells, length in zip(grid, size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _unknown(
    objects: Instances, ignored: Instances, grid: Sequence[int], size: Sequence[int]
) -> Bool[Tensor, " cells"]:
    """Return which cells have their centre in an ignored region and on no object: what covers them is unknown."""
    centres = _centres(grid, size, ignored.boxes.device)
    if len(ignored) == 0 or ignored.masks is None:
        return torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    unknown = (ignored.masks.at(centres) > 0).any(dim=0)
    if len(objects) and objects.masks is not None:
        unknown &= ~(objects.masks.at(centres) >= 0.5).any(dim=0)
    return unknown


@torch.no_grad()
def _truth(
    lesson: _Lesson, taught: Taught, grid: Sequence[int], size: Sequence[int]
) -> tuple[Bool[Tensor, "objects cells"], Int[Tensor, " taught"], Tensor | None]:
    """Return the masks of the objects of a level on a grid, the one of each taught cell, and what is known there."""
    objects, place = torch.unique(taught.objects, return_inverse=True)
    masks = lesson.objects.masks[objects]  # type: ignore[index]
    truth = masks.at(_centres(grid, size, masks.device)) >= 0.5
    known = ~_unknown(lesson.objects, lesson.ignored, grid, size) if len(lesson.ignored) else None
    return truth, place, known


def _dice(
    masks: LocationMasks,
    image: int,
    level: int,
    cells: Int[Tensor, " taught"],
    truth: Bool[Tensor, "objects pixels"],
    place: Int[Tensor, " taught"],
    known: Bool[Tensor, " pixels"] | None,
) -> Float[Tensor, ""]:
    """Return the Dice loss of the masks of cells, summed; a few are compared at a time, and forgotten in between."""

    def compare(few: Tensor, places: Tensor) -> Tensor:
        return squared_dice_losses(
            masks.probabilities(image, level, few).flatten(1), truth[places], known
        ).sum()

    size = max(1, _CHUNK // truth.shape[1])
    parts = list(zip(torch.split(cells, size), torch.split(place, size), strict=True))
    if len(parts) == 1:
        return compare(*parts[0])
    sums = [checkpoint(compare, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(sums).sum()

"""Mask R-CNN for images and volumes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixvox.distributed.world import world_mean
from pixvox.heads.anchors import AnchorGenerator
from pixvox.heads.head import Head, Outputs, instances_of
from pixvox.heads.maskrcnn_suggestions import suggest_maskrcnn
from pixvox.heads.region_proposals import RegionProposalNetwork, leave_out_ignored
from pixvox.layers import conv, conv_transpose, norm
from pixvox.ops.anchor_matching import Matcher, balanced_sample
from pixvox.ops.box_coding import BoxCoder
from pixvox.ops.boxes import box_convert, box_iou, clip_boxes
from pixvox.ops.masks import paste_crops
from pixvox.ops.nms import batched_nms
from pixvox.ops.roi_align import multi_scale_roi_align
from pixvox.structures import Features, Geometry, Instances, Masks, Segmentation, Targets

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion

_MASK_ELEMENTS = 2**27
"""Elements of the widest map of the mask branch that are computed together where detections are given masks."""


def _region_convs(
    spatial_dims: int, in_channels: int, channels: int, count: int, norm_name: str
) -> list[nn.Module]:
    """Return convolutions of regions' features, each followed by its normalisation and ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        width = channels if i else in_channels
        layers += [conv(spatial_dims, width, channels, 3, bias=norm_name == "none")]
        layers += [norm(norm_name, spatial_dims, channels)] if norm_name != "none" else []
        layers += [nn.ReLU()]
    return layers


def _init_convs(branch: nn.Module) -> None:
    for layer in branch.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class BoxBranch(nn.Module):
    """Hidden layers, then class scores and one box shift per class.

    Args:
        in_channels: Channels of one region's features.
        size: Their side.
        num_classes: Classes without the background, which is added last.
        spatial_dims: 2 or 3.
        hidden_features: Width of the hidden layers.
        num_convs: Convolutions before them.
        num_linears: How many there are.
        norm_name: Normalisation of the convolutions, see ``pixvox.layers.norm``.
    """

    def __init__(
        self,
        in_channels: int,
        size: int,
        num_classes: int,
        spatial_dims: int,
        hidden_features: int = 1024,
        num_convs: int = 0,
        num_linears: int = 2,
        norm_name: str = "none",
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *_region_convs(spatial_dims, in_channels, in_channels, num_convs, norm_name)
        )
        _init_convs(self.convs)
        widths = [in_channels * size**spatial_dims, *[hidden_features] * num_linears]
        layers = [[nn.Linear(*pair), nn.ReLU()] for pair in itertools.pairwise(widths)]
        self.linears = nn.Sequential(*itertools.chain(*layers))
        self.classes = nn.Linear(widths[-1], num_classes + 1)
        self.deltas = nn.Linear(widths[-1], num_classes * 2 * spatial_dims)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits ``(regions, classes + 1)`` and shifts ``(regions, classes, 2 * spatial_dims)``."""
        hidden = self.linears(self.convs(regions).flatten(1))
        classes = self.classes(hidden)
        return classes, self.deltas(hidden).unflatten(1, (classes.shape[1] - 1, -1))


class MaskBranch(nn.Sequential):
    """Convolutions, one doubling of the size, one mask per class.

    Args:
        in_channels: Channels of one region's features.
        hidden_channels: Channels of the convolutions.
        num_convs: Convolutions before the doubling.
        num_classes: Classes without the background.
        spatial_dims: 2 or 3.
        norm_name: Normalisation of the convolutions, see ``pixvox.layers.norm``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_convs: int,
        num_classes: int,
        spatial_dims: int,
        norm_name: str = "none",
    ) -> None:
        width = hidden_channels if num_convs else in_channels
        super().__init__(
            *_region_convs(spatial_dims, in_channels, hidden_channels, num_convs, norm_name),
            conv_transpose(spatial_dims, width, hidden_channels),
            nn.ReLU(),
            conv(spatial_dims, hidden_channels, num_classes, 1),
        )
        _init_convs(self)


class MaskRCNN(Head):
    """Two stages: regions that may hold an object, then class, box and mask of each region.

    "Mask R-CNN" (He et al., 2017, https://arxiv.org/abs/1703.06870), for images and volumes, on a pyramid or on a
    single map, with torchvision's sampling, targets and losses. Its second version there has ``rpn_convs=2,
    box_convs=4, box_linears=1, branch_norm="batch"`` on an FPN with ``norm="batch"``. There is no cap on the objects
    of an image unless ``detections_per_image`` sets one.

    Args:
        in_channels: Channels of each level, all equal.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data; the background is added inside, last.
        spatial_dims: 2 for images, 3 for volumes.
        anchor_sizes: Anchor sides in input pixels, per level a list; ``"auto"`` gives every level the side
            ``8 * stride`` (32 on stride 4, as in the paper).
        aspect_ratios: Height over width of the anchors.
        depth_ratios: Depth over in-plane side of the anchors in physical units (volumes only).
        anisotropy: Spacing in the plane over spacing along depth (volumes only).
        rounded_anchors: Round half sides to whole pixels, as torchvision does.
        num_proposals: Proposals kept per image, in training and in evaluation.
        num_candidates: Anchors per level that enter suppression, in training and in evaluation.
        rpn_samples: Anchors per image in the loss.
        rpn_nms_threshold: IoU of the suppression of proposals.
        rpn_iou: Anchors from the first IoU with an object on are positive, below the second negative. In
            3-D the same offset costs more IoU than in 2-D: ``(0.5, 0.2)`` finds more.
        box_levels: Levels that regions are read from, from the finest on; None takes all but an extra
            coarsest one.
        box_size: Side of a region's features for class and box.
        box_features: Width of the box branch.
        box_samples: Regions per image in the loss.
        positive_fraction: Largest share of positives among them.
        positive_iou: Regions from this IoU with an object on are positive.
        mask_size: Side of a region's features for the mask, which is twice as large.
        mask_channels: Channels of the mask branch.
        mask_convs: Convolutions of the mask branch.
        rpn_convs: Convolutions before the scores of anchors.
        box_convs: Convolutions of the box branch.
        box_linears: Hidden layers of the box branch, after them.
        branch_norm: Normalisation of the convolutions of both branches, see ``pixvox.layers.norm``.
        sampling_ratio: Samples per bin and axis of RoIAlign.
        mask_sampling_ratio: The same when true masks are sampled; 0 adapts to the region's size, as
            torchvision.
        canonical_size: Side of the regions that are read from ``canonical_level``.
        canonical_level: Number of that level, log2 of its stride (4 is stride 16).
        score_threshold: Detections below are dropped.
        nms_threshold: IoU above which the worse of two detections of a class goes.
        detections_per_image: Most detections of one image; None is no cap.
        pseudo_label_threshold: Detections above this teach a student.

    Raises:
        ValueError: If the levels have different channels, or do not fit the anchors.
    """

    task = "instance"

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        anchor_sizes: Sequence[Sequence[float]] | Literal["auto"] = "auto",
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        depth_ratios: Sequence[float] = (1.0,),
        anisotropy: float = 1.0,
        rounded_anchors: bool = False,
        num_proposals: Sequence[int] = (1000, 1000),
        num_candidates: Sequence[int] = (2000, 1000),
        rpn_samples: int = 256,
        rpn_nms_threshold: float = 0.7,
        rpn_iou: Sequence[float] = (0.7, 0.3),
        box_levels: int | None = None,
        box_size: int = 7,
        box_features: int = 1024,
        box_samples: int = 512,
        positive_fraction: float = 0.25,
        positive_iou: float = 0.5,
        mask_size: int = 14,
        mask_channels: int = 256,
        mask_convs: int = 4,
        rpn_convs: int = 1,
        box_convs: int = 0,
        box_linears: int = 2,
        branch_norm: str = "none",
        sampling_ratio: int = 2,
        mask_sampling_ratio: int = 2,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int | None = None,
        pseudo_label_threshold: float = 0.7,
    ) -> None:
        super().__init__(spatial_dims, num_classes, score_threshold, pseudo_label_threshold)
        if len(set(in_channels)) != 1:
            raise ValueError(
                f"all levels need the same channels (put neck=fpn before this head), got {in_channels}"
            )
        channels = in_channels[0]
        sizes = [[8.0 * min(stride)] for stride in strides] if anchor_sizes == "auto" else anchor_sizes
        if len(sizes) != len(strides):
            raise ValueError(
                f"anchor_sizes has {len(sizes)} lists for {len(strides)} levels of strides {list(strides)}; "
                "give one list per level, or 'auto'"
            )
        anchors = AnchorGenerator(sizes, aspect_ratios, depth_ratios, anisotropy, rounded_anchors)
        self.rpn = RegionProposalNetwork(
            channels,
            spatial_dims,
            anchors,
            num_proposals,
            num_candidates,
            rpn_nms_threshold,
            positive_iou=rpn_iou[0],
            negative_iou=rpn_iou[1],
            samples_per_image=rpn_samples,
            num_convs=rpn_convs,
        )
        self.strides = tuple(tuple(stride) for stride in strides)
        self.box_levels = box_levels if box_levels is not None else max(1, len(strides) - 1)
        self.box_branch = BoxBranch(
            channels, box_size, num_classes, spatial_dims, box_features, box_convs, box_linears, branch_norm
        )
        self.mask_branch = MaskBranch(
            channels, mask_channels, mask_convs, num_classes, spatial_dims, branch_norm
        )
        self.box_size = box_size
        self.mask_size = mask_size
        self.mask_channels = mask_channels
        self.box_samples = box_samples
        self.positive_fraction = positive_fraction
        self.sampling_ratio = sampling_ratio
        self.mask_sampling_ratio = mask_sampling_ratio
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.matcher = Matcher(positive_iou, positive_iou, allow_low_quality_matches=False)
        self.coder = BoxCoder(weights=(10.0, 5.0))

    @classmethod
    def suggest(
        cls,
        facts: Fingerprint,
        options: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
    ) -> list[Suggestion]:
        """Return anchors by sides and shapes, proposals and samples by counts, suppression by crowding."""
        return suggest_maskrcnn(facts, strides, patch)

    def blocks(self) -> list[nn.Module]:
        """Return the mask branch, which keeps maps of many regions."""
        return [self.mask_branch]

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return raw outputs.

        With targets: scores, shifts and masks of the regions sampled for the loss. In eval mode or without
        targets: the detections, padded to the most of the batch: ``boxes`` (relative to the valid part of each
        image), ``class_logits`` (background last), ``labels``, ``scores``, ``roi_mask_logits`` and their
        validity mask ``valid``.
        """
        instances = None if targets is None else instances_of(targets, "Mask R-CNN")
        generators = features.generators()
        outputs: Outputs = {"rpn": self.rpn(features, instances, generators)}
        proposals = outputs["rpn"]["proposals"]
        if instances is not None:
            outputs["samples"] = self._learn(features, proposals, instances, generators)
        if instances is None or not self.training:
            outputs.update(self._detect(features, proposals))
        return outputs

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the losses of proposals, classes, boxes and masks, over the regions of all processes."""
        samples = outputs["samples"]
        labels, positives = samples["labels"], samples["positives"]
        rows = torch.arange(len(samples["positive_labels"]), device=labels.device)
        predicted = samples["deltas"][positives, samples["positive_labels"]].float()
        box_loss = F.smooth_l1_loss(predicted, samples["wanted_deltas"], beta=1 / 9, reduction="sum")
        mask_logits = samples["mask_logits"][rows, samples["positive_labels"]].float()
        mask_loss = F.binary_cross_entropy_with_logits(mask_logits, samples["wanted_masks"], reduction="sum")
        class_loss = F.cross_entropy(samples["class_logits"].float(), labels, reduction="sum")
        counts = torch.tensor([len(labels), mask_logits.numel()], device=labels.device)
        num_regions, num_mask_points = world_mean(counts)
        return {
            **self.rpn.loss(outputs["rpn"]),
            "class": class_loss / num_regions,
            "box": box_loss / num_regions,
            "mask": mask_loss / num_mask_points,
        }

    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return the detections with cropped masks: never a canvas per instance."""
        results = []
        for i, geometry in enumerate(geometries):
            valid = outputs["valid"][i]
            sides = outputs["boxes"].new_tensor(geometry.valid_size[::-1] * 2)
            boxes = box_convert(outputs["boxes"][i, valid], "cxcywh", "xyxy") * sides
            boxes = geometry.boxes_to_original(boxes)
            shapes = outputs["roi_mask_logits"][i, valid].float().sigmoid()
            crops, origins = paste_crops(shapes, boxes, geometry.original_size)
            instances = Instances(
                boxes=boxes,
                labels=outputs["labels"][i, valid],
                masks=Masks.from_crops(crops, origins, geometry.original_size).to(boxes.device),
                scores=outputs["scores"][i, valid],
            )
            results.append(Segmentation(instances=instances, geometry=geometry))
        return results

    def _regions(self, features: Features, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Return the features of boxes, each read from the level that fits its size."""
        return multi_scale_roi_align(
            features.levels[: self.box_levels],
            self.strides[: self.box_levels],
            boxes,
            size,
            sampling_ratio=self.sampling_ratio,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )

    def _learn(
        self,
        features: Features,
        proposals: Sequence[Tensor],
        targets: Sequence[Instances],
        generators: Sequence[torch.Generator | None],
    ) -> dict[str, Tensor]:
        """Predict class, box and mask for regions sampled with the help of the truth."""
        regions, positive_boxes, parts = [], [], []
        for boxes, instances, generator in zip(proposals, targets, generators, strict=True):
            chosen, part = self._sample(boxes, instances, generator)
            regions.append(chosen)
            positive_boxes.append(chosen[: len(part["positive_labels"])])
            parts.append(part)
        class_logits, deltas = self.box_branch(self._regions(features, regions, self.box_size))
        samples = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        # The positives of each image stand first among its regions.
        counts = [len(boxes) for boxes in regions]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        positives = [
            torch.arange(len(boxes), device=boxes.device) + start
            for boxes, start in zip(positive_boxes, starts, strict=True)
        ]
        return {
            **samples,
            "positives": torch.cat(positives),
            "class_logits": class_logits,
            "deltas": deltas,
            "mask_logits": self.mask_branch(self._regions(features, positive_boxes, self.mask_size)),
        }

    @torch.no_grad()
    def _sample(
        self, proposals: Tensor, instances: Instances, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose regions of one image, positives first, and what they should become."""
        if instances.masks is None:
            raise ValueError(
                "Mask R-CNN learns from masks, but the targets have boxes only; give Instances(masks=...)"
            )
        objects = instances[~instances.ignore]
        regions = torch.cat([proposals, objects.boxes])
        matches = self.matcher(box_iou(objects.boxes, regions))
        matches = leave_out_ignored(matches, regions, instances)
        positives, negatives = balanced_sample(matches, self.box_samples, self.positive_fraction, generator)
        boxes, matched = regions[positives], matches[positives]
        background = torch.full_like(negatives, self.num_classes)
        true_masks = objects.masks[matched]  # type: ignore[index]
        size = (2 * self.mask_size,) * self.spatial_dims
        return torch.cat([boxes, regions[negatives]]), {
            "labels": torch.cat([objects.labels[matched], background]),
            "positive_labels": objects.labels[matched],
            "wanted_deltas": self.coder.encode(objects.boxes[matched], boxes),
            "wanted_masks": true_masks.crop_and_resize(boxes, size, self.mask_sampling_ratio),
        }

    def _detect(self, features: Features, proposals: Sequence[Tensor]) -> dict[str, Tensor]:
        """Classify and refine the proposals, suppress doubles, and predict the masks of what is left."""
        class_logits, deltas = self.box_branch(self._regions(features, proposals, self.box_size))
        counts = [len(boxes) for boxes in proposals]
        found = [
            self._select(boxes, logits, shifts, valid)
            for boxes, logits, shifts, valid in zip(
                proposals, class_logits.split(counts), deltas.split(counts), features.valid_sizes.tolist(),
                strict=True,
            )
        ]  # fmt: skip
        for i, (part, size) in enumerate(zip(found, features.valid_sizes.tolist(), strict=True)):
            logits = self._masks(features, i, part["boxes"], part["labels"])
            part["roi_mask_logits"] = logits
            part["valid"] = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            sides = part["boxes"].new_tensor(size[::-1] * 2)
            part["boxes"] = box_convert(part["boxes"], "xyxy", "cxcywh") / sides
        return {name: nn.utils.rnn.pad_sequence([part[name] for part in found], True) for name in found[0]}

    def _masks(self, features: Features, image: int, boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the mask of each detection of one image for its class, some at a time: there may be a thousand."""
        at_once = max(1, _MASK_ELEMENTS // (self.mask_channels * (2 * self.mask_size) ** self.spatial_dims))
        found = []
        for some, classes in zip(torch.split(boxes, at_once), torch.split(labels, at_once), strict=True):
            regions = [some if i == image else some[:0] for i in range(len(features.valid_sizes))]
            logits = self.mask_branch(self._regions(features, regions, self.mask_size))
            found.append(logits[torch.arange(len(some), device=some.device), classes])
        return torch.cat(found)

    def _select(
        self, regions: Tensor, logits: Tensor, deltas: Tensor, valid_size: Sequence[int]
    ) -> dict[str, Any]:
        """Return the detections of one image, best first."""
        scores = logits.float().softmax(dim=1)[:, :-1]
        rows, labels = (scores > self.score_threshold).nonzero(as_tuple=True)
        boxes = self.coder.decode(deltas[rows, labels].float(), regions[rows])
        boxes = clip_boxes(boxes, valid_size)
        half = boxes.shape[1] // 2
        large = ((boxes[:, half:] - boxes[:, :half]) >= 1e-2).all(dim=1)
        rows, labels, boxes = rows[large], labels[large], boxes[large]
        kept = batched_nms(boxes, scores[rows, labels], labels, self.nms_threshold)[
            : self.detections_per_image
        ]
        return {
            "boxes": boxes[kept],
            "labels": labels[kept],
            "scores": scores[rows[kept], labels[kept]],
            "class_logits": logits[rows[kept]],
        }

"""ContourFormer: queries whose outlines move onto the objects, point by point (2-D only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixvox.heads.denoising import Denoising, NoisedQueries
from pixvox.heads.head import Head, Outputs, instances_of
from pixvox.heads.query_head import QueryHead
from pixvox.heads.query_predictions import QueryPrediction
from pixvox.losses.contours import ContourCriterion, ContourTargets
from pixvox.losses.query_classification import Varifocal
from pixvox.losses.set_prediction import SetTargets
from pixvox.ops.mask_nms import mask_nms
from pixvox.ops.outlines import outlines_of
from pixvox.ranges import check_at_least, check_shares
from pixvox.structures import Features, Geometry, Instances, Masks, Segmentation, Targets
from pixvox.transformer.box_refinement import BoxBranch, move_in_logits
from pixvox.transformer.contour_decoder import ContourDecoder, Contours
from pixvox.transformer.levels import Tokens
from pixvox.transformer.proposals import ProposalBranch, Proposals

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion

COSTS = {"class": 2.0, "box": 5.0, "giou": 5.0, "points": 1.0}
WEIGHTS = {"class": 1.0, "points": 1.0, "direction": 0.25, "box": 5.0, "giou": 2.0}


class ContourFormer(Head):
    """Proposals become queries, and each query an outline: from the ellipse in its box, layer by layer, to the object.

    "ContourFormer: Real-Time Contour-Based End-to-End Instance Segmentation Transformer" (Yao et al., 2025,
    https://arxiv.org/abs/2501.17688). A query has a part for every few points; parts look at those of the other queries
    that follow the same piece of an outline, then at each other. Objects in several parts learn the outline of their
    largest part, holes are filled: outlines are single closed lines. Instances have ``polygons`` and the masks that
    these enclose, pixel for pixel as COCO's tools rasterise them.

    Args:
        in_channels: Channels of each level, finest first; all the same.
        strides: Strides of each level, per axis in array order.
        num_classes: Classes of the data.
        spatial_dims: 2.
        num_queries: Queries: the most objects that can be found in an image.
        num_points: Points of an outline, a multiple of 4 and of ``points_per_part``.
        points_per_part: Points that a part of a query follows.
        num_layers: Layers of the decoder.
        num_heads: Heads of its attentions.
        points_per_head: Places that a part looks at per head, by level; one number for all.
        feedforward: Hidden channels of its feed-forward networks.
        dropout: Share of values set to zero in training.
        num_bins: Bins of the distribution of each offset, less one; even.
        denoising_queries: Objects per image, at most, that are given to the decoder with noise in training, each twice:
            near, to be found, and far, to be told apart.
        label_noise: Twice the share of them with a random label.
        box_noise: Largest shift of the corners of the near ones, in half sides; far ones have up to twice as much.
        classification: How queries are classified; varifocal by default.
        costs: Weights of the matching costs ``class box giou points``.
        weights: Weights of the losses ``class points direction``, and of ``box giou`` for the proposals.
        detections_per_image: Most instances of one image; None is as many as queries.
        mask_nms_threshold: IoU of masks of one class above which the one of lower score goes; None keeps all.
        score_threshold: Instances below are not given out.
        pseudo_label_threshold: Instances above teach a student.
        confident_score: See ``Head``.

    Raises:
        ValueError: If the levels have different channels, or numbers do not fit each other.

    Example:
        >>> small = {"num_queries": 5, "num_points": 16, "num_layers": 1, "num_heads": 2, "points_per_head": 2}
        >>> head = ContourFormer((8, 8), ((8, 8), (16, 16)), 3, **small).eval()
        >>> levels = (torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3))
        >>> images, sizes = torch.zeros(1, 1, 32, 48), torch.tensor([[32, 48]])
        >>> outputs = head(Features(levels, ((8, 8), (16, 16)), images, (32, 48), sizes))
        >>> [tuple(outputs[name].shape) for name in ("class_logits", "boxes", "contours")]
        [(1, 5, 3), (1, 5, 4), (1, 5, 16, 2)]
    """

    task = "instance"
    supported_dims = (2,)

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        spatial_dims: int = 2,
        num_queries: int = 300,
        num_points: int = 64,
        points_per_part: int = 8,
        num_layers: int = 4,
        num_heads: int = 8,
        points_per_head: int | Sequence[int] = (3, 6, 3),
        feedforward: int = 1024,
        dropout: float = 0.0,
        num_bins: int = 32,
        denoising_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        classification: Varifocal | None = None,
        costs: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        detections_per_image: int | None = None,
        mask_nms_threshold: float | None = None,
        score_threshold: float = 0.05,
        pseudo_label_threshold: float = 0.4,
        confident_score: float = 0.3,
    ) -> None:
        super().__init__(spatial_dims, num_classes, score_threshold, pseudo_label_threshold, confident_score)
        check_at_least(1, num_queries=num_queries, num_layers=num_layers, feedforward=feedforward)
        check_shares(dropout=dropout)
        if mask_nms_threshold is not None:
            check_shares(mask_nms_threshold=mask_nms_threshold)
        if detections_per_image is not None:
            check_at_least(1, detections_per_image=detections_per_image)
        points = _points(points_per_head, len(strides))
        _check_outline(num_points, points_per_part, num_bins)
        channels = _one_width(in_channels)
        self.strides = tuple(tuple(stride) for stride in strides)
        self.num_queries, self.num_points = num_queries, num_points
        self.classification = classification or Varifocal()
        self.criterion = ContourCriterion(self.classification, costs or COSTS, weights or WEIGHTS)
        self.detections_per_image = detections_per_image
        self.mask_nms_threshold = mask_nms_threshold
        self.proposals = ProposalBranch(channels, strides)
        self.classifier = nn.Linear(channels, num_classes)
        self.classification.init_bias(self.classifier)
        self.box_branch = BoxBranch(channels)
        self.decoder = ContourDecoder(
            channels, num_classes, self.classification, num_points, points_per_part, num_layers, num_heads, points,
            feedforward, dropout, num_bins,
        )  # fmt: skip
        self.denoising = (
            Denoising(
                num_classes, channels, 2 * denoising_queries, box_noise, True, label_noise, corners=True
            )
            if denoising_queries
            else None
        )

    @classmethod
    def suggest(
        cls,
        facts: Fingerprint,
        options: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
    ) -> list[Suggestion]:
        """Return the number of queries by the most crowded images."""
        return QueryHead.suggest(facts, options, strides, patch)

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the decoder."""
        return list(self.decoder.layers)

    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return ``class_logits``, ``boxes`` and ``contours (batch, queries, points, 2)``, relative to the image."""
        tokens = Tokens.of(features.levels, self.strides, features.valid_sizes)
        proposals: Proposals = self.proposals(
            tokens,
            self.num_queries,
            self.classifier,
            lambda memory, boxes: move_in_logits(boxes, self.box_branch(memory)),
        )
        contents, boxes = proposals.memory.detach(), proposals.boxes.detach()
        noised = self._noised(features, targets, contents.shape[1])
        count, blocked = 0, None
        if noised is not None:
            count, blocked = noised.content.shape[1], noised.mask
            contents = torch.cat([noised.content.to(contents.dtype), contents], dim=1)
            boxes = torch.cat([noised.boxes.to(boxes.dtype), boxes], dim=1)
        first, layers = self.decoder(contents, boxes, tokens, blocked)
        answers = [_part(layer, slice(count, None)) for layer in layers]
        outputs: Outputs = {
            "first": _part(first, slice(count, None)),
            "layers": answers,
            "proposals": QueryPrediction(proposals.class_logits, proposals.boxes),
            "noised": noised,
            "noised_first": _part(first, slice(0, count)),
            "noised_layers": [_part(layer, slice(0, count)) for layer in layers],
            "class_logits": answers[-1].class_logits,
            "boxes": answers[-1].boxes,
            "contours": answers[-1].points,
            "valid_sizes": features.valid_sizes,
        }
        if self.denoising is not None:  # so that its weights get a gradient also where nothing is noised
            outputs["unused"] = self.denoising.labels.weight[:0].sum()
        return outputs

    def _noised(self, features: Features, targets: Targets | None, num_queries: int) -> NoisedQueries | None:
        if self.denoising is None or not self.training or targets is None:
            return None
        truths = [
            SetTargets.of(instances, size)
            for instances, size in zip(
                instances_of(targets, "ContourFormer"), features.valid_sizes, strict=True
            )
        ]
        found: NoisedQueries | None = self.denoising(truths, num_queries, features.generators())
        return found

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the terms of all layers, the proposals and the denoising queries."""
        sizes = outputs["valid_sizes"]
        truths = [
            self._target(instances, size)
            for instances, size in zip(instances_of(targets, "ContourFormer"), sizes, strict=True)
        ]
        terms = self.criterion(outputs["first"], outputs["layers"], outputs["proposals"], truths, sizes)
        noised: NoisedQueries | None = outputs["noised"]
        if noised is not None:
            found = self.criterion.denoised(
                outputs["noised_first"],
                outputs["noised_layers"],
                noised.objects,
                truths,
                sizes,
            )
            terms |= found
        if "unused" in outputs:
            terms["class"] = terms["class"] + outputs["unused"]
        return terms

    @torch.no_grad()
    def _target(self, instances: Instances, valid_size: Tensor) -> ContourTargets:
        if instances.masks is None:
            raise ValueError(
                "ContourFormer learns outlines, but the targets have boxes only; give Instances(masks=...)"
            )
        points, _ = outlines_of(instances.masks[~instances.ignore], self.num_points)
        return ContourTargets(SetTargets.of(instances, valid_size), points / valid_size.flip(0).to(points))

    @torch.no_grad()
    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return the best (query, class) pairs as instances with polygons and masks, in each original frame."""
        return [
            self._segmentation(outputs["layers"][-1], i, geometry) for i, geometry in enumerate(geometries)
        ]

    def _segmentation(self, layer: Contours, image: int, geometry: Geometry) -> Segmentation:
        scores = self.classification.scores(layer.class_logits[image])
        most = len(scores) if self.detections_per_image is None else self.detections_per_image
        best, place = scores.flatten().topk(min(most, scores.numel()))
        place = place[best > self.score_threshold]
        best, queries, labels = best[: len(place)], place // scores.shape[1], place % scores.shape[1]
        size = geometry.original_size
        sides = torch.tensor(size[::-1], dtype=torch.float32, device=best.device)
        outlines = layer.points[image, queries].float().clamp(0, 1) * sides
        polygons = [[outline.flatten().tolist()] for outline in outlines]
        masks = Masks.from_polygons(polygons, size, on_invalid="drop").to(best.device)
        instances = Instances(masks=masks, labels=labels, scores=best, polygons=polygons, size=size)
        kept = (masks.areas() > 0).nonzero()[:, 0]
        if self.mask_nms_threshold is not None:
            few = instances[kept]
            kept = kept[mask_nms(few.masks, few.scores, few.labels, self.mask_nms_threshold)]  # type: ignore[arg-type]
        return Segmentation(instances=instances[kept], geometry=geometry)


def _part(contours: Contours, queries: slice) -> Contours:
    return Contours(contours.class_logits[:, queries], contours.points[:, queries])


def _points(given: int | Sequence[int], count: int) -> list[int]:
    """Return the places that a part looks at per head, by level."""
    points = [given] * count if isinstance(given, int) else list(given)
    if len(points) != count:
        raise ValueError(
            f"points_per_head has {len(points)} numbers for the {count} levels of the neck; give one per level, or one "
            "for all"
        )
    check_at_least(1, points_per_head=min(points))
    return points


def _check_outline(num_points: int, points_per_part: int, num_bins: int) -> None:
    """Check that outlines, their parts and distributions fit each other."""
    check_at_least(1, points_per_part=points_per_part)
    if num_points < 4 or num_points % 4 or num_points % points_per_part:
        raise ValueError(
            f"num_points must be a multiple of 4 and of points_per_part={points_per_part}, got {num_points}"
        )
    if num_bins < 4 or num_bins % 2 or num_bins + 1 < 2 * points_per_part:
        raise ValueError(
            f"num_bins must be even, at least 4, and at least 2 * points_per_part - 1 = {2 * points_per_part - 1}; "
            f"got {num_bins}"
        )


def _one_width(channels: Sequence[int]) -> int:
    if len(set(channels)) != 1:
        raise ValueError(
            f"all levels need the same channels, got {list(channels)}; put neck=hybrid_encoder before this head"
        )
    return channels[0]

"""Region proposal network: where objects may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixvox.distributed.world import world_mean
from pixvox.heads.anchors import AnchorGenerator
from pixvox.layers import conv
from pixvox.ops.anchor_matching import BELOW_LOW, BETWEEN, Matcher, balanced_sample
from pixvox.ops.box_coding import BoxCoder
from pixvox.ops.boxes import box_iou, box_volume, clip_boxes
from pixvox.ops.nms import batched_nms
from pixvox.structures import Features, Instances


class RegionProposalNetwork(nn.Module):
    """Scores and shifts anchors on every level and keeps the best.

    "Faster R-CNN" (Ren et al., 2015, https://arxiv.org/abs/1506.01497), for images and volumes.

    Args:
        in_channels: Channels of every level.
        spatial_dims: 2 or 3.
        anchors: Anchor boxes.
        num_proposals: Proposals kept per image after suppression, in training and in evaluation.
        num_candidates: Best anchors per level that enter suppression, in training and in evaluation.
        nms_threshold: IoU above which the worse of two proposals goes.
        positive_iou: Anchors from this IoU with an object on are positive (and each object's best one).
        negative_iou: Anchors below this IoU with every object are negative.
        samples_per_image: Anchors that enter the loss.
        positive_fraction: Largest share of positives among them.
        min_size: Proposals with a side below this, in pixels, are dropped.
        num_convs: Convolutions before scores and shifts.
    """

    def __init__(
        self,
        in_channels: int,
        spatial_dims: int,
        anchors: AnchorGenerator,
        num_proposals: Sequence[int] = (1000, 1000),
        num_candidates: Sequence[int] = (2000, 1000),
        nms_threshold: float = 0.7,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        samples_per_image: int = 256,
        positive_fraction: float = 0.5,
        min_size: float = 1e-3,
        num_convs: int = 1,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.num_proposals = tuple(num_proposals)
        self.num_candidates = tuple(num_candidates)
        self.nms_threshold = nms_threshold
        self.samples_per_image = samples_per_image
        self.positive_fraction = positive_fraction
        self.min_size = min_size
        self.matcher = Matcher(positive_iou, negative_iou, allow_low_quality_matches=True)
        self.coder = BoxCoder()
        count = anchors.num_anchors(spatial_dims)
        self.convs = nn.ModuleList(conv(spatial_dims, in_channels, in_channels, 3) for _ in range(num_convs))
        self.objectness = conv(spatial_dims, in_channels, count, 1)
        self.deltas = conv(spatial_dims, in_channels, count * 2 * spatial_dims, 1)
        for layer in (*self.convs, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Features,
        targets: Sequence[Instances] | None,
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> dict[str, Any]:
        """Return raw scores and shifts of all anchors, the proposals, and with targets the sampled anchors.

        Args:
            features: The levels.
            targets: Truth of each image.
            generators: Source of randomness of each image's sampling; the global one by default.
        """
        objectness, deltas = [], []
        for level in features.levels:
            hidden = level
            for layer in self.convs:
                hidden = F.relu(layer(hidden))
            objectness.append(_flatten_anchors(self.objectness(hidden), 1)[..., 0])
            deltas.append(_flatten_anchors(self.deltas(hidden), 2 * level.dim() - 4))
        sizes = [tuple(level.shape[2:]) for level in features.levels]
        anchors = self.anchors(sizes, features.padded_size, features.images.device)
        counts = [len(boxes) for boxes in anchors]
        outputs: dict[str, Any] = {
            "objectness": torch.cat(objectness, dim=1),
            "deltas": torch.cat(deltas, dim=1),
            "anchors": torch.cat(anchors),
        }
        if targets is not None:
            outputs["samples"] = self.sample(outputs["anchors"], targets, generators or [None] * len(targets))
        outputs["proposals"] = self.propose(outputs, counts, features.valid_sizes.tolist())
        return outputs

    @torch.no_grad()
    def propose(
        self, outputs: dict[str, Any], counts: Sequence[int], valid_sizes: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Return the best boxes of each image after suppression within each level, best first."""
        num_candidates = self.num_candidates[0 if self.training else 1]
        num_proposals = self.num_proposals[0 if self.training else 1]
        best, levels, start = [], [], 0
        for level, count in enumerate(counts):
            scores = outputs["objectness"][:, start : start + count].float()
            best.append(scores.topk(min(num_candidates, count), dim=1).indices + start)
            levels.append(torch.full_like(best[-1][0], level))
            start += count
        candidates, level_of = torch.cat(best, dim=1), torch.cat(levels)
        proposals = []
        for i, chosen in enumerate(candidates):
            deltas = outputs["deltas"][i, chosen].float()
            boxes = clip_boxes(self.coder.decode(deltas, outputs["anchors"][chosen]), valid_sizes[i])
            scores = outputs["objectness"][i, chosen].float().sigmoid()
            half = boxes.shape[1] // 2
            large = ((boxes[:, half:] - boxes[:, :half]) >= self.min_size).all(dim=1)
            boxes, scores = boxes[large], scores[large]
            kept = batched_nms(boxes, scores, level_of[large], self.nms_threshold)
            proposals.append(boxes[kept[:num_proposals]])
        return proposals

    @torch.no_grad()
    def sample(
        self,
        anchors: Tensor,
        targets: Sequence[Instances],
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Choose the anchors of each image that enter the loss, and what they should become."""
        samples = []
        for instances, generator in zip(targets, generators or [None] * len(targets), strict=True):
            objects = instances[~instances.ignore]
            matches = self.matcher(box_iou(objects.boxes, anchors))
            matches = leave_out_ignored(matches, anchors, instances)
            positives, negatives = balanced_sample(
                matches, self.samples_per_image, self.positive_fraction, generator
            )
            matched = objects.boxes[matches[positives]]
            samples.append(
                {
                    "positives": positives,
                    "negatives": negatives,
                    "deltas": self.coder.encode(matched, anchors[positives]),
                }
            )
        return samples

    def loss(self, outputs: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss of scores and of shifts, over the sampled anchors of all processes."""
        logits, truth, predicted, wanted = [], [], [], []
        for objectness, deltas, sample in zip(
            outputs["objectness"], outputs["deltas"], outputs["samples"], strict=True
        ):
            chosen = torch.cat([sample["positives"], sample["negatives"]])
            logits.append(objectness[chosen].float())
            truth.append((torch.arange(len(chosen), device=chosen.device) < len(sample["positives"])).float())
            predicted.append(deltas[sample["positives"]].float())
            wanted.append(sample["deltas"])
        count = world_mean(torch.tensor(sum(map(len, logits)), device=outputs["objectness"].device))
        objectness_loss = F.binary_cross_entropy_with_logits(
            torch.cat(logits), torch.cat(truth), reduction="sum"
        )
        box_loss = F.smooth_l1_loss(torch.cat(predicted), torch.cat(wanted), beta=1 / 9, reduction="sum")
        return {"rpn_objectness": objectness_loss / count, "rpn_box": box_loss / count}


def leave_out_ignored(matches: Tensor, boxes: Tensor, instances: Instances, threshold: float = 0.5) -> Tensor:
    """Mark negatives of which what lies in the image is mostly ignored (crowds) as neither positive nor negative."""
    ignored = instances.boxes[instances.ignore]
    if len(ignored) == 0:
        return matches
    if instances.size is not None:
        boxes = clip_boxes(boxes, instances.size)
    half = boxes.shape[1] // 2
    low = torch.maximum(boxes[:, None, :half], ignored[None, :, :half])
    high = torch.minimum(boxes[:, None, half:], ignored[None, :, half:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    covered = shared.amax(dim=1) >= threshold * box_volume(boxes)
    return torch.where((matches == BELOW_LOW) & covered, torch.full_like(matches, BETWEEN), matches)


def _flatten_anchors(x: Tensor, values: int) -> Tensor:
    """Turn ``(batch, anchors * values, *spatial)`` into ``(batch, positions * anchors, values)``."""
    batch, channels = x.shape[:2]
    return x.reshape(batch, channels // values, values, -1).permute(0, 3, 1, 2).reshape(batch, -1, values)

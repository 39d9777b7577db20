"""What Mask R-CNN makes of a dataset's fingerprint: anchors, proposals, samples, suppression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pixvox.data.suggestions import FPN_PAPER, Suggestion, by

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

NNDETECTION = "nnDetection (Baumgartner et al., 2021, https://arxiv.org/abs/2106.00817)"
_CELLS = 3  # feature cells that an anchor must span: an object between two cells keeps an IoU of one half
_PROPOSALS = 5  # for each object
_SAMPLES = 8  # regions and anchors in the loss, for each object
_WIDE = 2.0  # 90th over 10th percentile from which one shape is not enough


def suggest_maskrcnn(
    facts: Fingerprint, strides: Sequence[Sequence[int]], patch: Sequence[int]
) -> list[Suggestion]:
    """Return options of the head by their names; see ``MaskRCNN``.

    Args:
        facts: The fingerprint, in the pixels that the network sees.
        strides: Strides of each level, per axis in array order.
        patch: Size of the training images.
    """
    if not len(facts.object_sides):
        return []
    found = _anchors(facts, strides)
    found += _numbers(facts, patch)
    overlap = float(np.percentile(facts.box_overlaps, 99)) if len(facts.box_overlaps) else 0.0
    found.append(
        Suggestion(
            "nms_threshold", round(min(0.7, max(0.3, overlap + 0.1)), 2),
            f"boxes of different objects overlap by an IoU of up to {overlap:.2f} (99th percentile)",
            "a tenth above what true neighbours reach, between 0.3 and 0.7: neighbours stay, duplicates go",
        )
    )  # fmt: skip
    if facts.spatial_dims == 3:
        why = "an offset that leaves an IoU of 0.5 in 2-D leaves 0.38 in 3-D"
        found.append(Suggestion("rpn_iou", [0.5, 0.2], "volumes", why))
        found.append(Suggestion("positive_iou", 0.4, "volumes", why))
    return found


def _anchors(facts: Fingerprint, strides: Sequence[Sequence[int]]) -> list[Suggestion]:
    """Return sides for each level, then shapes in the plane and along depth."""
    sides = np.maximum(facts.object_sides, 1.0)
    read = f"sides {by(facts.side(5))} (5th percentile) to {by(facts.side(95))} (95th)"
    found, anisotropy = [], 1.0
    in_plane = sides[:, -2] / sides[:, -1]
    if facts.spatial_dims == 3:
        scale = facts.relative_spacing
        anisotropy = round(math.sqrt(scale[-2] * scale[-1]) / scale[0], 4)
        depth = sides[:, 0] / anisotropy / np.sqrt(sides[:, -2] * sides[:, -1])
        found.append(
            Suggestion(
                "anisotropy", anisotropy, f"spacing {by(facts.spacing) if facts.spacing else 'unknown'}",
                "spacing in the plane over spacing along depth, so that shapes are physical ones",
            )
        )  # fmt: skip
        found.append(_ratios("depth_ratios", depth, "depth over side in the plane"))
    found.append(_ratios("aspect_ratios", in_plane, "height over width"))
    lengths = (np.prod(sides, axis=1) / anisotropy) ** (1 / facts.spatial_dims)
    low, high = np.percentile(lengths, (5, 95))
    levels = len(strides)
    steps = np.geomspace(low, max(high, low), levels) if levels > 1 else [math.sqrt(low * high)]
    chosen = [
        [float(round(max(length, _CELLS * min(stride[-2:]))))]
        for length, stride in zip(steps, strides, strict=True)
    ]
    finest = by(strides[0])
    found.append(
        Suggestion(
            "anchor_sizes", chosen, f"{read}; {levels} levels from stride {finest}",
            f"one side per level in equal ratios over the range of the objects, at least {_CELLS} cells of the level",
            FPN_PAPER,
        )
    )  # fmt: skip
    return found


def _ratios(key: str, ratios: np.ndarray, what: str) -> Suggestion:
    """One shape when the objects are alike, else three."""
    low, middle, high = np.exp(np.percentile(np.log(ratios), (10, 50, 90))).tolist()
    wide = high / low > _WIDE
    step = math.sqrt(high / low)
    value = (
        [round(middle / step, 2), round(middle, 2), round(middle * step, 2)] if wide else [round(middle, 2)]
    )
    return Suggestion(
        key, value, f"{what} {low:.2f} .. {high:.2f} (10th to 90th percentile), median {middle:.2f}",
        f"{'three shapes' if wide else 'one shape'}: the spread is {'above' if wide else 'within'} a factor {_WIDE:g}",
        NNDETECTION,
    )  # fmt: skip


def _numbers(facts: Fingerprint, patch: Sequence[int]) -> list[Suggestion]:
    """Return numbers of proposals, candidates and samples."""
    size = tuple(patch)
    whole, crowded, usual = (
        facts.count(99.9),
        facts.objects_per_patch(size, 99.9),
        facts.objects_per_patch(size, 50),
    )
    proposals = [_hundreds(_PROPOSALS * crowded), _hundreds(_PROPOSALS * whole)]
    read = f"{whole:.0f} objects in an image, {crowded:.0f} in a patch (99.9th percentile)"
    samples = min(512, max(128, 2 ** round(math.log2(max(1.0, _SAMPLES * usual)))))
    candidates = [max(1000, number) for number in proposals]
    few = f"{usual:.0f} objects in a patch (median)"
    return [
        Suggestion(
            "num_proposals", proposals, read, f"{_PROPOSALS} for each object, at least 300 (training, evaluation)",
            "Faster R-CNN (Ren et al., 2015, https://arxiv.org/abs/1506.01497): 300 suffice for 7 objects",
        ),
        Suggestion("num_candidates", candidates, read, "as many as proposals on each level, at least 1000", FPN_PAPER),
        Suggestion("rpn_samples", samples, few, f"{_SAMPLES} for each object, a power of 2 in 128 .. 512"),
        Suggestion("box_samples", samples, few, f"{_SAMPLES} for each object, a power of 2 in 128 .. 512"),
    ]  # fmt: skip


def _hundreds(number: float) -> int:
    return max(300, math.ceil(number / 100) * 100)

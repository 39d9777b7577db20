"""Operators for 2-D and 3-D: boxes, suppression, multilinear sampling, masks, contours, matching."""

from pixvox.ops.anchor_matching import Matcher, balanced_sample
from pixvox.ops.box_coding import BoxCoder
from pixvox.ops.boxes import (
    box_convert,
    box_iou,
    box_volume,
    clip_boxes,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    masks_to_boxes,
    remove_small_boxes,
)
from pixvox.ops.deformable_attention import multi_scale_deformable_attention
from pixvox.ops.matching import hungarian
from pixvox.ops.matrix_nms import matrix_nms
from pixvox.ops.nms import batched_nms, nms
from pixvox.ops.roi_align import multi_scale_roi_align, roi_align
from pixvox.ops.sampling import multilinear_sampling

__all__ = [
    "BoxCoder",
    "Matcher",
    "balanced_sample",
    "batched_nms",
    "box_convert",
    "box_iou",
    "box_volume",
    "clip_boxes",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "hungarian",
    "masks_to_boxes",
    "matrix_nms",
    "multi_scale_deformable_attention",
    "multi_scale_roi_align",
    "multilinear_sampling",
    "nms",
    "remove_small_boxes",
    "roi_align",
]

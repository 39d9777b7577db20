"""Weights of torchvision's Mask R-CNN.

torchvision puts the background first, predicts boxes and masks for it too, and resizes images inside to a
shortest side of 800 pixels. Here the background is last, has no boxes and masks, and the resize belongs to
the predictor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pixvox.errors import WeightsError

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

    from pixvox.segmenter import Segmenter

MASKRCNN_KEY = "roi_heads.mask_predictor.mask_fcn_logits.weight"

_RENAMES = [
    (r"^backbone\.body\.", "backbone.network."),
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?", r"neck.lateral.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?", r"neck.output.\1."),
    (r"^rpn\.head\.conv\.(?:0\.0\.)?", "head.rpn.conv."),
    (r"^rpn\.head\.cls_logits\.", "head.rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "head.rpn.deltas."),
    (r"^roi_heads\.box_head\.fc6\.", "head.box_branch.fc1."),
    (r"^roi_heads\.box_head\.fc7\.", "head.box_branch.fc2."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "head.box_branch.classes."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "head.box_branch.deltas."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "head.mask_branch.8."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "head.mask_branch.10."),
]


def fetch(weights: WeightsEnum) -> dict[str, Tensor]:
    """Return weights of torchvision's, from its cache or fetched once and checked against their sum.

    Raises:
        WeightsError: If it is none of torchvision's, or they can neither be found nor fetched.
    """
    from torchvision.models import WeightsEnum

    if not isinstance(weights, WeightsEnum):
        raise WeightsError(
            f"{weights!r} is neither a path, nor an id of the Hugging Face hub, nor weights of torchvision's, such as "
            "MaskRCNN_ResNet50_FPN_Weights.DEFAULT"
        )
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise WeightsError(
            f"{weights}: {weights.url.rsplit('/', 1)[-1]} is not in {folder} and could not be fetched ({error}); "
            "without network, copy it there from a machine that has it"
        ) from error


def is_maskrcnn(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is one of torchvision's Mask R-CNN."""
    return MASKRCNN_KEY in state and "backbone.body.conv1.weight" in state


def convert_maskrcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with our names, the background moved last or dropped.

    Raises:
        WeightsError: If a key is not known, as in torchvision's second version of the model.
    """
    converted = {}
    for key, value in state.items():
        name = _rename(key)
        if name.startswith("head.box_branch.classes."):
            value = torch.roll(value, -1, dims=0)
        elif name.startswith("head.box_branch.deltas."):
            value = value[4:]
        elif name.startswith("head.mask_branch.10."):
            value = value[1:]
        converted[name] = value
    return converted


def _rename(key: str) -> str:
    # Four convolutions, numbered from 1 in old files ("mask_fcn1") and from 0 in new ones ("0.0").
    branch = re.match(r"^roi_heads\.mask_head\.(?:mask_fcn(\d)|(\d)\.0)\.(weight|bias)$", key)
    if branch:
        position = int(branch[1]) - 1 if branch[1] else int(branch[2])
        return f"head.mask_branch.{2 * position}.{branch[3]}"
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    raise WeightsError(
        f"torchvision's key {key!r} has no counterpart; maskrcnn_resnet50_fpn (and its ResNet-18 to -152 forms) load, "
        "its second version does not"
    )


def build_maskrcnn(state: Mapping[str, Tensor]) -> Segmenter:
    """Build the model that a state dict of torchvision's Mask R-CNN belongs to, with its weights."""
    from pixvox.models import create_model

    num_classes = state[MASKRCNN_KEY].shape[0] - 1
    model = create_model(
        head="maskrcnn",
        backbone=_backbone_name(state),
        num_classes=num_classes,
        normalizer="imagenet",
        class_names=_class_names(num_classes),
        anchor_sizes=[[32], [64], [128], [256], [512]],
        rounded_anchors=True,
        num_proposals=[2000, 1000],
        mask_sampling_ratio=-1,
        detections_per_image=100,
    )
    model.config["inference"] = {"resize": "shortest", "size": 800, "max_size": 1333}
    model.load_state_dict(convert_maskrcnn(state), strict=False)
    return model


def _backbone_name(state: Mapping[str, Tensor]) -> str:
    """Tell the ResNet by the blocks of its third stage and the kind of its blocks."""
    blocks = {int(key.split(".")[3]) for key in state if key.startswith("backbone.body.layer3.")}
    bottleneck = "backbone.body.layer1.0.conv3.weight" in state
    names = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101",
             (36, True): "resnet152"}  # fmt: skip
    name = names.get((max(blocks) + 1, bottleneck))
    if name is None:
        raise WeightsError(
            f"no ResNet has {max(blocks) + 1} blocks in its third stage; is this file torchvision's?"
        )
    return name


def _class_names(num_classes: int) -> tuple[str, ...]:
    """Return COCO's names for a model of 90 classes (torchvision keeps COCO's gaps as 'N/A')."""
    if num_classes != 90:
        return ()
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    return tuple(MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"][1:])

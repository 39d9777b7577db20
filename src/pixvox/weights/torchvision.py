"""Weights of torchvision's Mask R-CNN, both versions, FCN, DeepLabV3 and Lite R-ASPP.

torchvision's Mask R-CNN puts the background first, predicts boxes and masks for it too, and resizes images inside to
a shortest side of 800 pixels. Here the background is last, has no boxes and masks, and the resize belongs to the
predictor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.weights.checkpoint import load_state
from pixvox.weights.renaming import Rename, renamed

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

    from pixvox.segmenter import Segmenter

MASKRCNN_KEY = "roi_heads.mask_predictor.mask_fcn_logits.weight"

_SOURCE = Path("torchvision's weights")

_SEMANTIC_KEYS = {
    "fcn": "classifier.0.weight",
    "deeplabv3": "classifier.0.convs.0.0.weight",
    "lraspp": "classifier.cbr.0.weight",
}
"""A key of each semantic head, and of no other."""

_FCN_HEAD: list[Rename] = [(r"0\.(.*)", r"0.0.\1"), (r"1\.(.*)", r"0.1.\1"), (r"4\.(.*)", r"2.\1")]
"""Convolution, norm and scores stand at 0, 1 and 4 there; here the first two are one block."""

_SEMANTIC: dict[str, tuple[str, list[Rename]]] = {
    "fcn": ("classifiers.0.", _FCN_HEAD),
    "deeplabv3": ("classifier.", [
        (r"0\.convs\.0\.(.*)", r"0.point.\1"),
        (r"0\.convs\.([123])\.(.*)", lambda match: f"0.neighbourhoods.{int(match[1]) - 1}.{match[2]}"),
        (r"0\.convs\.4\.([12])\.(.*)", lambda match: f"0.whole.{int(match[1]) - 1}.{match[2]}"),
        (r"0\.project\.(.*)", r"0.projection.0.\1"),
        (r"([12])\.(.*)", lambda match: f"1.{int(match[1]) - 1}.{match[2]}"),
        (r"4\.(.*)", r"2.\1"),
    ]),
    "lraspp": ("", [
        (r"cbr\.(.*)", r"reduction.\1"),
        (r"scale\.1\.(.*)", r"scale.0.\1"),
        (r"((?:low|high)_classifier\..*)", r"\1"),
    ]),
}  # fmt: skip
"""For each semantic head, what ``classifier.`` is called here, and the names behind it."""

_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^backbone\.body\.", "backbone.network."),
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.", r"neck.lateral.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.", r"neck.output.\1."),
    (r"^rpn\.head\.conv\.(?:(\d+)\.0\.)?", lambda match: f"head.rpn.convs.{match[1] or 0}."),
    (r"^rpn\.head\.cls_logits\.", "head.rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "head.rpn.deltas."),
    (
        r"^roi_heads\.box_head\.(\d+)\.([01])\.",
        lambda m: f"head.box_branch.convs.{3 * int(m[1]) + int(m[2])}.",
    ),
    (r"^roi_heads\.box_head\.(?:fc6|5)\.", "head.box_branch.linears.0."),
    (r"^roi_heads\.box_head\.fc7\.", "head.box_branch.linears.2."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "head.box_branch.classes."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "head.box_branch.deltas."),
]
"""torchvision's names and ours, but for the mask branch, where they depend on what is between the convolutions."""

_MOBILENET_KEY = "backbone.0.0.weight"

_EPS = 1e-5
"""What norms of networks add to the variance; those of torchvision's COCO_V1 add nothing."""


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
        WeightsError: If a key is not known.
    """
    normed = _is_second(state)
    # The file of 2019, with names for the convolutions of masks and no counters in its frozen norms, has no epsilon.
    counted = any(key.endswith("num_batches_tracked") for key in state)
    without_eps = "roi_heads.mask_head.mask_fcn1.weight" in state and not counted
    converted = {}
    for key, value in state.items():
        name = _rename(key, normed)
        if name.startswith("head.box_branch.classes."):
            value = torch.roll(value, -1, dims=0)
        elif name.startswith("head.box_branch.deltas."):
            value = value[4:]
        elif name.startswith(f"head.mask_branch.{14 if normed else 10}."):
            value = value[1:]
        elif without_eps and (variance := state.get(key.removesuffix("weight") + "running_var")) is not None:
            value = value * ((variance + _EPS) / variance).sqrt()
        converted[name] = value
    return converted


def _is_second(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a Mask R-CNN is of torchvision's second version, with norms in its branches."""
    return "roi_heads.mask_head.0.1.weight" in state


def _rename(key: str, normed: bool) -> str:
    # Four convolutions, numbered from 1 in old files ("mask_fcn1") and from 0 in new ones ("0.0").
    branch = re.match(r"^roi_heads\.mask_head\.(?:mask_fcn(\d)|(\d)\.([01]))\.(\w+)$", key)
    step = 3 if normed else 2
    if branch:
        position = step * (int(branch[1]) - 1 if branch[1] else int(branch[2])) + int(branch[3] or 0)
        return f"head.mask_branch.{position}.{branch[4]}"
    for word, position in (("conv5_mask", 4 * step), ("mask_fcn_logits", 4 * step + 2)):
        key = key.replace(f"roi_heads.mask_predictor.{word}.", f"head.mask_branch.{position}.")
    if key.startswith("head.mask_branch."):
        return key
    if not normed:  # newer files of the pyramid say "0.0.weight" where older ones say "0.weight"
        key = re.sub(r"^(backbone\.fpn\.\w+\.\d+)\.0\.", r"\1.", key)
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    raise WeightsError(
        f"torchvision's key {key!r} has no counterpart; both versions of its Mask R-CNN load, on ResNet-18 to -152"
    )


def build_maskrcnn(state: Mapping[str, Tensor], source: Path = _SOURCE) -> Segmenter:
    """Build the model that a state dict of torchvision's Mask R-CNN belongs to, with its weights.

    Raises:
        WeightsError: If weights are missing, or not those of a ResNet.
    """
    from pixvox.models import create_model

    num_classes = state[MASKRCNN_KEY].shape[0] - 1
    second: dict[str, Any] = {
        "neck__norm": "batch", "rpn_convs": 2, "box_convs": 4, "box_linears": 1, "branch_norm": "batch",
    }  # fmt: skip
    model = create_model(
        head="maskrcnn",
        backbone=_resnet(state, "backbone.body."),
        num_classes=num_classes,
        normalizer="imagenet",
        class_names=_class_names(num_classes),
        anchor_sizes=[[32], [64], [128], [256], [512]],
        rounded_anchors=True,
        num_proposals=[2000, 1000],
        mask_sampling_ratio=-1,
        detections_per_image=100,
        **(second if _is_second(state) else {}),
    )
    model.config["inference"] = {"resize": "shortest", "size": 800, "max_size": 1333}
    return _with_weights(model, convert_maskrcnn(state), source)


def is_semantic(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is one of torchvision's FCN, DeepLabV3 or Lite R-ASPP."""
    return _semantic_head(state) is not None


def _semantic_head(state: Mapping[str, Tensor]) -> str | None:
    if _MOBILENET_KEY not in state and "backbone.conv1.weight" not in state:
        return None
    found = (head for head, key in _SEMANTIC_KEYS.items() if key in state and state[key].dim() == 4)
    return next(found, None)


def build_semantic(state: Mapping[str, Tensor], source: Path = _SOURCE) -> Segmenter:
    """Build the model that a state dict of torchvision's semantic models belongs to, with its weights.

    Raises:
        WeightsError: If weights are missing or not known, or not those of a ResNet or MobileNetV3.
    """
    from pixvox.models import create_model

    head = _semantic_head(state) or "fcn"
    mobile = _MOBILENET_KEY in state
    last = "classifier.low_classifier.bias" if head == "lraspp" else "classifier.4.bias"
    if last not in state:
        raise WeightsError(f"{source}: the weights of torchvision's {head} lack {last}")
    options: dict[str, Any] = {
        "fcn": {"in_levels": [-1]}, "deeplabv3": {"atrous_rates": [12, 24, 36]}, "lraspp": {},
    }[head]  # fmt: skip
    if "aux_classifier.4.bias" in state:
        options["aux_level"] = -3 if mobile else -2
        if head == "deeplabv3":
            options["aux_channels"] = len(state["aux_classifier.4.weight"][0])
    num_classes = len(state[last])
    model = create_model(
        head=head,
        backbone="mobilenet_v3" if mobile else _resnet(state, "backbone."),
        num_classes=num_classes,
        normalizer="imagenet",
        class_names=_voc_names(num_classes),
        backbone__output_stride=16 if mobile else 8,
        **options,
    )
    model.config["inference"] = {"resize": "shortest", "size": 520}
    return _with_weights(model, {_semantic_name(key, head): value for key, value in state.items()}, source)


def _semantic_name(key: str, head: str) -> str:
    part, _, rest = key.partition(".")
    if part == "backbone":
        return f"backbone.network.{rest}"
    place, table = ("aux_classifier.", _FCN_HEAD) if part == "aux_classifier" else _SEMANTIC[head]
    name = renamed(rest, table)
    if name is None:
        raise WeightsError(f"torchvision's key {key!r} has no counterpart in {head} here")
    return f"head.{place}{name}"


def _with_weights(model: Segmenter, state: dict[str, Tensor], source: Path) -> Segmenter:
    """Give a model all weights but those of its normaliser, which torchvision keeps outside."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith("normalizer.")}
    load_state(model, {**state, **own}, source)
    return model


def _resnet(state: Mapping[str, Tensor], prefix: str) -> str:
    """Tell the ResNet by the blocks of its third stage and the kind of its blocks."""
    blocks = {int(key[len(prefix) :].split(".")[1]) for key in state if key.startswith(f"{prefix}layer3.")}
    bottleneck = f"{prefix}layer1.0.conv3.weight" in state
    names = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101",
             (36, True): "resnet152"}  # fmt: skip
    name = names.get((max(blocks, default=0) + 1, bottleneck))
    if name is None:
        raise WeightsError(
            f"no ResNet has {max(blocks, default=0) + 1} blocks in its third stage; is this file torchvision's?"
        )
    return name


def _voc_names(num_classes: int) -> tuple[str, ...]:
    """Return VOC's names, which torchvision's models have, for 21 classes."""
    if num_classes != 21:
        return ()
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    names = FCN_ResNet50_Weights.DEFAULT.meta["categories"]
    return ("background", *names[1:])


def _class_names(num_classes: int) -> tuple[str, ...]:
    """Return COCO's names for a model of 90 classes (torchvision keeps COCO's gaps as 'N/A')."""
    if num_classes != 90:
        return ()
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    return tuple(MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"][1:])

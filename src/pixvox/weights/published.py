"""Weights of whole models that others published, by name, as torchvision's enumerations have them.

Nothing is fetched before ``load``. What torchvision calls the transforms of weights is inside the models here: they
normalise images, and resize them as ``model.config["inference"]`` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixvox.errors import WeightsError
from pixvox.signatures import nearest

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

_NAME = re.compile(r"(\w+_Weights)\.(?!(?:pth?|ckpt|bin|safetensors)$)(\w+)")


@dataclass(frozen=True)
class Weights:
    """Where weights are and what they are.

    Args:
        source: An id of the Hugging Face hub, ``owner/name``, or a name of torchvision's, ``ENUMERATION.MEMBER``.
        task: ``"instance"``, ``"semantic"`` or ``"panoptic"``.
        data: What the model learned from last.
        facts: Whatever else is known.
    """

    source: str
    task: str
    data: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class WeightsEnum(Enum):
    """Published weights of one head; ``DEFAULT`` is the member to begin with.

    Example:
        >>> MaskRCNN_Weights.DEFAULT.meta["task"], MaskRCNN_Weights.DEFAULT.meta["categories"][:2]
        ('instance', ['person', 'bicycle'])
        >>> Mask2Former_Weights.DEFAULT.url
        'https://huggingface.co/facebook/mask2former-swin-small-coco-instance'
    """

    @property
    def source(self) -> str:
        """The id on the Hugging Face hub, or torchvision's name."""
        return str(self.value.source)

    @property
    def url(self) -> str:
        """Where they are published."""
        theirs = self.of_torchvision()
        return f"https://huggingface.co/{self.source}" if theirs is None else str(theirs.url)

    @property
    def meta(self) -> dict[str, Any]:
        """Task, data, and what torchvision tells of its own: categories, scores, recipe."""
        theirs = self.of_torchvision()
        told: dict[str, Any] = {} if theirs is None else dict(theirs.meta)
        if self.value.task == "instance" and "categories" in told:
            told["categories"] = told["categories"][1:]  # the background is no object
        own = {"task": self.value.task, "data": self.value.data}
        return {**told, **own, **self.value.facts}

    def of_torchvision(self) -> Any:
        """Return torchvision's own member; None for weights of the hub."""
        match = _NAME.fullmatch(self.source)
        if match is None:
            return None
        from torchvision.models import get_weight

        return get_weight(self.source)

    def load(self) -> Segmenter:
        """Return the model with these weights, fetched once, in evaluation mode.

        Raises:
            WeightsError: If they can neither be found nor fetched.
        """
        from pixvox.weights.loading import load

        return load(self.of_torchvision() or self.source)


class MaskRCNN_Weights(WeightsEnum):  # noqa: N801 - as torchvision writes them
    """Mask R-CNN."""

    RESNET50_FPN_COCO_V1 = Weights("MaskRCNN_ResNet50_FPN_Weights.COCO_V1", "instance", "COCO")
    RESNET50_FPN_V2_COCO_V1 = Weights("MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1", "instance", "COCO")
    DEFAULT = RESNET50_FPN_V2_COCO_V1


class FCN_Weights(WeightsEnum):  # noqa: N801
    """FCN: COCO's images with VOC's classes."""

    RESNET50_COCO_WITH_VOC_LABELS_V1 = Weights(
        "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1", "semantic", "COCO, classes of VOC"
    )
    RESNET101_COCO_WITH_VOC_LABELS_V1 = Weights(
        "FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1", "semantic", "COCO, classes of VOC"
    )
    DEFAULT = RESNET101_COCO_WITH_VOC_LABELS_V1


class DeepLabV3_Weights(WeightsEnum):  # noqa: N801
    """DeepLabV3: COCO's images with VOC's classes."""

    RESNET50_COCO_WITH_VOC_LABELS_V1 = Weights(
        "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1", "semantic", "COCO, classes of VOC"
    )
    RESNET101_COCO_WITH_VOC_LABELS_V1 = Weights(
        "DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1", "semantic", "COCO, classes of VOC"
    )
    MOBILENET_V3_LARGE_COCO_WITH_VOC_LABELS_V1 = Weights(
        "DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1", "semantic", "COCO, classes of VOC"
    )
    DEFAULT = RESNET101_COCO_WITH_VOC_LABELS_V1


class LRASPP_Weights(WeightsEnum):  # noqa: N801
    """Lite R-ASPP: COCO's images with VOC's classes."""

    MOBILENET_V3_LARGE_COCO_WITH_VOC_LABELS_V1 = Weights(
        "LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1", "semantic", "COCO, classes of VOC"
    )
    DEFAULT = MOBILENET_V3_LARGE_COCO_WITH_VOC_LABELS_V1


class UPerNet_Weights(WeightsEnum):  # noqa: N801
    """UPerNet."""

    SWIN_TINY_ADE = Weights("openmmlab/upernet-swin-tiny", "semantic", "ADE20K")
    DEFAULT = SWIN_TINY_ADE


class Mask2Former_Weights(WeightsEnum):  # noqa: N801
    """Mask2Former."""

    SWIN_SMALL_COCO_INSTANCE = Weights("facebook/mask2former-swin-small-coco-instance", "instance", "COCO")
    SWIN_SMALL_ADE_SEMANTIC = Weights("facebook/mask2former-swin-small-ade-semantic", "semantic", "ADE20K")
    SWIN_SMALL_CITYSCAPES_PANOPTIC = Weights(
        "facebook/mask2former-swin-small-cityscapes-panoptic", "panoptic", "Cityscapes"
    )
    SWIN_LARGE_ADE_PANOPTIC = Weights("facebook/mask2former-swin-large-ade-panoptic", "panoptic", "ADE20K")
    DEFAULT = SWIN_SMALL_COCO_INSTANCE


class DeformableDETR_Weights(WeightsEnum):  # noqa: N801
    """Deformable DETR; the published ones find boxes, no masks."""

    RESNET50_COCO = Weights("SenseTime/deformable-detr", "instance", "COCO", {"masks": False})
    DEFAULT = RESNET50_COCO


class LWDETR_Weights(WeightsEnum):  # noqa: N801
    """LW-DETR, which finds boxes, and RF-DETR, which also has masks."""

    SMALL_COCO = Weights("AnnaZhang/lwdetr_small_60e_coco", "instance", "COCO", {"masks": False})
    RF_DETR_BASE_COCO = Weights("Roboflow/rf-detr-base", "instance", "COCO", {"masks": False})
    RF_DETR_SEG_MEDIUM_COCO = Weights("Roboflow/rf-detr-seg-medium", "instance", "COCO")
    DEFAULT = RF_DETR_SEG_MEDIUM_COCO


_OF_HEAD: dict[str, type[WeightsEnum]] = {
    "maskrcnn": MaskRCNN_Weights, "fcn": FCN_Weights, "mask2former": Mask2Former_Weights,
    "deformable_detr": DeformableDETR_Weights, "lw_detr": LWDETR_Weights, "deeplabv3": DeepLabV3_Weights,
    "lraspp": LRASPP_Weights, "upernet": UPerNet_Weights,
}  # fmt: skip


_KNOWN_WITH: dict[str, tuple[str, ...]] = {
    "fcn": ("resnet34", "resnet50", "resnet101", "vgg16"),
    "deeplabv3": ("resnet18", "resnet50", "resnet101", "mobilenet_v3_large"),
    "lraspp": ("resnet18", "mobilenet_v3_large"),
    "pspnet": ("resnet50",),
    "upernet": ("resnet18", "resnet101"),
    "bisenet": ("resnet18", "resnet50", "xception"),
    "sfnet": ("resnet18", "resnet101"),
    "sfnet_lite": ("resnet18", "resnet101"),
}
"""Backbones that heads are known with; ``get_model`` takes any other pair by such a name as well."""


def list_models(with_weights: bool = False) -> list[str]:
    """Return names that ``get_model`` knows: heads and well-known pairs, or heads that somebody published weights of.

    Example:
        >>> [name for name in list_models() if name.startswith("deeplabv3_r")]
        ['deeplabv3_resnet101', 'deeplabv3_resnet18', 'deeplabv3_resnet50']
    """
    from pixvox.models import list_heads

    heads = list_heads()
    pairs = [f"{head}_{backbone}" for head in heads for backbone in _KNOWN_WITH.get(head, ())]
    return sorted(_OF_HEAD) if with_weights else sorted([*heads, *pairs])


def get_model_weights(name: str) -> type[WeightsEnum]:
    """Return the enumeration of a head's published weights.

    Raises:
        WeightsError: If there are none.

    Example:
        >>> [member.name for member in get_model_weights("maskrcnn")]
        ['RESNET50_FPN_COCO_V1', 'RESNET50_FPN_V2_COCO_V1']
    """
    if name not in _OF_HEAD:
        raise WeightsError(
            f"no weights of {name!r} are known; there are some of {', '.join(sorted(_OF_HEAD))}"
        )
    return _OF_HEAD[name]


def get_weight(name: str) -> WeightsEnum:
    """Return weights by their name, ``ENUMERATION.MEMBER``, ours or torchvision's.

    Raises:
        WeightsError: If there are none of that name.

    Example:
        >>> get_weight("MaskRCNN_Weights.DEFAULT").name
        'RESNET50_FPN_V2_COCO_V1'
    """
    known = {
        f"{enumeration.__name__}.{member}": value
        for enumeration in _OF_HEAD.values()
        for member, value in enumeration.__members__.items()
    }
    known |= {value.source: value for value in known.values() if _NAME.fullmatch(value.source)}
    if name not in known:
        of_it = [other for other in known if other.partition(".")[0] == name.partition(".")[0]]
        hint = f"there are {', '.join(of_it)}" if of_it else nearest(name, list(known))
        raise WeightsError(f"there are no weights {name!r}; {hint}")
    return known[name]


def is_weight_name(path: str | Path) -> bool:
    """Tell whether a text is the name of published weights, and no file."""
    match = _NAME.fullmatch(str(path))
    return match is not None and not Path(path).exists()


def get_model(name: str, weights: Enum | str | None = None, **options: Any) -> Segmenter:
    """Return a model by the name of its head: with published weights, or new.

    Args:
        name: A head; or a head and a backbone, such as ``"deeplabv3_resnet50"``, whose ``"DEFAULT"`` weights then are
            those on that backbone.
        weights: A member of its enumeration or torchvision's, the member's name, or ``"DEFAULT"``; None for random
            weights.
        options: Of a new model: those of ``create_model``. Published weights come with theirs.

    Raises:
        WeightsError: If the weights are not those of this head, or options are given beside them.
    """
    if weights is None:
        from pixvox.models import create_model

        return create_model(head=name, **options)
    from pixvox.models import split_name

    head, _ = split_name(name)
    enumeration = get_model_weights(head)
    of_name = _of_backbone(enumeration, name.removeprefix(head).removeprefix("_"))
    if isinstance(weights, str) and weights.rpartition(".")[2] == "DEFAULT" and of_name:
        weights = of_name[-1] if enumeration["DEFAULT"] not in of_name else enumeration["DEFAULT"]
    if isinstance(weights, str):
        full = weights if "." in weights else f"{enumeration.__name__}.{weights}"
        weights = get_weight(full)
    elif not isinstance(weights, WeightsEnum):  # torchvision's own
        weights = get_weight(str(weights))
    if weights not in of_name:
        known = ", ".join(member.name for member in of_name) or "none"
        raise WeightsError(f"{weights} are not those of {name}; these are: {known}")
    if options:
        raise WeightsError(
            f"published weights come with their model, and {', '.join(options)} would change it; to train another one "
            f"that starts from them: pixvox train head={head} weights={enumeration.__name__}.{weights.name}"
        )
    return weights.load()


def _of_backbone(enumeration: type[WeightsEnum], backbone: str) -> list[WeightsEnum]:
    """Return the members whose names begin with a backbone's, all for none."""
    return [
        member for member in enumeration if not backbone or member.name.startswith(f"{backbone.upper()}_")
    ]
